"""Neighborhood attention forward in a form that threads of a GPU can share: any rank, every option.

Each query reads the keys and values of its own window. The window is one flat axis, so that it can be dealt out to
threads whatever the rank, and a dot product is a sum of ``parts``, so that the threads of one query read a key
together, neighbors next to each other, and each keeps its part of the query in registers.
"""

from __future__ import annotations

import math
from math import prod
from typing import Any

from tvm import te, tirx

from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention.gather_tile import GatherTile
from tvm_na.te.common.math import LN_2, LOG2_E, nonzero
from tvm_na.te.common.neighbors import Neighbors
from tvm_na.te.common.operands import Operands
from tvm_na.te.common.rows import unravelled


def forward(problem: NAProblem, tile: GatherTile, batch: int | None = None) -> Any:
    """The PrimFunc of ``problem``, with ``batch`` samples or any number.

    softmax(scale * query key^T + rpb) value over each query's window; the softmax is computed in powers of two.
    Arguments as in :mod:`tvm_na.te.common.operands`.

    Raises:
        ValueError: if ``tile.parts`` does not divide the head dimension.
    """
    if tile.parts < 1 or problem.head_dim % tile.parts:
        raise ValueError(f"parts: required a divisor of head_dim {problem.head_dim}, got {tile.parts}")
    stages = _Stages(problem, tile, Operands.of(problem, batch))
    if tile.lanes:
        maximum, total = stages.sums(stages.scores())
        weights = stages.weights(stages.score_of("_again"), maximum)
    else:
        scores = stages.scores()
        maximum = stages.over_window("maximum", te.max, scores)
        weights = stages.weights(lambda *t: scores[t], maximum)
        total = stages.over_window("total", te.sum, weights)
    attended = stages.attended(weights)
    tokens, dtype, accum = stages.tokens, problem.dtype, problem.accum_dtype
    out = te.compute(attended.shape, lambda *t: (attended[t] / nonzero(total[t[:-1]], accum)).astype(dtype), name="out")
    outputs = [out]
    if problem.return_lse:
        ln_2 = tirx.const(LN_2, accum)
        outputs.append(te.compute(tokens, lambda *t: (maximum[t] + tirx.log2(total[t])) * ln_2, name="lse"))
    return stages.ops.prim_func(problem, outputs, tile.to_json())


class _Stages:
    """The stages of the expression."""

    def __init__(self, problem: NAProblem, tile: GatherTile, ops: Any) -> None:

        self.problem, self.tile, self.ops, self.near = problem, tile, ops, Neighbors(problem)
        self.tokens = (ops.batch, *problem.spatial, problem.heads)
        self.keys = prod(problem.kernel_size)
        self.window = -(-self.keys // tile.lanes) * tile.lanes if tile.lanes else self.keys

    def offset(self, w: Any) -> tuple[Any, ...]:
        """The offset of the ``w``-th key along each axis; those that lanes have too many repeat the last."""
        return unravelled(w if self.window == self.keys else tirx.min(w, self.keys - 1), self.problem.kernel_size)

    def select(self, position: tuple[Any, ...], w: Any, value: Any, otherwise: Any) -> Any:
        """``value``, if there is a ``w``-th key.

        ``value`` must have no such choice inside: of two, TVM computes the inner one before it looks at the outer one,
        but simplifies it as if the outer one held.
        """
        there = [self.near.exists(position, self.offset(w))]
        there += [] if self.window == self.keys else [w < self.keys]
        conditions = [condition for condition in there if condition is not None]
        return tirx.Select(tirx.all(*conditions), value, otherwise) if conditions else value

    def place(self, t: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...], Any, Any]:
        """Sample, position, head and the rest of the indices ``t``."""
        rank = self.problem.rank
        return t[0], t[1 : rank + 1], t[rank + 1], t[rank + 2 :]

    def score_of(self, suffix: str) -> Any:
        """A function of (sample, *position, head, number in the window): its score in powers of two, key or not."""
        problem, near, ops, accum = self.problem, self.near, self.ops, self.problem.accum_dtype
        group, part = problem.heads // problem.heads_kv, problem.head_dim // self.tile.parts
        d = te.reduce_axis((0, part), name="d")
        p = te.reduce_axis((0, self.tile.parts), name="p")

        def partial_dot(*t: Any) -> Any:
            b, position, h, (w, q) = self.place(t)
            keys = near.key_position(position, self.offset(w))
            product = ops.query[(b, *position, h, q * part + d)].astype(accum)
            return te.sum(product * ops.key[(b, *keys, h // group, q * part + d)].astype(accum), axis=d)

        partial = te.compute((*self.tokens, self.window, self.tile.parts), partial_dot, name=f"partial{suffix}")
        shape = (*self.tokens, self.window)
        dots = te.compute(shape, lambda *t: te.sum(partial[(*t, p)], axis=p), name=f"dots{suffix}")
        log2_e = tirx.const(LOG2_E, accum)

        def score(*t: Any) -> Any:
            _, position, h, (w,) = self.place(t)
            value = dots[t] * (ops.scale[0] * log2_e)
            if ops.rpb is not None:
                value = value + ops.rpb[(h, *near.bias_index(position, self.offset(w)))].astype(accum) * log2_e
            return value

        return score

    def scores(self) -> Any:
        """Scores of every window; minus infinity where there is no key."""
        score, least = self.score_of(""), tirx.const(-math.inf, self.problem.accum_dtype)

        def masked(*t: Any) -> Any:
            _, position, _, (w,) = self.place(t)
            return self.select(position, w, score(*t), least)

        return te.compute((*self.tokens, self.window), masked, name="scores")

    def over_window(self, name: str, reducer: Any, of: Any) -> Any:
        """A reduction of every window."""
        a = te.reduce_axis((0, self.window), name="a")
        return te.compute(self.tokens, lambda *t: reducer(of[(*t, a)], axis=a), name=name)

    def sums(self, scores: Any) -> tuple[Any, Any]:
        """The maximum, and the sum of powers of the differences to it: of each lane in one pass, then of all.

        The maximum is no less than the least finite number: so scores of minus infinity add nothing, even if all are.
        Source: online normalizer, arXiv 1805.02867.
        """
        accum, lanes = self.problem.accum_dtype, self.tile.lanes

        def combine(x: Any, y: Any) -> tuple[Any, Any]:
            most = tirx.max(x[0], y[0])
            return most, x[1] * tirx.exp2(x[0] - most) + y[1] * tirx.exp2(y[0] - most)

        def nothing(*_: Any) -> tuple[Any, Any]:
            return tirx.min_value(accum), tirx.const(0, accum)

        online = te.comm_reducer(combine, nothing, name="online")
        a = te.reduce_axis((0, self.window // lanes), name="a")

        def of_lane(*t: Any) -> Any:
            return online((scores[(*t[:-1], a * lanes + t[-1])], tirx.const(1, accum)), axis=a)

        most, sums = te.compute((*self.tokens, lanes), of_lane, name="lane_sums")
        m, n = te.reduce_axis((0, lanes), name="m"), te.reduce_axis((0, lanes), name="n")
        maximum = te.compute(self.tokens, lambda *t: te.max(most[(*t, m)], axis=m), name="maximum")
        total = te.compute(
            self.tokens,
            lambda *t: te.sum(sums[(*t, n)] * tirx.exp2(most[(*t, n)] - maximum[t]), axis=n),
            name="total",
        )
        return maximum, total

    def weights(self, score: Any, maximum: Any) -> Any:
        """Powers of the differences of scores to their maximum."""
        zero = tirx.const(0, self.problem.accum_dtype)

        def weight(*t: Any) -> Any:
            _, position, _, (w,) = self.place(t)
            value = tirx.exp2(score(*t) - maximum[t[:-1]])
            return self.select(position, w, value, zero)

        return te.compute((*self.tokens, self.window), weight, name="weights")

    def attended(self, weights: Any) -> Any:
        """Sums of values by weights."""
        problem, near, accum = self.problem, self.near, self.problem.accum_dtype
        group, e = problem.heads // problem.heads_kv, te.reduce_axis((0, self.window), name="e")

        def attend(*t: Any) -> Any:
            b, position, h, (x,) = self.place(t)
            value = self.ops.value[(b, *near.key_position(position, self.offset(e)), h // group, x)].astype(accum)
            # A masked value may be inf, and zero times that is not zero.
            value = self.select(position, e, value, tirx.const(0, accum))
            return te.sum(weights[(b, *position, h, e)] * value, axis=e)

        return te.compute((*self.tokens, problem.head_dim_v), attend, name="attended")
