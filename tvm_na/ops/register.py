"""How an operator becomes one of PyTorch's: schema, kernels underneath, fake results for compilers, derivatives, vmap.

Derivatives are written by hand: ``torch.library.register_autograd`` refuses torch.func, loses tangents in silence, and
cannot save what an operator does not return. TVM is not imported here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from tvm_na.jit.remembered import Remembered
from tvm_na.ops import vmap
from tvm_na.ops.dispatch_state import any_requires_grad, any_tangent
from tvm_na.ops.launch import MOST_LAUNCHERS, Launcher, empty_outputs, launcher_for
from tvm_na.problems.base import Problem

WINDOW = "int[] kernel_size, int[] stride, int[] dilation, bool[] is_causal"

#: Where all operators are defined.
library = torch.library.Library("tvm_na", "DEF")


class Call(NamedTuple):
    """The arguments of one call of an operator.

    Attributes:
        tensors: None for an optional one that is not there.
        window: kernel_size, stride, dilation and is_causal, one value per axis.
        scale: The factor of the scores; 1 for an operator without.
        option: The last number of an operator that has one, else 0.
    """

    tensors: tuple[Any, ...]
    window: tuple[Any, Any, Any, Any]
    scale: float = 1.0
    option: int = 0


@dataclass(frozen=True)
class Operator:
    """One row of the table of operators.

    Attributes:
        name: In ``torch.ops.tvm_na``.
        tensors: Those of the schema, which come first.
        problem: What a call poses, with every check of its tensors and numbers.
        numbers: Those that follow the window in the schema, such as ``float scale``.
        results: How many tensors it gives; one that its problem does not have has no elements.
        record: What a call gives whose derivatives are wanted; None to save what ``gradients`` needs.
        gradients: ``gradients(call, saved, needed, d_results)``: those of the tensors, None where one is not needed.
        saved: The results that ``gradients`` needs beside the tensors, by their places.
        sums: How many of the results, the last ones, add up over the batch.
    """

    name: str
    tensors: str
    problem: Callable[[Call], Problem]
    numbers: str = "float scale"
    results: int = 1
    record: Callable[..., Any] | None = None
    gradients: Callable[[Call, Sequence[Tensor], Sequence[bool], Sequence[Any]], Sequence[Tensor | None]] | None = None
    saved: tuple[int, ...] = ()
    sums: int = 0

    @functools.cached_property
    def count(self) -> int:
        """How many arguments are tensors or None."""
        return self.tensors.count(",") + 1

    @functools.cached_property
    def overload(self) -> Any:
        """What PyTorch calls."""
        return getattr(torch.ops.tvm_na, self.name).default

    def call(self, arguments: Sequence[Any]) -> Call:
        """The arguments in the order of the schema as a call."""
        n = self.count
        window = (arguments[n], arguments[n + 1], arguments[n + 2], arguments[n + 3])
        return Call(tuple(arguments[:n]), window, *arguments[n + 4 :])

    def given(self, outputs: list[Tensor], first: Tensor) -> Any:
        """What the operator gives where a kernel gave ``outputs``."""
        if self.results == 1:
            return outputs[0]
        # An optional result is not everywhere what a compiler expects.
        return (*outputs, *(first.new_empty(0) for _ in range(self.results - len(outputs))))


def signature(tensors: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """All of a call's tensors that its check depends on."""
    return tuple([None if t is None else (t.shape, t.dtype, t.device, t.layout) for t in tensors])


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a call must be recorded.

    Raises:
        NotImplementedError: its derivatives are of a kind that no kernel has.
    """
    if any_tangent(*tensors):
        raise NotImplementedError(
            "compiled kernels have no forward-mode derivatives: required tensors without tangents; "
            "backend='reference' has them"
        )
    return torch.is_grad_enabled() and any_requires_grad(*tensors)


def _below_autograd(operator: Operator, keys: Any, *arguments: Any) -> Any:
    """What the operator gives where derivatives are somebody else's: what its implementation for Autograd calls."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator.overload.redispatch(keys & torch._C._after_autograd_keyset, *arguments)


class _Recorded(torch.autograd.Function):
    """An operator, which saves its tensors and some results."""

    @staticmethod
    def forward(ctx: Any, keys: Any, operator: Operator, *arguments: Any) -> Any:
        # Where transforms of torch.func are nested, what is below is a level that records for itself.
        with torch.enable_grad(), _set_fwd_grad_enabled(True):
            results = _below_autograd(operator, keys, *arguments)
        ctx.save_for_backward(*arguments[: operator.count], *(results[i] for i in operator.saved))
        ctx.set_materialize_grads(False)
        ctx.operator, ctx.numbers = operator, arguments[operator.count :]
        return results

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Any, ...]:
        operator = ctx.operator
        if all(d_result is None for d_result in d_results):
            return (None,) * len(ctx.needs_input_grad)
        tensors, saved = ctx.saved_tensors[: operator.count], ctx.saved_tensors[operator.count :]
        needed = ctx.needs_input_grad[2 : 2 + operator.count]
        found = operator.gradients(operator.call((*tensors, *ctx.numbers)), saved, needed, d_results)
        return None, None, *found, *(None for _ in ctx.numbers)


_apply = super(torch.autograd.Function, _Recorded).apply

# What operators call, by everything that the check of a call depends on.
_launchers: Remembered[tuple[Any, ...], Launcher] = Remembered(MOST_LAUNCHERS)


def forget() -> None:
    """Check every kind of call again when it next comes."""
    _launchers.clear()


def register(operator: Operator) -> Any:
    """Make an operator PyTorch's; returns its overload."""
    results = "Tensor" if operator.results == 1 else f"({', '.join(['Tensor'] * operator.results)})"
    numbers = f"{WINDOW}, {operator.numbers}" if operator.numbers else WINDOW
    library.define(f"{operator.name}({operator.tensors}, {numbers}) -> {results}")
    count, has_scale = operator.count, "float scale" in operator.numbers

    def launcher_of_call(arguments: Sequence[Any]) -> Launcher:
        return launcher_for(operator.problem(operator.call(arguments)), arguments[0].device)

    def compute(*arguments: Any) -> Any:
        tensors, scale = arguments[:count], arguments[count + 4] if has_scale else 1.0
        at = (operator.name, signature(tensors), *map(tuple, arguments[count : count + 4]), *arguments[count + 5 :])
        launcher = _launchers.get(at)
        if launcher is None:
            launcher = _launchers.or_make(at, functools.partial(launcher_of_call, arguments))
        return operator.given(launcher(tensors, scale), tensors[0])

    def fake(*arguments: Any) -> Any:
        call = operator.call(arguments)
        return operator.given(empty_outputs(operator.problem(call), call.tensors[0]), call.tensors[0])

    def record(keys: Any, *arguments: Any) -> Any:
        if not needs_gradient(*arguments[:count]):
            return _below_autograd(operator, keys, *arguments)
        if operator.record is not None:
            return operator.record(*arguments)
        # It refuses transforms of torch.func. They need nothing of it here: the dispatcher has brought the call to the
        # level that is to be recorded, and what is below autograd is the next level.
        with enable_single_level_autograd_function():
            return _apply(keys, operator, *arguments)

    for device in ("CPU", "CUDA"):
        library.impl(operator.name, compute, device)
    torch.library.register_fake(f"tvm_na::{operator.name}", fake, lib=library)
    library.impl(operator.name, record, "Autograd", with_keyset=True)
    rule = vmap.rule(operator.overload, operator.tensors, operator.sums)
    torch.library.register_vmap(f"tvm_na::{operator.name}", rule, lib=library)
    return operator.overload
