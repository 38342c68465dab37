"""Products of a graph as problems, and their weights as the kernels want them."""

from __future__ import annotations

import math

from torch import fx

from tvm_na.deploy.check import name_of
from tvm_na.deploy.rewrite import Node, constant_of, new_constant
from tvm_na.problems.dense import DenseProblem
from tvm_na.reference.dense_case import packed
from tvm_na.te.dense.product import DenseTile


def dense_problem(module: fx.GraphModule, node: Node) -> DenseProblem:
    """The problem of a :func:`.rewrite.dense` in a graph; linear layers have their tokens on one axis."""
    x, weight, bias, residual, activation, stride, padding, *_ = node.args
    value, matrix = x.meta["val"], constant_of(module, weight)
    window = tuple(matrix.shape[2:])
    return DenseProblem(
        tuple(value.shape[1:-1]) if window else (math.prod(value.shape[1:-1]),),
        matrix.shape[1],
        matrix.shape[0],
        window or (1,),
        stride or (1,),
        padding or (0,),
        bias is not None,
        activation,
        residual is not None,
        name_of(value.dtype),
        None if matrix.dtype == value.dtype else name_of(matrix.dtype),
    )


def scale_of(node: Node) -> Node | None:
    """The scale of the weights of a :func:`.rewrite.dense`, if it has one."""
    return node.args[7] if len(node.args) > 7 else None


class PackedWeights:
    """Weights of a graph's products, packed as tiles want them, each once."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._names: dict[tuple[str, DenseTile], str] = {}

    def of(self, node: Node, tile: DenseTile) -> Node:
        """The packed weight of a :func:`.rewrite.dense`, a new node before it."""
        weight = node.args[1]
        key = str(weight.target), tile
        with self._module.graph.inserting_before(node):
            if key in self._names:
                return self._module.graph.get_attr(self._names[key])
            problem, matrix = dense_problem(self._module, node), constant_of(self._module, weight)
            matrix = packed(matrix.movedim(1, -1).reshape(problem.weight_shape), problem, tile)
            new = new_constant(self._module, f"{weight.name}_packed_{len(self._names)}", matrix)
        self._names[key] = str(new.target)
        return new


def drop_unused(module: fx.GraphModule) -> None:
    """Remove attributes that no node gets, which would be weights of what is exported."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*module.named_parameters(), *module.named_buffers())]:
        if name not in used:
            owner, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(owner), leaf)
