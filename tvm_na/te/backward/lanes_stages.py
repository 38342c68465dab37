"""The parts of ``lanes.py`` after packing: the stages of a tile, and the joining of the tasks' sums."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_na.te.attention.lanes_tile import dots_blocks
from tvm_na.te.backward.lanes_pack import OfTiles, Packed
from tvm_na.te.common.blocks import accumulate, halved, local, loops, reduction, stage, store, sums, whole
from tvm_na.te.common.math import LOG2_E, exp2_nonpositive, least, nonzero


class Gradients(Packed):
    """Makes the function, inside of TVM's IRBuilder: first its arguments, then its parts in their order."""

    # --- the tasks

    def tasks(self) -> None:
        """One for each sample, head of keys and chunk of rows: tile after tile, in one order."""
        p, geo, chunks = self.problem, self.geo, self.chunks
        of_task = (self.batch, p.heads_kv, chunks.count)
        box = (*of_task, chunks.reach, geo.dilation, geo.packed_width)
        self.sum_key = local("sum_key", (*box, p.head_dim), self.accum)
        self.sum_value = local("sum_value", (*box, p.head_dim_v), self.accum)
        if p.bias:
            shape = (*of_task, self.group, geo.rows.bias_rows, 2 * geo.lanes - 1)
            self.sum_bias = local("sum_bias", shape, self.accum)
        with loops(of_task) as variables, T.sblock("task"):
            self.task = [T.axis.spatial(n, v) for n, v in zip(of_task, variables, strict=True)]
            # A block of its own, since TVM runs no block in parallel in which two others write to one buffer.
            with T.sblock("chunk"):
                self.one_chunk()

    def one_chunk(self) -> None:
        """Zeros, then some tiles after the other, in one order."""
        p, geo, chunks = self.problem, self.geo, self.chunks
        for name in ("sum_key", "sum_value", "sum_bias") if p.bias else ("sum_key", "sum_value"):
            target = getattr(self, name)
            store(f"{name}_zero", target, target.shape[3:], lambda *_: self.const(0), lambda *at: (*self.task, *at))
        extents = (self.group, chunks.rows, geo.dilation, geo.tiles // self.tile.tiles)
        with loops(extents) as at, T.sblock("tiles"):
            g, i, self.r, self.first_tile = (T.axis.opaque(n, v) for n, v in zip(extents, at, strict=True))
            if chunks.rows * chunks.count > geo.rows.count:
                T.where(self.task[2] * chunks.rows + at[1] < geo.rows.count)
            self.g, self.h, self.i = g, self.task[1] * self.group + g, self.task[2] * chunks.rows + i
            self.some_tiles()

    def some_tiles(self) -> None:
        """Weights again, the gradient of the scores, and what follows from it."""
        p = self.problem
        self.box = (self.tile.tiles, self.tile.queries, self.geo.rows.keys, self.geo.lanes)
        query = self.rows_of("tile_query", self.query, p.head_dim)
        d_out = self.rows_of("tile_d_out", self.d_out, p.head_dim_v)
        dots = [
            self.products(name, query, self.packed_key, channels, n * channels)
            for n, (name, channels) in enumerate(dots_blocks(p).items())
        ]
        d_weights = self.products("d_weights", d_out, self.packed_value, p.head_dim_v)
        weights, maximum = self.softmax(dots)
        d_scores, mean = self.through_softmax(weights, d_weights)
        self.queries(d_scores)
        self.keys(
            self.lost(maximum, mean),
            ("value", self.sum_value, weights, d_out, p.head_dim_v),
            ("key", self.sum_key, d_scores, query, p.head_dim),
        )
        if p.bias:
            accumulate(
                "add_bias",
                self.sum_bias,
                self.box,
                lambda old, *at: old + d_scores[at],
                lambda *at: (*self.task, self.g, *self.at_bias(*at)),
                lambda *at: [d_scores[at]],
            )

    def softmax(self, dots: Sequence[Any]) -> tuple[Any, Any]:
        """The weights of the tiles' boxes, from the maximum and the sum of each query's own window; and the maximum.

        Those of the forward pass, in a log-sum-exp, are rounded as scores are, and weights would be.
        """
        accum = self.accum

        def score(*at: Any) -> Any:
            found = functools.reduce(operator.add, [part[at] for part in dots]) * self.scale[0]
            if self.problem.bias:
                found = found + self.padded_bias[(self.h, *self.at_bias(*at))]
            return tirx.Select(self.exists(*at), found, self.const(-math.inf))

        scores = stage("scores", self.box, accum, score)
        # No less than the least finite number, so that scores of minus infinity alone have weights of zero.
        maximum = self.folded("maximum", lambda *at: scores[at], tirx.max, least(accum))
        below = lambda *at: (scores[at] - maximum[at[:2]]) * self.const(LOG2_E)  # noqa: E731
        powers = stage("powers", self.box, accum, lambda *at: exp2_nonpositive(below(*at), accum))
        total = self.folded("total", lambda *at: powers[at])
        inverse = stage("inverse", self.box[:2], accum, lambda *at: self.const(1) / nonzero(total[at], accum))
        weight = lambda *at: self.where_seen(at, powers[at] * inverse[at[:2]])  # noqa: E731
        return stage("weights", self.box, accum, weight), maximum

    def through_softmax(self, weights: Any, d_weights: Any) -> tuple[Any, Any]:
        """The gradients of the scores of the tiles' boxes from those of their weights; and the mean of the latter."""
        mean = self.folded("mean", lambda *at: self.where_seen(at, weights[at] * d_weights[at]))

        def d_score(*at: Any) -> Any:
            n, u = at[:2]
            shift = mean[n, u] if self.d_lse is None else mean[n, u] - self.d_lse[self.at_query(n, u)]
            return self.where_seen(at, weights[at] * (d_weights[at] - shift))

        return stage("d_scores", self.box, self.accum, d_score), mean

    def lost(self, maximum: Any, mean: Any) -> Any:
        """``[1]``: how many of the tiles' queries may have a number in them, or in their ``d_out``, that is not finite.

        With such a ``d_out`` no gradient of a weight is finite, so their mean is not. With such a query no score is:
        either all are minus infinity, or no weight is finite.
        """

        def is_lost(_: Any, n: Any, u: Any) -> Any:
            scored = maximum[n, u] > self.const(least(self.accum))
            if not self.geo.even:
                scored = tirx.any(scored, tirx.Not(self.is_query(n, u)))
            fine = tirx.all(tirx.abs(mean[n, u]) < self.const(math.inf), scored)
            return tirx.Select(fine, tirx.const(0, "int32"), tirx.const(1, "int32"))

        return sums("lost", (1,), self.box[:2], "int32", is_lost)

    def products(self, name: str, source: OfTiles, packed: Any, channels: int, first: int = 0) -> Any:
        """The products of the tiles' rows of ``source`` with the columns of their boxes, over some channels."""

        def product(n: Any, u: Any, a: Any, l: Any, d: Any) -> Any:
            row = self.geo.rows.key_row(self.i, a)
            at_key = (*self.task[:2], row, self.r, first + d, self.column(n, l))
            return source.at(n, u, first + d) * packed[at_key]

        return sums(name, self.box, (channels,), self.accum, product)

    def folded(
        self, name: str, value: Callable[..., Any], combine: Callable[..., Any] = operator.add, first: float = 0
    ) -> Any:
        """``value(*index)`` of each query's box combined, over rows and vectors, then over lanes."""
        *of_query, rows, lanes = self.box
        vector, half = self.tile.vector, self.tile.vector // 2

        def picked(n: Any, u: Any, l: Any, a: Any, v: Any) -> Any:
            return value(n, u, a, v * vector + l)

        over = (rows, lanes // vector)
        found = reduction(f"{name}_lanes", (*of_query, vector), over, self.accum, picked, combine, first)
        # As a tree: one lane after the other, each would wait for the one before.
        halves = stage(
            f"{name}_half",
            (*of_query, half),
            self.accum,
            lambda n, u, l: combine(found[n, u, l], found[n, u, l + half]),
        )
        return stage(name, of_query, self.accum, lambda n, u: halved([halves[n, u, l] for l in range(half)], combine))

    def queries(self, d_scores: Any) -> None:
        """The gradients of the tiles' queries, each over the keys of its own window."""
        p, geo = self.problem, self.geo

        def product(n: Any, u: Any, x: Any, a: Any, l: Any) -> Any:
            start = geo.columns(self.r, self.t(n), u)[0]
            column, lane = start + l, start - self.column(n, 0) + l
            row = geo.rows.key_row(self.i, a)
            if self.tile.pack_keys:
                found = self.key_rows[(*self.task[:2], row, self.r, column, x)]
            else:
                place = (*geo.rows.place(row), self.r + geo.dilation * column)
                found = self.convert.widened(self.key[(self.task[0], *place, self.task[1], x)])
            if any(p.is_causal):  # zero times inf is not zero
                found = tirx.Select(geo.exists(self.i, self.r, self.t(n), u, a, column), found, self.const(0))
            return d_scores[n, u, a, lane] * found

        keys, extents = (geo.rows.keys, p.kernel_size[-1]), (self.tile.tiles, self.tile.queries, p.head_dim)
        found = sums("query_sums", extents, keys, self.accum, product)
        store(
            "d_query",
            self.d_query,
            extents,
            lambda n, u, x: self.convert.rounded(found[n, u, x] * self.scale[0]),
            lambda n, u, x: (*self.at_query(n, u), x),
            None if geo.even else lambda n, u, x: self.is_query(n, u),
        )

    def keys(self, lost: Any, *both: tuple[str, Any, Any, OfTiles, int]) -> None:
        """What the tiles add to the gradients of keys and values.

        Zero times inf is not zero: what is not finite must not meet the factors of 0 outside of a window. So it is left
        out, and comes by itself.

        Args:
            lost: Whether there may be such a number.
            both: Of values and keys: the name, the sums, the factors of boxes, rows of tiles and their channels.
        """
        for name, target, factors, source, channels in both:
            self.scatter(name, target, factors, source, channels)
        with T.sblock("add_not_finite"):
            T.reads(lost[0], *(t[whole(t)] for _, _, factors, source, _ in both for t in (factors, source.buffer)))
            T.writes(*(target[whole(target)] for _, target, *_ in both))
            with T.If(lost[0] > 0), T.Then():
                for _, target, factors, source, channels in both:
                    self.scatter_not_finite(target, factors, source, channels)

    def scatter(self, name: str, target: Any, factors: Any, source: OfTiles, channels: int) -> None:
        """Adds the products of the boxes' ``factors`` with the tiles' rows of ``source``, summed over their queries."""
        tiles, queries, rows, lanes = self.box

        def added(old: Any, n: Any, a: Any, l: Any, x: Any) -> Any:
            for u in range(queries):  # in this order each is one multiply-add
                value = source.at(n, u, x)
                finite = tirx.Select(tirx.abs(value) < self.const(math.inf), value, self.const(0))
                old = old + factors[n, u, a, l] * finite
            return old

        def read(n: Any, a: Any, l: Any, x: Any) -> Sequence[Any]:
            return [factors[n, 0:queries, a, l]]

        accumulate(f"add_{name}", target, (tiles, rows, lanes, channels), added, self.place, read)

    def scatter_not_finite(self, target: Any, factors: Any, source: OfTiles, channels: int) -> None:
        """What :meth:`scatter` leaves out, to the keys alone that a query sees: slow, and seldom needed."""
        with loops(self.box) as at, T.If(self.exists(*at)), T.Then(), T.serial(0, channels) as x:
            n, u, a, l = at
            value, place = source.at(n, u, x), self.place(n, a, l, x)
            # Not (value < inf) would become value >= inf, which no NaN is.
            left_out = tirx.Select(tirx.abs(value) < self.const(math.inf), self.const(0), factors[n, u, a, l] * value)
            T.buffer_store(target, target[tuple(place)] + left_out, place)

    # --- after the tasks

    def join(self) -> None:
        """The sums of all chunks, in the layout of the arguments."""
        p, geo = self.problem, self.geo
        self.join_rows("d_key", self.d_key, self.sum_key, p.head_dim, self.scale[0])
        self.join_rows("d_value", self.d_value, self.sum_value, p.head_dim_v, None)
        if self.d_rpb is not None:
            margin = geo.lanes - p.kernel_size[-1]

            def summed(h: Any, y: Any, e: Any, b: Any, c: Any) -> Any:
                return self.sum_bias[b, h // self.group, c, h % self.group, y, e + margin]

            shape = (p.heads, geo.rows.bias_rows, 2 * p.kernel_size[-1] - 1)
            found = sums("bias_sums", shape, (self.batch, self.chunks.count), self.accum, summed)
            place = lambda h, y, e: (h, *geo.rows.bias_place(y), e)  # noqa: E731
            store("d_rpb", self.d_rpb, shape, lambda h, y, e: self.convert.rounded(found[h, y, e]), place)

    def join_rows(self, name: str, target: Any, source: Any, channels: int, factor: Any) -> None:
        """Adds up what the chunks have for each row of keys."""
        p, geo, chunks = self.problem, self.geo, self.chunks
        extents = (self.batch, geo.rows.count, geo.width, p.heads_kv, channels)

        def of_chunk(c: int, b: Any, y: Any, x: Any, h: Any, d: Any) -> Any:
            first = chunks.first_key_row(c)
            place = tirx.max(tirx.min(y - first, chunks.reach - 1), 0)
            r, column = (0, x) if geo.dilation == 1 else (x % geo.dilation, x // geo.dilation)
            value = source[b, h, c, place if chunks.count > 1 else y, r, column, d]
            if chunks.count == 1:
                return value
            there = tirx.all(y >= first, y < first + chunks.reach)
            return tirx.if_then_else(there, value, self.const(0))

        def total(*index: Any) -> Any:
            found = of_chunk(0, *index)
            for c in range(1, chunks.count):
                found = found + of_chunk(c, *index)
            return self.convert.rounded(found if factor is None else found * factor)

        store(name, target, extents, total, lambda b, y, x, h, d: (b, *geo.rows.place(y), x, h, d))
