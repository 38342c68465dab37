"""The lanes formulation (``lanes.py``) with products of pairs of bfloat16 (``common/dots.py``).

Keys are packed as pairs of channels, so that a step of a score's product is two channels. Values are packed as pairs of
neighboring keys, one for each key with the one behind it, so that a window may begin anywhere; a step of their sums is
two keys. Weights are rounded to bfloat16, and so is their sum one of rounded ones. Scores and sums are float32.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention.lanes import Lanes
from tvm_na.te.attention.lanes_tile import DotsTile
from tvm_na.te.common.dots import accumulating, dot, pair
from tvm_na.te.common.halves import Conversions, bfloat16_bits, of_bfloat16_bits
from tvm_na.te.common.math import exp2_nonpositive
from tvm_na.te.common.window import maximum, minimum


def forward(problem: NAProblem, tile: DotsTile, batch_size: int | None = None) -> Any:
    """This formulation of ``problem`` as an unscheduled PrimFunc; arguments are those of ``lanes.forward``.

    Raises:
        ValueError: for a problem of other tensors than bfloat16.
    """
    if problem.dtype != "bfloat16":
        raise ValueError(f"problem: required one in bfloat16, got {problem}")
    stages = Pairs(problem, tile, batch_size, Conversions(problem.dtype, problem.accum_dtype))
    return accumulating(stages.prim_func())


def _const(value: int, dtype: str = "uint32") -> Any:
    return tirx.const(value, dtype)


def _bits(x: Any) -> Any:
    return tirx.reinterpret("uint16", x)


class Pairs(Lanes):
    """The stages, with pairs where ``Lanes`` has numbers."""

    def __init__(self, problem: NAProblem, tile: DotsTile, batch_size: int | None, convert: Conversions) -> None:
        super().__init__(problem, tile, batch_size, convert)
        self.packed_dtype = "uint32"

    def channel(self, source: Any, token: tuple[Any, ...], d: Any) -> Any:
        """A pair of channels; the last of an odd number has a zero."""
        lower, upper = (_bits(source[(*token, 2 * d + n)]) for n in range(2))
        if self.problem.head_dim % 2:
            upper = tirx.if_then_else(2 * d + 1 < self.problem.head_dim, upper, _const(0, "uint16"))
        return pair(lower, upper)

    def multiplied(self, query: Any, key: Any) -> Any:
        return dot(query, key)

    def weight(self, exponent: Any) -> Any:
        return exp2_nonpositive(exponent, self.accum, then=bfloat16_bits)

    def weight_at(self, weights: Any, *index: Any) -> Any:
        return of_bfloat16_bits(weights[index])

    def packed_value(self) -> Any:
        """Values of each key and the one behind it."""

        def at(b: Any, h: Any, yg: Any, y: Any, xg: Any, x: Any, c: Any) -> Any:
            def value(i: Any, j: Any) -> Any:
                return _bits(self.ops.value[(b, *i, j, h, c)]).astype("uint32")

            # Behind the last one there is none, and nothing that reads it.
            behind = minimum(x + 1, self.geo.packed_width - 1)
            return pair(*(self.packed(value, yg, y, xg, place) for place in (x, behind)))

        return te.compute((*self.packed_groups, self.geo.packed_width, self.problem.head_dim_v), at, "packed_value")

    def seen(self, values: Any, m: Any, exists: Any) -> Any:
        """The ``m``-th pair of values of a window without what the window does not hold: zero times inf is not zero.

        ``exists(n)`` says whether it holds the n-th key of the pair where a window is causal.
        """
        whole = 2 * m + 1 < self.columns
        if any(self.problem.is_causal):
            found = [exists(0), exists(1) if self.columns % 2 == 0 else tirx.all(whole, exists(1))]
            masks = (_const(0xFFFF), _const(0xFFFF0000))
            lower, upper = (tirx.Select(held, mask, _const(0)) for held, mask in zip(found, masks, strict=True))
            return values & (lower | upper)
        return values & tirx.Select(whole, _const(0xFFFFFFFF), _const(0xFFFF)) if self.columns % 2 else values

    def first_weight(self, r: Any, t: Any, u: Any) -> Any:
        """The lane of the first key whose value a query is multiplied with.

        It is within these bounds. Without them TVM orders the terms of an index such that LLVM does not see the two
        weights of a pair to be neighbors.
        """
        if not self.tile.exact_values:
            return 0
        lane = self.first_key(r, t, u) - self.geo.first_lane(r, t)
        return minimum(maximum(lane, 0), self.geo.lanes - self.columns)

    def attended(self, weights: Any) -> Any:
        exact, geo, packed_value = self.tile.exact_values, self.geo, self.packed_value()
        a = te.reduce_axis((0, self.rows), name="a")
        m = te.reduce_axis((0, -(-(self.columns if exact else geo.lanes) // 2)), name="l")

        def attend(b: Any, h: Any, i: Any, r: Any, t: Any, u: Any, x: Any) -> Any:
            key, first = self.first_key(r, t, u) + 2 * m, self.first_weight(r, t, u)
            lower, upper = (weights[b, h, i, r, t, u, a, first + 2 * m + n] for n in range(2))
            values = packed_value[(b, self.kv_head(h), *geo.rows.key(i, a), r, key, x)]
            if exact:
                values = self.seen(values, m, lambda n: geo.exists(i, r, t, u, a, key + n))
                if self.columns % 2:  # of the box there may be no lane behind the window's last
                    upper = tirx.if_then_else(2 * m + 1 < self.columns, upper, _const(0, "uint16"))
            return te.sum(dot(pair(lower, upper), values), axis=[a, m])

        return te.compute((*self.tiled, self.problem.head_dim_v), attend, name="attended")
