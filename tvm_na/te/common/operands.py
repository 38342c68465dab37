"""The kernel's arguments, shared by every formulation.

A kernel of the attention is called as ``kernel(query, key, value, scale[, rpb], out[, lse])`` on contiguous tensors:
query ``[batch, *spatial, heads, head_dim]``, key ``[batch, *spatial, heads_kv, head_dim]``, value
``[batch, *spatial, heads_kv, head_dim_v]``, scale ``[1]``, rpb ``[heads, 2*kernel_size-1, ...]``, out
``[batch, *spatial, heads, head_dim_v]``, lse ``[batch, *spatial, heads]``.

One of its gradients is called as ``kernel(query, key, value, scale[, rpb], lse, d_out[, d_lse], d_query, d_key,
d_value[, d_rpb])``; a gradient has the shape and dtype of what it is the gradient of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.te import ENTRY


@dataclass(frozen=True)
class Operands:
    """The placeholders of one kernel; the batch is symbolic, unless it is given."""

    batch: Any
    query: Any
    key: Any
    value: Any
    scale: Any
    rpb: Any | None

    @classmethod
    def of(cls, problem: NAProblem, size: int | None = None) -> Operands:
        """Placeholders for ``problem``, with a batch of ``size`` or a symbolic one."""
        batch = tirx.Var("batch", "int32") if size is None else size
        dtype = problem.tensor_dtype
        kv = (batch, *problem.spatial, problem.heads_kv)
        return cls(
            batch,
            te.placeholder((batch, *problem.spatial, problem.heads, problem.head_dim), dtype, name="query"),
            te.placeholder((*kv, problem.head_dim), dtype, name="key"),
            te.placeholder((*kv, problem.head_dim_v), dtype, name="value"),
            te.placeholder((1,), problem.accum_dtype, name="scale"),
            te.placeholder(problem.bias_shape, dtype, name="rpb") if problem.bias else None,
        )

    def prim_func(self, problem: NAProblem, outputs: list[Any], formulation: str) -> Any:
        """The PrimFunc of these placeholders and ``outputs``, marked with what it computes and how."""
        inputs = [self.query, self.key, self.value, self.scale] + ([] if self.rpb is None else [self.rpb])
        return _marked(inputs + outputs, problem, formulation)


@dataclass(frozen=True)
class BackwardOperands:
    """The placeholders of one kernel of gradients: the attention's, its lse, its results' gradients."""

    forward: Operands
    lse: Any
    d_out: Any
    d_lse: Any | None

    @classmethod
    def of(cls, problem: BackwardProblem, size: int | None = None) -> BackwardOperands:
        """Placeholders for ``problem``, with a batch of ``size`` or a symbolic one."""
        p = problem.forward
        forward = Operands.of(p, size)
        tokens = (forward.batch, *p.spatial, p.heads)
        return cls(
            forward,
            te.placeholder(tokens, p.accum_dtype, name="lse"),
            te.placeholder((*tokens, p.head_dim_v), p.dtype, name="d_out"),
            te.placeholder(tokens, p.accum_dtype, name="d_lse") if p.return_lse else None,
        )

    def prim_func(self, problem: BackwardProblem, outputs: list[Any], formulation: str) -> Any:
        """The PrimFunc of these placeholders and ``outputs``, marked with what it computes and how."""
        ops = self.forward
        inputs = [ops.query, ops.key, ops.value, ops.scale, ops.rpb, self.lse, self.d_out, self.d_lse]
        return _marked([t for t in inputs if t is not None] + outputs, problem, formulation)


def _marked(arguments: list[Any], problem: NAProblem | BackwardProblem, formulation: str) -> Any:
    return (
        te.create_prim_func(arguments)
        .with_attr("global_symbol", ENTRY)
        .with_attr("tvm_na.problem", problem.to_json())
        .with_attr("tvm_na.formulation", formulation)
    )
