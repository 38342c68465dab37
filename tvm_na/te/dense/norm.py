"""Layer norm over the last axis, in two passes over a row: its mean, then its variance around that.

``(x - mean) / sqrt(variance + eps) * weight + bias`` with the variance of all channels (Ba et al., arXiv 1607.06450).
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from tvm_na.problems.base import HALVES
from tvm_na.te import ENTRY
from tvm_na.te.common.halves import Conversions


def layer_norm(rows: int, channels: int, lanes: int, eps: float, dtype: str, float16_instructions: bool = True) -> Any:
    """The PrimFunc ``(x [batch, rows, channels], weight [channels], bias [channels], out like x)``, batch symbolic.

    Args:
        rows: Rows of a sample.
        channels: Of a row.
        lanes: Sums that a row is summed in side by side; divides ``channels``.
        eps: Added to the variance.
        dtype: Of everything; of halves sums are float32.
        float16_instructions: Whether the CPU converts float16 by itself.
    """
    batch = tirx.Var("batch", "int32")
    x = te.placeholder((batch, rows, channels), dtype, name="x")
    weight = te.placeholder((channels,), dtype, name="weight")
    bias = te.placeholder((channels,), dtype, name="bias")
    convert = Conversions(dtype, "float32" if dtype in HALVES else dtype, float16_instructions)
    accum, widened = convert.accum, convert.widened
    share = tirx.const(1.0 / channels, accum)

    def summed(name: str, term: Any) -> Any:
        vector = te.reduce_axis((0, channels // lanes), name="vector")
        sums = te.compute(
            (batch, rows, lanes),
            lambda b, r, lane: te.sum(term(b, r, vector * lanes + lane), axis=vector),
            name=f"{name}_lanes",
        )
        lane = te.reduce_axis((0, lanes), name="lane")
        return te.compute((batch, rows), lambda b, r: te.sum(sums[b, r, lane], axis=lane), name=name)

    total = summed("total", lambda b, r, c: widened(x[b, r, c]))

    def centred(b: Any, r: Any, c: Any) -> Any:
        return widened(x[b, r, c]) - total[b, r] * share

    squares = summed("squares", lambda b, r, c: centred(b, r, c) * centred(b, r, c))
    factor = te.compute(
        (batch, rows),
        lambda b, r: tirx.const(1.0, accum) / tirx.sqrt(squares[b, r] * share + tirx.const(eps, accum)),
        name="factor",
    )
    out = te.compute(
        (batch, rows, channels),
        lambda b, r, c: convert.rounded(centred(b, r, c) * factor[b, r] * widened(weight[c]) + widened(bias[c])),
        name="out",
    )
    return te.create_prim_func([x, weight, bias, out]).with_attr("global_symbol", ENTRY)
