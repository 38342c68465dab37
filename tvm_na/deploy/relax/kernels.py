"""The layers of a graph as calls of scheduled kernels by their number, with the weights as the kernels want them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tvm_na.deploy.check import name_of
from tvm_na.deploy.export import ATTENTION, attention_of, known_operators
from tvm_na.deploy.kernels import require_a_sample, with_schedule
from tvm_na.deploy.products import PackedWeights, dense_problem, drop_unused, scale_of
from tvm_na.deploy.rewrite import Node, dense, new_constant, norm
from tvm_na.jit import build
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.dense import DenseProblem
from tvm_na.records.select import Selection
from tvm_na.targets.target import NATarget
from tvm_na.te import ENTRY
from tvm_na.te.dense.product import tile_of

_NAMESPACE = "tvm_na_kernels"


@dataclass
class Kernel:
    """A kernel of a library.

    Attributes:
        name: Its function's name, unique in the library.
        func: The scheduled PrimFunc, with a symbolic batch.
        problem, selection: The problem and its schedule; None for a norm, which could not be tuned.
        calls: How often the model calls it.
    """

    name: str
    text: str
    func: Any
    problem: NAProblem | DenseProblem | None = None
    selection: Selection | None = None
    calls: int = 0

    @property
    def largest_batch(self) -> int:
        """Samples of one call at most: kernels count elements in 32 bits, those of what they allocate too."""
        buffers = [*self.func.params, *self.func.body.block.alloc_buffers]
        known = [[n.value for n in b.shape if hasattr(n, "value")] for b in buffers]
        of_batch = [math.prod(sizes) for sizes, b in zip(known, buffers, strict=True) if len(sizes) < len(b.shape)]
        return (2**31 - 1) // max(of_batch)

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Empty outputs for its first input."""
        problem = self.problem
        if problem is None:
            return [torch.empty_like(x)]
        if isinstance(problem, DenseProblem):
            is_linear = problem.kernel_size == (1,)
            spatial = x.shape[1:-1] if is_linear else problem.out_spatial
            return [x.new_empty((x.shape[0], *spatial, problem.out_channels))]
        out = x.new_empty((*x.shape[:-1], problem.head_dim_v))
        lse = x.new_empty(x.shape[:-1], dtype=getattr(torch, problem.accum_dtype))
        return [out, lse] if problem.return_lse else [out]


class Kernels:
    """The distinct kernels of a graph, and the operator by which its calls are known to PyTorch.

    Attributes:
        all: The kernels, in the order of their numbers.
    """

    def __init__(self, target: NATarget, records: str | None, report: Callable[[str], None]) -> None:
        self.all: list[Kernel] = []
        self._target, self._records, self._report = target, records, report
        self._numbers: dict[Hashable, int] = {}

    def known(self) -> AbstractContextManager[None]:
        """While it is used, PyTorch can export graphs with ``call(inputs, number) -> outputs``."""
        schema = "call(Tensor[] inputs, int kernel) -> Tensor[]"
        return known_operators(_NAMESPACE, {"call": self._fake}, [schema])

    def _fake(self, inputs: list[Tensor], kernel: int) -> list[Tensor]:
        return self.all[kernel].outputs(inputs[0])

    def call_in(self, module: fx.GraphModule) -> None:
        """Let a graph of :func:`tvm_na.deploy.rewrite.layered` call kernels for all that there are kernels for.

        Raises:
            NotImplementedError: a layer has no kernel on the target.
            ValueError: a sample of it is too large.
        """
        weights = PackedWeights(module)
        for node in list(module.graph.nodes):
            if node.target is dense:
                self._call_dense(module, node, weights)
            elif node.target is norm:
                self._call_norm(module, node)
            elif node.target in ATTENTION:
                self._call_attention(module, node)
        module.graph.eliminate_dead_code()
        drop_unused(module)
        module.recompile()

    def _call_dense(self, module: fx.GraphModule, node: Node, weights: PackedWeights) -> None:
        x, _, bias, residual, *_ = node.args
        problem = dense_problem(module, node)
        number = self._number(problem, lambda: self._scheduled(problem))
        packed = weights.of(node, tile_of(self.all[number].func))
        self._replace(module, node, [x, packed, scale_of(node), bias, residual], number)

    def _call_norm(self, module: fx.GraphModule, node: Node) -> None:
        x, weight, bias, eps = node.args
        value = x.meta["val"]
        rows, channels, dtype = math.prod(value.shape[1:-1]), value.shape[-1], name_of(value.dtype)

        def make() -> Kernel:
            from tvm_na.schedules.cpu import norm as cpu_norm
            from tvm_na.te.dense.norm import layer_norm

            lanes = cpu_norm.lanes_for(channels, dtype, self._target)
            func = layer_norm(rows, channels, lanes, eps, dtype, self._target.converts_float16)
            func = cpu_norm.schedule(func)[ENTRY]
            return Kernel(f"norm_{len(self.all)}", f"norm of {rows} x {channels} {dtype}", func)

        self._replace(module, node, [x, weight, bias], self._number(("norm", rows, channels, dtype, eps), make))

    def _call_attention(self, module: fx.GraphModule, node: Node) -> None:
        problem = attention_of(node)
        number = self._number(problem, lambda: self._scheduled(problem))
        query, key, value, rpb = node.args[:4]
        scale = torch.tensor([node.args[8]], dtype=getattr(torch, problem.accum_dtype))
        with module.graph.inserting_before(node):
            factor = new_constant(module, f"{node.name}_scale", scale)
        self._replace(module, node, [query, key, value, factor, rpb], number, single=not problem.return_lse)

    def _scheduled(self, problem: NAProblem | DenseProblem) -> Kernel:
        self._report(f"scheduling the kernel of {problem}")

        def schedule(selection: Selection) -> Kernel:
            module, space = build.scheduled_module(problem, self._target, selection)
            name = f"{space.name.replace('-', '_')}_{len(self.all)}"
            return Kernel(name, str(problem), module[ENTRY], problem, selection)

        return with_schedule(problem, self._target, self._records, schedule)

    def _number(self, key: Hashable, make: Callable[[], Kernel]) -> int:
        """The number of a kernel, which is made if there is none, for one more call."""
        if key not in self._numbers:
            kernel = make()
            require_a_sample(kernel.largest_batch, kernel.text)
            self._numbers[key] = len(self.all)
            self.all.append(kernel)
        self.all[self._numbers[key]].calls += 1
        return self._numbers[key]

    def _replace(
        self, module: fx.GraphModule, node: Node, inputs: list[Node | None], number: int, single: bool = True
    ) -> None:
        """Put a call in place of a node; unless ``single``, of a node that gives several outputs."""
        given = [node for node in inputs if node is not None]
        with module.graph.inserting_before(node):
            new = module.graph.call_function(getattr(torch.ops, _NAMESPACE).call.default, (given, number))
            if single:
                new = module.graph.call_function(operator.getitem, (new, 0))
        new.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)
