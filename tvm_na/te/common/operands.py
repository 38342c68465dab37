"""The kernel's arguments, shared by every formulation.

A kernel of the attention is called as ``kernel(query, key, value, scale[, rpb], out[, lse])`` on contiguous tensors:
query ``[batch, *spatial, heads, head_dim]``, key ``[batch, *spatial, heads_kv, head_dim]``, value
``[batch, *spatial, heads_kv, head_dim_v]``, scale ``[1]``, rpb ``[heads, 2*kernel_size-1, ...]``, out
``[batch, *spatial, heads, head_dim_v]``, lse ``[batch, *spatial, heads]``.

One of its gradients is called as ``kernel(query, key, value, scale[, rpb], lse, d_out[, d_lse], d_query, d_key,
d_value[, d_rpb])``; a gradient has the shape and dtype of what it is the gradient of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.te.common.blocks import argument
from tvm_na.te.common.formulation import batch_axis, of_expressions

#: Makes an argument of this name, shape and dtype.
Make = Callable[[str, Sequence[Any], str], Any]


def placeholder(name: str, shape: Sequence[Any], dtype: str) -> Any:
    """An argument of tensor expressions."""
    return te.placeholder(tuple(shape), dtype, name=name)


@dataclass(frozen=True)
class Operands:
    """The arguments of one kernel before its outputs; the batch is symbolic, unless it is given."""

    batch: Any
    query: Any
    key: Any
    value: Any
    scale: Any
    rpb: Any | None

    @classmethod
    def of(cls, problem: NAProblem, size: int | None = None, make: Make = placeholder) -> Operands:
        """Operands of ``problem``, with a batch of ``size`` or a symbolic one."""
        batch = batch_axis(size)
        dtype = problem.tensor_dtype
        kv = (batch, *problem.spatial, problem.heads_kv)
        return cls(
            batch,
            make("query", (batch, *problem.spatial, problem.heads, problem.head_dim), dtype),
            make("key", (*kv, problem.head_dim), dtype),
            make("value", (*kv, problem.head_dim_v), dtype),
            make("scale", (1,), problem.accum_dtype),
            make("rpb", problem.bias_shape, dtype) if problem.bias else None,
        )

    def prim_func(self, problem: NAProblem, outputs: list[Any], formulation: str) -> Any:
        """The PrimFunc of these placeholders and ``outputs``, marked with what it computes and how."""
        inputs = [self.query, self.key, self.value, self.scale] + ([] if self.rpb is None else [self.rpb])
        return of_expressions(inputs + outputs, problem, formulation)


@dataclass(frozen=True)
class BackwardOperands:
    """Those of one kernel of gradients: the attention's, its lse, its results' gradients."""

    forward: Operands
    lse: Any
    d_out: Any
    d_lse: Any | None

    @classmethod
    def of(cls, problem: BackwardProblem, size: int | None = None, make: Make = placeholder) -> BackwardOperands:
        """Operands of ``problem``, with a batch of ``size`` or a symbolic one."""
        p = problem.forward
        forward = Operands.of(p, size, make)
        tokens = (forward.batch, *p.spatial, p.heads)
        return cls(
            forward,
            make("lse", tokens, p.accum_dtype),
            make("d_out", (*tokens, p.head_dim_v), p.dtype),
            make("d_lse", tokens, p.accum_dtype) if p.return_lse else None,
        )

    @property
    def all(self) -> list[Any]:
        """Every one that there is, in their order."""
        ops = self.forward
        every = [ops.query, ops.key, ops.value, ops.scale, ops.rpb, self.lse, self.d_out, self.d_lse]
        return [operand for operand in every if operand is not None]

    def prim_func(self, problem: BackwardProblem, outputs: list[Any], formulation: str) -> Any:
        """The PrimFunc of these placeholders and ``outputs``, marked with what it computes and how."""
        return of_expressions(self.all + outputs, problem, formulation)


class GradientBlocks:
    """The arguments of a function of gradients inside of TVM's IRBuilder; subclasses write its blocks."""

    def __init__(self, problem: BackwardProblem, size: int | None) -> None:
        p = self.problem = problem.forward
        self.accum, self.group = p.accum_dtype, p.heads // p.heads_kv
        operands = BackwardOperands.of(problem, size, argument)
        forward, self.inputs = operands.forward, operands.all
        self.batch, self.scale = forward.batch, forward.scale
        self.query, self.key, self.value = forward.query, forward.key, forward.value
        self.lse, self.d_out = operands.lse, operands.d_out
        # None where there is none.
        self.rpb: Any = forward.rpb
        self.d_lse: Any = operands.d_lse
        self.d_query, self.d_key, self.d_value = (
            argument(f"d_{source.name}", source.shape, p.dtype) for source in (self.query, self.key, self.value)
        )
        self.d_rpb: Any = argument("d_rpb", p.bias_shape, p.dtype) if p.bias else None

    def const(self, number: float) -> Any:
        """A number as an expression."""
        return tirx.const(number, self.accum)
