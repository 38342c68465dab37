"""Numbers of half precision on CPUs: how they become float32 and come from it, in registers.

``x.astype("bfloat16")`` TVM lowers without a thought of NaN, whose last bits may carry it over to a zero, and where a
CPU has no instruction for float16 LLVM calls a function for every number. Here both are written out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx


def _bits(value: int) -> Any:
    return tirx.const(value, "uint32")


def _of_bits(bits: Any) -> Any:
    return tirx.reinterpret("float32", bits)


def from_bfloat16(x: Any) -> Any:
    """``x`` in float32: a bfloat16 is the upper half of one."""
    return of_bfloat16_bits(tirx.reinterpret("uint16", x))


def of_bfloat16_bits(bits: Any) -> Any:
    """The float32 that a bfloat16 is, given as uint16."""
    return _of_bits(bits.astype("uint32") << _bits(16))


def to_bfloat16(x: Any) -> Any:
    """``x``, float32, rounded to nearest, ties to even. NaN stays NaN and becomes quiet."""
    return tirx.reinterpret("bfloat16", bfloat16_bits(x))


def bfloat16_bits(x: Any) -> Any:
    """``x``, float32, as the bits of a bfloat16 in uint16: TVM makes float32 of bfloat16 between two stages."""
    exact = tirx.Var("exact", "float32")
    bits = tirx.reinterpret("uint32", exact)
    upper = bits >> _bits(16)
    rounded = (bits + (_bits(0x7FFF) + (upper & _bits(1)))) >> _bits(16)
    # All but NaN. Not "exact == exact", which TVM takes to be true.
    is_number = exact <= tirx.const(math.inf, "float32")
    found = tirx.Select(is_number, rounded, _bits(0x7FC0))
    return tirx.Let(exact, x, found.astype("uint16"))


def from_float16(x: Any) -> Any:
    """``x`` in float32, without an instruction for it: exact, also where it is denormal.

    With its bits moved to where float32 has them it is 2^-112 of what it should be, which a product mends. That takes
    denormals with it; infinities and NaN get the exponent that they lack.
    """
    half = tirx.Var("half", "uint32")
    magnitude = (half & _bits(0x7FFF)) << _bits(13)
    scaled = tirx.reinterpret("uint32", _of_bits(magnitude) * tirx.const(2.0**112, "float32"))
    endless = (half & _bits(0x7C00)) == _bits(0x7C00)
    quiet = tirx.Select((half & _bits(0x3FF)) == _bits(0), _bits(0), _bits(0x400000))
    found = tirx.Select(endless, magnitude | _bits(0x7F800000) | quiet, scaled) | ((half & _bits(0x8000)) << _bits(16))
    return tirx.Let(half, tirx.reinterpret("uint16", x).astype("uint32"), _of_bits(found))


def to_float16(x: Any) -> Any:
    """``x``, float32, rounded to nearest, ties to even, without an instruction for it. NaN stays NaN and becomes quiet.

    Below the normal numbers, adding 1/2 rounds: the sum's last bit is the least denormal.
    """
    exact, size = tirx.Var("exact", "float32"), tirx.Var("size", "uint32")
    bits = tirx.reinterpret("uint32", exact)
    sign = (bits >> _bits(16)) & _bits(0x8000)
    # 2^16 and more become infinite; from 65520 on the rounding below does that.
    endless = tirx.Select(size > _bits(0x7F800000), _bits(0x7E00) | ((size >> _bits(13)) & _bits(0x3FF)), _bits(0x7C00))
    denormal = tirx.reinterpret("uint32", _of_bits(size) + tirx.const(0.5, "float32")) - _bits(0x3F000000)
    odd = (size >> _bits(13)) & _bits(1)
    normal = (size - _bits(112 << 23) + _bits(0xFFF) + odd) >> _bits(13)
    found = tirx.Select(size >= _bits(143 << 23), endless, tirx.Select(size < _bits(113 << 23), denormal, normal))
    result = tirx.reinterpret("float16", (found | sign).astype("uint16"))
    return tirx.Let(exact, x, tirx.Let(size, bits & _bits(0x7FFFFFFF), result))


@dataclass(frozen=True)
class Conversions:
    """From the dtype of tensors to that of sums and back.

    Attributes:
        dtype: Of tensors.
        accum: Of sums.
        float16_instructions: Whether the CPU converts float16 by itself (F16C, NEON).
    """

    dtype: str
    accum: str
    float16_instructions: bool = True

    @property
    def needed(self) -> bool:
        """Whether the two differ."""
        return self.dtype != self.accum

    @property
    def is_one_instruction(self) -> bool:
        """Whether :meth:`widened` takes no more than one for a vector."""
        return not self.needed or (self.dtype == "float16" and self.float16_instructions)

    def widened(self, x: Any) -> Any:
        """An element of a tensor in the dtype of sums, which is exact."""
        if self.dtype == "bfloat16":
            return from_bfloat16(x)
        if self.dtype == "float16" and not self.float16_instructions:
            return from_float16(x)
        return x.astype(self.accum)

    def rounded(self, x: Any) -> Any:
        """A number in the dtype of tensors, rounded to nearest, ties to even."""
        if self.dtype == "bfloat16":
            return to_bfloat16(x)
        if self.dtype == "float16" and not self.float16_instructions:
            return to_float16(x)
        return x.astype(self.dtype)
