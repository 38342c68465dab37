"""The kernel's arguments, shared by every formulation.

A kernel of the attention is called as ``kernel(query, key, value, scale[, rpb], out[, lse])`` on contiguous tensors:
query ``[batch, *spatial, heads, head_dim]``, key ``[batch, *spatial, heads_kv, head_dim]``, value
``[batch, *spatial, heads_kv, head_dim_v]``, scale ``[1]``, rpb ``[heads, 2*kernel_size-1, ...]``, out
``[batch, *spatial, heads, head_dim_v]``, lse ``[batch, *spatial, heads]``.

One of its gradients is called as ``kernel(query, key, value, scale[, rpb], lse, d_out[, d_lse], d_query, d_key,
d_value[, d_rpb])``; a gradient has the shape and dtype of what it is the gradient of. ``lse`` is read by none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.base import Problem
from tvm_na.te.common.blocks import argument
from tvm_na.te.common.formulation import batch_axis, of_expressions

#: Makes an argument of this name, shape and dtype.
Make = Callable[[str, Sequence[Any], str], Any]


def placeholder(name: str, shape: Sequence[Any], dtype: str) -> Any:
    """An argument of tensor expressions."""
    return te.placeholder(tuple(shape), dtype, name=name)


@dataclass(frozen=True)
class Operands:
    """The arguments of one kernel before its outputs, None for those that it has not.

    Attributes:
        batch: Symbolic, unless it is given.
        inputs: All that there are, in their order.
    """

    batch: Any
    inputs: list[Any]
    query: Any = None
    key: Any = None
    value: Any = None
    attn: Any = None
    scale: Any = None
    rpb: Any = None
    lse: Any = None
    d_out: Any = None
    d_lse: Any = None

    @classmethod
    def of(cls, problem: Problem, size: int | None = None, make: Make = placeholder) -> Operands:
        """Operands of ``problem``, with a batch of ``size`` or a symbolic one."""
        batch = batch_axis(size)
        read = (a for a in problem.arguments() if a.role != "output")
        made = {a.name: make(a.name, a.shape_for(batch), a.dtype) for a in read}
        return cls(batch, list(made.values()), **made)

    def prim_func(self, problem: Problem, outputs: list[Any], formulation: str) -> Any:
        """The PrimFunc of these placeholders and ``outputs``, marked with what it computes and how."""
        return of_expressions(self.inputs + outputs, problem, formulation)


class GradientBlocks:
    """The arguments of a function of gradients inside of TVM's IRBuilder; subclasses write its blocks."""

    def __init__(self, problem: BackwardProblem, size: int | None) -> None:
        p = self.problem = problem.forward
        self.accum, self.group = p.accum_dtype, p.heads // p.heads_kv
        operands = Operands.of(problem, size, argument)
        self.batch, self.inputs, self.scale = operands.batch, operands.inputs, operands.scale
        self.query, self.key, self.value = operands.query, operands.key, operands.value
        self.lse, self.d_out = operands.lse, operands.d_out
        # None where there is none.
        self.rpb, self.d_lse = operands.rpb, operands.d_lse
        gradients = [argument(a.name, a.shape_for(self.batch), a.dtype) for a in problem.outputs()]
        self.d_query, self.d_key, self.d_value = gradients[:3]
        self.d_rpb: Any = gradients[3] if p.bias else None

    def const(self, number: float) -> Any:
        """A number as an expression."""
        return tirx.const(number, self.accum)
