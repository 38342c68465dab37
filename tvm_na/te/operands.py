"""The kernel's arguments, shared by every formulation.

A kernel is called as ``kernel(query, key, value, scale[, rpb], out[, lse])`` on contiguous tensors:
query ``[batch, *spatial, heads, head_dim]``, key ``[batch, *spatial, heads_kv, head_dim]``, value
``[batch, *spatial, heads_kv, head_dim_v]``, scale ``[1]``, rpb ``[heads, 2*kernel_size-1, ...]``, out
``[batch, *spatial, heads, head_dim_v]``, lse ``[batch, *spatial, heads]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from tvm_na.problem import NAProblem
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
        dtype = problem.dtype
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
        func = te.create_prim_func(inputs + outputs)
        return (
            func.with_attr("global_symbol", ENTRY)
            .with_attr("tvm_na.problem", problem.to_json())
            .with_attr("tvm_na.formulation", formulation)
        )
