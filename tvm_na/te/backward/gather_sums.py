"""What a thread of a GPU adds up over the window of its query, in one pass: for a softmax and its gradient."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_na.te.common.math import LOG2_E, least, nonzero
from tvm_na.te.common.threads import Row, number, only_where, registers

# By how much a score may be above the one that weights are relative to: little, since the rounding of a weight's
# exponent grows with it, but enough that a window has few such scores.
_SLACK = 4


def power(score: Any, other: Any, dtype: str) -> Any:
    """exp(score - other); the difference first, since scores may be large."""
    return tirx.exp2((score - other) * tirx.const(LOG2_E, dtype))


class WindowSums:
    """What a group adds up over the window of its query, in registers: with weights w, relative to a score ``top``, and
    dP relative to ``near``, the dP of that key, the sums of w, w * dP, w * key and w * dP * key.

    So weights are as exact as differences of scores are, and where one weight is all but 1, dP is all but ``near``.
    """

    def __init__(self, row: Row, dtype: str) -> None:
        self._row, self._dtype = row, dtype
        self._weighted, self._plain = row.zeros("weighted", dtype), row.zeros("plain", dtype)
        # Scores of minus infinity alone are below the least finite number, so that weights are zero.
        self._top, self._near = self._register("top", least(dtype)), self._register("near", 0)
        self._total, self._delta = self._register("total", 0), self._register("delta", 0)
        self.top, self.near, self.total, self.delta = self._top[0], self._near[0], self._total[0], self._delta[0]

    def _register(self, name: str, value: float) -> Any:
        register = registers(name, (1,), self._dtype)
        T.buffer_store(register, tirx.const(value, self._dtype), [0])
        return register

    def add(self, score: Any, d_weight: Any, key: Any) -> None:
        """Add a key, of which all threads of the group have the score and dP."""
        with only_where(score - self.top > tirx.const(_SLACK, self._dtype)):
            self._rebase(score, d_weight)
        weight = number("weight", power(score, self.top, self._dtype), self._dtype)
        product = number("product", weight * (d_weight - self.near), self._dtype)
        T.buffer_store(self._total, self.total + weight, [0])
        T.buffer_store(self._delta, self.delta + product, [0])
        self._row.add(self._weighted, product, key, self._dtype)
        self._row.add(self._plain, weight, key, self._dtype)

    def _rebase(self, top: Any, near: Any) -> None:
        """Make all relative to another key's score and dP."""
        factor = number("rebase", power(self.top, top, self._dtype), self._dtype)
        change = number("change", self.near - near, self._dtype)

        def rebased(r: Any, v: Any) -> None:
            weighted, plain = self._weighted[r, v], self._plain[r, v]
            T.buffer_store(self._weighted, (weighted + change * plain) * factor, [r, v])
            T.buffer_store(self._plain, plain * factor, [r, v])

        self._row.each(rebased)
        T.buffer_store(self._delta, (self.delta + change * self.total) * factor, [0])
        T.buffer_store(self._total, self.total * factor, [0])
        T.buffer_store(self._top, top, [0])
        T.buffer_store(self._near, near, [0])

    def inverse(self) -> Any:
        """1 / total."""
        return tirx.const(1, self._dtype) / nonzero(self.total, self._dtype)

    def gradient(self, r: Any, v: Any, shift: Any) -> Any:
        """An element of the sum of w * (dP - shift) * key."""
        return self._weighted[r, v] - shift * self._plain[r, v]
