"""Numbers of float32 for tensor cores in TF32, which look at 10 bits of the mantissa and not at the last 13."""

from __future__ import annotations

from typing import Any

_HALF_OF_LAST = 1 << 12  # half a unit of the last bit that is looked at


def rounded(x: Any) -> Any:
    """``x`` in float32, such that leaving out its last 13 bits rounds it to nearest, ties away from zero.

    Infinities and NaN stay. Source: CUTLASS, ``numeric_conversion.h``, ``round_half_ulp_truncate``.
    """
    from tvm import tirx

    exact = tirx.Var("exact", "float32")
    bits = tirx.reinterpret("int32", exact)
    finite = tirx.abs(exact) < tirx.const(float("inf"), "float32")
    # Without the condition the bits of a NaN could become those of a zero.
    return tirx.Let(exact, x, tirx.reinterpret("float32", tirx.Select(finite, bits + _HALF_OF_LAST, bits)))
