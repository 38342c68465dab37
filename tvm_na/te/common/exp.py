"""Powers of two as a polynomial, so that they vectorise; ``tirx.exp2`` calls libm one lane at a time.

Softmax is computed in powers of two: the factor log2(e) is free where scores are scaled, and the reduction
of the argument is then exact.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)

# Coefficients of 2^f on [-1/2, 1/2], highest first. float32: minimax of the relative error, 7.5e-8
# (Lawson's iteration); float64: Taylor's, truncated at 3e-18.
_COEFFICIENTS = {
    "float32": (1.32764718e-3, 9.67554133e-3, 5.55071327e-2, 2.40221197e-1, 6.93146967e-1, 1.00000007),
    "float64": tuple(LN_2**n / math.factorial(n) for n in range(13, -1, -1)),
}
# (integer type, mantissa bits, exponent offset, 1.5 * 2^mantissa: adding it rounds to an integer)
_FORMAT = {
    "float32": ("int32", 23, 127, 1.5 * 2.0**23),
    "float64": ("int64", 52, 1023, 1.5 * 2.0**52),
}


def exp2_nonpositive(x: Any, dtype: str) -> Any:
    """2^x for x <= 0 of dtype float32 or float64. NaN stays NaN; below the normal range the result is 0.

    Rounding by a large constant leaves n + offset in the low bits, which shifted left are 2^n; n is held at
    -offset, where those bits are zero.
    """
    integer, mantissa, offset, big = _FORMAT[dtype]

    def const(value: float) -> Any:
        return tirx.const(value, dtype)

    # Bound by Let: the terms occur many times, and an expression is a tree.
    clamped, shifted, f = (tirx.Var(name, dtype) for name in ("clamped", "shifted", "f"))
    p = const(_COEFFICIENTS[dtype][0])
    for coefficient in _COEFFICIENTS[dtype][1:]:
        p = p * f + const(coefficient)
    power = tirx.reinterpret(dtype, tirx.reinterpret(integer, shifted) << tirx.const(mantissa, integer))
    result = tirx.Let(f, clamped - (shifted - const(big + offset)), power * p)
    result = tirx.Let(shifted, clamped + const(big + offset), result)
    # Written so that a NaN, which compares false, goes through.
    return tirx.Let(clamped, tirx.Select(x < const(-offset), const(-offset), x), result)
