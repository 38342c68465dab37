"""The error function and GELU as a rational function, so that they vectorise; ``tirx.erf`` calls libm lane by lane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx

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


def _polynomial(coefficients: Sequence[float], x: Any, dtype: str) -> Any:
    result = tirx.const(coefficients[-1], dtype)
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + tirx.const(coefficient, dtype)
    return result


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
