"""The plan of an artifact: which kernel is called with which tensors, in order, and where the tensors lie.

``main`` of a lowered graph is straight code: calls of kernels, and reshapes, which are other names of the same numbers.
So a host needs no virtual machine, but a list. Tensors in between share an arena: each is given bytes for one sample,
and what lies at ``offset`` for a batch of one lies at ``batch * offset`` for any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvm_na.deploy.relax.kernels import Kernel
from tvm_na.deploy.weights import ALIGNMENT
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.base import ITEM_BYTES

FORMAT, VERSION = "tvm_na plan", 1
_RESHAPE = "relax.reshape"


@dataclass
class Tensor:
    """A tensor of a plan.

    Attributes:
        shape: Sizes; None is the batch.
        dtype: Its name.
        buffer: The number of the tensor whose memory it has; its own, unless it is a reshape.
        weight: The name of the weight that it is, None if it is none.
        offset: Of an arena for one sample; None for weights and the input.
    """

    shape: list[int | None]
    dtype: str
    buffer: int
    weight: str | None = None
    offset: int | None = None

    @property
    def bytes(self) -> int:
        """For one sample, a multiple of the alignment."""
        size = math.prod(1 if n is None else n for n in self.shape) * ITEM_BYTES[self.dtype]
        return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass
class Plan:
    """What ``plan.json`` says; the input is tensor 0.

    Attributes:
        calls: A function's name and its tensors, inputs before outputs.
        outputs: Of the model.
        arena: Bytes for one sample.
        constants: Weights beside the model's own.
    """

    tensors: list[Tensor] = field(default_factory=list)
    calls: list[tuple[str, list[int]]] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    arena: int = 0
    constants: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    def to_json(self, kernels: Sequence[Kernel], pages: Mapping[str, int]) -> dict[str, Any]:
        """The content of ``plan.json``; ``pages`` of 64 KiB are what the memory of a module has at first."""
        names = sorted({name for name, _ in self.calls})
        used = sorted({0, *self.outputs, *(t for _, tensors in self.calls for t in tensors)})
        numbers = {old: new for new, old in enumerate(used)}
        return {
            "format": FORMAT,
            "version": VERSION,
            "pages": dict(pages),
            "arena": self.arena,
            "tensors": [self._described(self.tensors[t]) for t in used],
            "functions": names,
            "calls": [[names.index(name), *(numbers[t] for t in tensors)] for name, tensors in self.calls],
            "outputs": [numbers[t] for t in self.outputs],
            "attentions": self._attentions({kernel.name: kernel for kernel in kernels}),
        }

    def _described(self, tensor: Tensor) -> dict[str, Any]:
        owner, about = self.tensors[tensor.buffer], {"shape": tensor.shape, "dtype": tensor.dtype}
        if owner.weight is not None:
            return {**about, "weight": owner.weight}
        return about if tensor.buffer == 0 else {**about, "offset": owner.offset}

    def _attentions(self, kernels: Mapping[str, Kernel]) -> list[dict[str, Any]]:
        """Of each call of attention its number, and what says which neighbors a query has."""
        found = []
        for number, (name, _) in enumerate(self.calls):
            problem = kernels[name].problem if name in kernels else None
            if isinstance(problem, NAProblem):
                axes = ("spatial", "kernel_size", "stride", "dilation", "is_causal")
                window = {axis: list(getattr(problem, axis)) for axis in axes}
                found.append({"call": number, **window, "bias": problem.bias})
        return found


def plan_of(module: Any, names: Sequence[str]) -> Plan:
    """The plan of a lowered graph (:class:`tvm_na.deploy.relax.library.Lowered`), whose weights have ``names``.

    Raises:
        NotImplementedError: ``main`` has something else than calls of kernels and reshapes, or a shape that is not
            ``[batch, ...]``.
    """
    from tvm.relax import transform

    walk = _Walk(names)
    walk.function(transform.RewriteDataflowReshape()(module)["main"])
    _place_in_arena(walk.plan)
    return walk.plan


class _Walk:
    """The bindings of ``main``, one after the other."""

    def __init__(self, names: Sequence[str]) -> None:
        self.plan, self._names = Plan(), names
        self._numbers: dict[Any, list[int]] = {}  # a variable's tensors: several of a tuple

    def function(self, main: Any) -> None:
        for index, parameter in enumerate(main.params):
            self._numbers[parameter] = [self._new(parameter.ty, self._names[index - 1] if index else None)]
        for block in main.body.blocks:
            for binding in block.bindings:
                self._numbers[binding.var] = self._value(binding.value, binding.var)
        self.plan.outputs = self._given(main.body.body)

    def _new(self, kind: Any, weight: str | None = None, buffer: int | None = None) -> int:
        number = len(self.plan.tensors)
        shape, dtype = [_size(n) for n in kind.shape], str(kind.dtype)
        if dtype not in ITEM_BYTES:
            raise NotImplementedError(f"format wasm: required tensors of {', '.join(ITEM_BYTES)}, got {dtype}")
        self.plan.tensors.append(Tensor(shape, dtype, number if buffer is None else buffer, weight))
        return number

    def _given(self, value: Any) -> list[int]:
        """The tensors of a value that is there."""
        from tvm import ir, relax

        if isinstance(value, relax.Tuple):
            return [number for part in value.fields for number in self._given(part)]
        if isinstance(value, ir.GenericConst):
            name = f"constant.{len(self.plan.constants)}"
            self.plan.constants[name] = value.value.numpy()
            return [self._new(value.ty, name)]
        return self._numbers[value]

    def _value(self, value: Any, variable: Any) -> list[int]:
        """The tensors of a variable that is bound to a value."""
        from tvm import relax

        if isinstance(value, relax.TupleGetItem):
            return [self._given(value.tuple_value)[value.index]]
        if not isinstance(value, relax.Call):
            return self._given(value)
        name = str(getattr(value.op, "name", value.op))
        if name == _RESHAPE:
            (source,) = self._given(value.args[0])
            return [self._new(variable.ty, None, self.plan.tensors[source].buffer)]
        if name != "relax.call_tir" or len(value.args) != 2:
            raise NotImplementedError(f"format wasm: required calls of kernels and reshapes alone, got {name}")
        fields = getattr(variable.ty, "fields", None)
        outputs = [self._new(kind) for kind in ([variable.ty] if fields is None else fields)]
        self.plan.calls.append((str(value.args[0].name_hint), [*self._given(value.args[1]), *outputs]))
        return outputs


def _size(size: Any) -> int | None:
    """A size of a shape; None for the batch."""
    from tvm import tirx

    if isinstance(size, tirx.IntImm):
        return int(size.value)
    if isinstance(size, tirx.Var):
        return None
    raise NotImplementedError(f"format wasm: required sizes that are numbers or the batch, got {size}")


def _place_in_arena(plan: Plan) -> None:
    """An offset for each tensor that a kernel writes: the lowest that is free while it is needed."""
    last: dict[int, int] = {}
    for number, (_, tensors) in enumerate(plan.calls):
        last.update({plan.tensors[t].buffer: number for t in tensors})
    last.update({plan.tensors[t].buffer: len(plan.calls) for t in plan.outputs})
    live: list[Tensor] = []
    for number, (_, tensors) in enumerate(plan.calls):
        for tensor in (plan.tensors[t] for t in tensors):
            if tensor.offset is None and tensor.weight is None and plan.tensors[tensor.buffer] is tensor:
                if tensor is plan.tensors[0]:
                    continue
                tensor.offset = _free_offset(live, tensor.bytes)
                live.append(tensor)
                plan.arena = max(plan.arena, tensor.offset + tensor.bytes)
        live = [tensor for tensor in live if last[tensor.buffer] > number]


def _free_offset(live: Sequence[Tensor], size: int) -> int:
    offset = 0
    for tensor in sorted(live, key=lambda t: t.offset or 0):
        assert tensor.offset is not None
        if offset + size <= tensor.offset:
            break
        offset = max(offset, tensor.offset + tensor.bytes)
    return offset
