"""A graph that calls the kernels of an artifact by their numbers, with the weights as those want them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from tvm_na.deploy.aoti.operators import Kernel
from tvm_na.deploy.export import ATTENTION, attention_of
from tvm_na.deploy.products import PackedWeights, dense_problem, drop_unused, scale_of
from tvm_na.deploy.rewrite import Node, dense
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.base import HALVES
from tvm_na.problems.dense import DenseProblem


def layers_of(module: fx.GraphModule) -> dict[Node, NAProblem | DenseProblem]:
    """The problem of each attention and each product that may be ours, in a graph of
    :func:`tvm_na.deploy.rewrite.layered`."""
    found: dict[Node, NAProblem | DenseProblem] = {}
    for node in module.graph.nodes:
        if node.target in ATTENTION:
            found[node] = attention_of(node)
        elif node.target is dense and _may_be_ours(problem := dense_problem(module, node)):
            found[node] = problem
    return found


def _may_be_ours(problem: DenseProblem) -> bool:
    """Linear layers, and convolutions of halves, which the library has for few CPUs, or for none."""
    return problem.kernel_size == (1,) or problem.dtype in HALVES or problem.weight_dtype == "float16"


def call_kernels(
    module: fx.GraphModule,
    layers: Mapping[Node, NAProblem | DenseProblem],
    kernels: Sequence[Kernel],
    namespace: str,
) -> None:
    """Let a graph call kernels for those of its layers (:func:`layers_of`) whose problem has one.

    The operators are looked up in PyTorch's ``namespace``, where
    :func:`tvm_na.deploy.export.known_operators` must have put them.
    """
    space, weights = getattr(torch.ops, namespace), PackedWeights(module)
    by_problem = {kernel.problem: kernel for kernel in kernels}
    for node, problem in layers.items():
        kernel = by_problem.get(problem)
        if kernel is None:
            continue
        if isinstance(problem, NAProblem):
            node.target = (space.attend_lse if problem.return_lse else space.attend).default
            node.args = (*node.args[:4], node.args[8], kernel.number)
        else:
            assert kernel.tile is not None
            x, _, bias, residual, *_ = node.args
            node.args = (x, weights.of(node, kernel.tile), scale_of(node), bias, residual, kernel.number)
            node.target = space.dense.default
    module.graph.eliminate_dead_code()
    drop_unused(module)
    module.recompile()


def fakes_of(kernels: Sequence[Kernel]) -> dict[str, Callable[..., Any]]:
    """For :func:`tvm_na.deploy.export.known_operators`: the operators of an artifact, which its library defines."""
    attentions = [kernel.problem for kernel in kernels if isinstance(kernel.problem, NAProblem)]
    products = [kernel.problem for kernel in kernels if isinstance(kernel.problem, DenseProblem)]

    def attend(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, scale: float, kernel: int) -> Tensor:
        return query.new_empty((*query.shape[:-1], attentions[kernel].head_dim_v))

    def attend_lse(query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        lse = torch.empty(query.shape[:-1], dtype=getattr(torch, attentions[others[-1]].accum_dtype))
        return attend(query, *others), lse

    def product(x: Tensor, *others: Any) -> Tensor:
        problem = products[others[-1]]
        places = x.shape[1:-1] if problem.rank == 1 else problem.out_spatial
        return x.new_empty((x.shape[0], *places, problem.out_channels))

    return {"attend": attend, "attend_lse": attend_lse, "dense": product}
