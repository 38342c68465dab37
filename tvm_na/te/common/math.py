"""Functions that TVM has not, or slowly: powers of two and GELU that vectorise, rounding to TF32.

``tirx.exp2`` and ``tirx.erf`` call libm one lane at a time. Softmax is computed in powers of two: the factor log2(e) is
free where scores are scaled, and the reduction of the argument is then exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)

# Coefficients of 2^f on [-1/2, 1/2], lowest first. float32: minimax of the relative error, 7.5e-8
# (Lawson's iteration); float64: Taylor's, truncated at 3e-18.
_EXP2 = {
    "float32": (1.00000007, 6.93146967e-1, 2.40221197e-1, 5.55071327e-2, 9.67554133e-3, 1.32764718e-3),
    "float64": tuple(LN_2**n / math.factorial(n) for n in range(14)),
}
# (integer type, mantissa bits, exponent offset, 1.5 * 2^mantissa: adding it rounds to an integer)
_FORMAT = {
    "float32": ("int32", 23, 127, 1.5 * 2.0**23),
    "float64": ("int64", 52, 1023, 1.5 * 2.0**52),
}


def _polynomial(coefficients: Sequence[float], x: Any, dtype: str) -> Any:
    """Coefficients, the lowest first."""
    result = tirx.const(coefficients[-1], dtype)
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + tirx.const(coefficient, dtype)
    return result


def least(dtype: str) -> float:
    """The least finite number."""
    return float(tirx.min_value(dtype).value)


def exp2_nonpositive(x: Any, dtype: str, then: Callable[[Any], Any] = lambda power: power) -> Any:
    """2^x for x <= 0 of dtype float32 or float64. NaN stays NaN; below the normal range the result is 0.

    What ``then`` makes of it, within: TVM fails where the value of a Let is one.

    Rounding by a large constant leaves n + offset in the low bits, which shifted left are 2^n; n is held at
    -offset, where those bits are zero.
    """
    integer, mantissa, offset, big = _FORMAT[dtype]

    def const(value: float) -> Any:
        return tirx.const(value, dtype)

    # Bound by Let: the terms occur many times, and an expression is a tree.
    clamped, shifted, f = (tirx.Var(name, dtype) for name in ("clamped", "shifted", "f"))
    p = _polynomial(_EXP2[dtype], f, dtype)
    power = tirx.reinterpret(dtype, tirx.reinterpret(integer, shifted) << tirx.const(mantissa, integer))
    result = tirx.Let(f, clamped - (shifted - const(big + offset)), then(power * p))
    result = tirx.Let(shifted, clamped + const(big + offset), result)
    # Written so that a NaN, which compares false, goes through.
    return tirx.Let(clamped, tirx.Select(x < const(-offset), const(-offset), x), result)


def nonzero(x: Any, dtype: str) -> Any:
    """``x``, but 1 for 0: the sum of a window's weights, which are all 0 where each score is minus infinity.

    So what is divided by it stays 0, and NaN stays NaN.
    """
    return tirx.Select(x == tirx.const(0, dtype), tirx.const(1, dtype), x)


# erf(x) = x * P(x^2) / Q(x^2) up to the bound, from where on it is 1 to rounding: coefficients of P and Q, lowest
# first. Weighted least squares of the absolute error, driven to its minimax (Lawson's iteration): 1.7e-8 for float32
# and 3e-17 for float64. None is negative, so that nothing cancels: rounded, they are within 4e-7 and 1e-15.
_BOUND = {"float32": 3.92, "float64": 5.92}
_NUMERATOR = {
    "float32": (1.12837903, 1.92697971e-1, 5.30507086e-2, 3.8651345e-3, 2.87345685e-4, 2.03447654e-6),
    "float64": (
        *(1.1283791670955123, 0.22035497917153218, 0.06615773867376958, 0.006900327764145414, 0.0008567947151553611),
        *(5.708238047688008e-05, 3.909515435274868e-06, 1.7008311648531134e-07, 6.783678743325044e-09),
        *(1.7283899761559684e-10, 3.34926273388168e-12, 2.2307215301275687e-14, 1.572171049387305e-17),
    ),
}
_DENOMINATOR = {
    "float32": (1.0, 5.04105839e-1, 1.15056322e-1, 1.51660608e-2, 1.18721912e-3, 3.80608738e-5),
    "float64": (
        *(1.0, 0.5286178490327175, 0.13483671901741925, 0.022008568170733975, 0.002568341668580982),
        *(0.0002265139864431263, 1.5535133535754072e-05, 8.37459974263151e-07, 3.528000832789551e-08),
        *(1.1292604864772384e-09, 2.561819483755031e-11, 3.32802160694011e-13, 8.860197224628275e-16),
    ),
}


def gelu(x: Any, dtype: str) -> Any:
    """``x / 2 * (1 + erf(x / sqrt(2)))`` of dtype float32 or float64, within 2e-7 or 1e-15 of |x|. NaN stays NaN.

    Far below zero it is 0, also where x times the rounding error of erf would be something.
    """

    def const(value: float) -> Any:
        return tirx.const(value, dtype)

    bound = const(_BOUND[dtype] * math.sqrt(2.0))
    # Bound by Let: the terms occur many times, and an expression is a tree.
    given, above, clamped, square = (tirx.Var(name, dtype) for name in ("given", "above", "clamped", "square"))
    # erf(x / sqrt(2)) / 2, by polynomials of x^2.
    numerator = [c * math.sqrt(0.125) / 2.0**n for n, c in enumerate(_NUMERATOR[dtype])]
    denominator = [c / 2.0**n for n, c in enumerate(_DENOMINATOR[dtype])]
    half_erf = clamped * _polynomial(numerator, square, dtype) / _polynomial(denominator, square, dtype)
    result = tirx.Select(given < -bound, const(0.0), given * (half_erf + const(0.5)))
    result = tirx.Let(square, clamped * clamped, result)
    # Written so that a NaN, which compares false, goes through.
    result = tirx.Let(clamped, tirx.Select(above > bound, bound, above), result)
    return tirx.Let(given, x, tirx.Let(above, tirx.Select(given < -bound, -bound, given), result))


_HALF_OF_LAST = 1 << 12  # half a unit of the last bit that is looked at


def rounded(x: Any) -> Any:
    """``x`` in float32, such that leaving out its last 13 bits rounds it to nearest, ties away from zero.

    Infinities and NaN stay. Source: CUTLASS, ``numeric_conversion.h``, ``round_half_ulp_truncate``.
    """
    exact = tirx.Var("exact", "float32")
    bits = tirx.reinterpret("int32", exact)
    finite = tirx.abs(exact) < tirx.const(float("inf"), "float32")
    # Without the condition the bits of a NaN could become those of a zero.
    return tirx.Let(exact, x, tirx.reinterpret("float32", tirx.Select(finite, bits + _HALF_OF_LAST, bits)))
