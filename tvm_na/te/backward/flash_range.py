"""Gradients of scores and weights in float16, which holds numbers from 6e-8 to 65504: what they are multiplied by.

A weight is at most 1, and takes a constant. A gradient of a score is as large as ``d_out`` and values are: a warp has a
factor for all that it adds up, which begins large. Where one of them would be too large, the factor, and with it what
was summed before, is made smaller, as it is with weights that are relative to a maximum. Factors are powers of two.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_na.te.attention import flash_device as device
from tvm_na.te.attention.flash_scores import f32
from tvm_na.te.common.threads import number, only_where, registers

#: What weights are multiplied by.
OF_WEIGHTS = {"float16": 2.0**12, "bfloat16": 1.0}
_FIRST, _MOST, _WANTED = 2.0**30, 2.0**15, 12
_LANES = (1, 2, 4, 8, 16)


class Range:
    """A warp's factor for gradients of scores; 1 for bfloat16, which needs none."""

    def __init__(self, dtype: str) -> None:
        self._register = registers("range", (1,), "float32") if dtype == "float16" else None
        if self._register is not None:
            T.buffer_store(self._register, f32(_FIRST), [0])

    @property
    def factor(self) -> Any:
        """What gradients of scores are multiplied by; None where by nothing."""
        return None if self._register is None else self._register[0]

    def times(self, value: Any) -> Any:
        """A value times the factor."""
        return value if self._register is None else value * self._register[0]

    def inverse(self, other: float = 1.0) -> Any:
        """1 / the factor / another one, in a register."""
        by = f32(1.0 / other) if self._register is None else f32(1.0 / other) / self._register[0]
        return number("range_inverse", by, "float32")

    def keep(self, d_scores: Any, others: list[Any]) -> None:
        """Make gradients, sums and whatever else has the factor smaller, if some lane of the warp has too large ones.

        Infinite ones stay, and those of others then too.
        """
        if self._register is None:
            return
        largest = registers("largest", (1,), "float32")
        T.buffer_store(largest, f32(0.0), [0])
        with T.unroll(0, int(d_scores.shape[0])) as at:
            T.buffer_store(largest, tirx.max(largest[0], tirx.abs(d_scores[at])), [0])
        finite = tirx.Select(largest[0] < f32(float("inf")), largest[0], f32(0.0))
        T.buffer_store(largest, finite, [0])
        with only_where(device.any_lane(largest[0] > f32(_MOST))):
            for step in _LANES:
                T.buffer_store(largest, tirx.max(largest[0], device.across(largest[0], step)), [0])
            change = number("range_change", tirx.exp2(f32(_WANTED) - tirx.ceil(tirx.log2(largest[0]))), "float32")
            for buffer in (self._register, d_scores, *others):
                with T.unroll(0, int(buffer.shape[0])) as at:
                    T.buffer_store(buffer, buffer[at] * change, [at])
