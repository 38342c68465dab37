"""Neighborhood attention forward in a form that a CPU with vector registers can tile.

Rows are all axes but the last (``rows.py``), columns are the last. A tile of neighboring queries in one row meets
one box of keys: the rows of its window, and as many consecutive columns of its dilation group (the *lanes*) as the
windows of all its queries span. Scores are a small matrix product of the tile's queries with the transposed keys of
the box, vectorised over the lanes; what a query's window leaves out of the box is masked. In the coordinates of a
dilation group (``window.py``) nothing depends on the dilation, so a dilated window is as contiguous as any other.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

from tvm import te, tirx

from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention.lanes_tile import Geometry, LanesTile, dots_blocks
from tvm_na.te.common.halves import Conversions
from tvm_na.te.common.layout import with_output_layout
from tvm_na.te.common.math import LN_2, LOG2_E, exp2_nonpositive, nonzero
from tvm_na.te.common.operands import Operands


def forward(
    problem: NAProblem, tile: LanesTile, batch_size: int | None = None, float16_instructions: bool = True
) -> Any:
    """The lanes formulation of ``problem`` as an unscheduled PrimFunc.

    Arguments as in :mod:`tvm_na.te.common.operands`; the batch is symbolic unless ``batch_size`` is given. Scores are
    kept in powers of two (``math.py``); halves are converted as ``halves.py`` says.
    """
    convert = Conversions(problem.dtype, problem.accum_dtype, float16_instructions)
    return Lanes(problem, tile, batch_size, convert).prim_func()


class Lanes:
    """The stages of the expression.

    A query's indices are (sample, head, row, dilation group, tile, number in the tile); in its box there are the rows
    of its window, and lanes. Subclasses pack and multiply in another way.

    Attributes:
        packed_dtype: The dtype of what is packed.
    """

    def __init__(self, problem: NAProblem, tile: LanesTile, batch_size: int | None, convert: Conversions) -> None:
        self.problem, self.tile, self.convert = problem, tile, convert
        self.ops, self.geo = Operands.of(problem, batch_size), Geometry(problem, tile)
        self.accum = self.packed_dtype = problem.accum_dtype
        self.rows, self.columns = self.geo.rows.keys, problem.kernel_size[-1]
        self.tiled = (
            *(self.ops.batch, problem.heads, self.geo.rows.count),
            *(self.geo.dilation, self.geo.tiles, tile.queries),
        )
        self.box = (*self.tiled, self.rows, self.geo.lanes)
        self.packed_groups = (self.ops.batch, problem.heads_kv, *self.geo.rows.groups, self.geo.dilation)

    def prim_func(self) -> Any:
        """The PrimFunc of all stages."""
        scores = self.scores(self.dots())
        # No less than the least finite number: what is masked has a weight of 0 also where no score is finite.
        maximum = self.fold("maximum", lambda *q: scores[q], te.max)
        weights = te.compute(self.box, lambda *q: self.weight(scores[q] - maximum[q[:-2]]), name="weights")
        total = self.fold("total", lambda *q: self.weight_at(weights, *q), te.sum)
        return self.outputs(self.attended(weights), maximum, total)

    def const(self, number: float) -> Any:
        """A number in the dtype of sums."""
        return tirx.const(number, self.accum)

    def kv_head(self, h: Any) -> Any:
        """The head of keys and values that a head of queries meets."""
        group = self.problem.heads // self.problem.heads_kv
        return h if group == 1 else h // group

    def packed(self, value_at: Any, y_group: Any, y: Any, x_group: Any, x: Any) -> Any:
        """``value_at(row, column)`` at a place of a dilation group; zero behind the end of the map."""
        on_map, row, column = self.geo.on_map(y_group, y, x_group, x)
        value = value_at(row, column)
        return tirx.if_then_else(tirx.all(*on_map), value, tirx.const(0, self.packed_dtype)) if on_map else value

    def channel(self, source: Any, token: tuple[Any, ...], d: Any) -> Any:
        """What a step of a score's product takes of a query or a key."""
        return self.convert.widened(source[(*token, d)])

    def multiplied(self, query: Any, key: Any) -> Any:
        """The product of what a step takes of each."""
        return query * key

    def dots(self) -> list[Any]:
        """Products of queries and keys over the box, each of some of the channels."""
        geo, steps = self.geo, -(-self.problem.head_dim // self.tile.at_once)
        packed_key = te.compute(
            (*self.packed_groups, steps, geo.packed_width),
            lambda b, h, yg, y, xg, d, x: self.packed(
                lambda i, j: self.channel(self.ops.key, (b, *i, j, h), d), yg, y, xg, x
            ),
            name="packed_key",
        )

        def query_at(b: Any, h: Any, i: Any, r: Any, t: Any, u: Any, d: Any) -> Any:
            column = r + geo.dilation * geo.query_column(r, t, u)
            return self.channel(self.ops.query, (b, *geo.rows.place(i), column, h), d)

        if self.convert.needed:  # each number meets many keys, and is converted once
            tile_query = te.compute((*self.tiled, steps), query_at, name="tile_query")
            query_at = lambda *index: tile_query[index]  # noqa: E731

        def sums(name: str, first: int, steps: int) -> Any:
            d = te.reduce_axis((0, steps), name="d")

            def product(b: Any, h: Any, i: Any, r: Any, t: Any, u: Any, a: Any, l: Any) -> Any:
                key_at = (b, self.kv_head(h), *geo.rows.key(i, a), r, first + d, geo.first_lane(r, t) + l)
                return self.multiplied(query_at(b, h, i, r, t, u, first + d), packed_key[key_at])

            return te.compute(self.box, lambda *q: te.sum(product(*q), axis=d), name=name)

        blocks = dots_blocks(self.problem, self.tile.at_once)
        return [sums(name, n * steps, steps) for n, (name, steps) in enumerate(blocks.items())]

    def padded_bias(self) -> Any:
        """The bias in powers of two, padded by what lanes outside a window reach for, so that whole vectors can be
        read."""
        margin, last = self.geo.lanes - self.columns, 2 * self.columns - 2

        def bias_at(h: Any, y: Any, e: Any) -> Any:
            return self.convert.widened(self.ops.rpb[(h, *self.geo.rows.bias_place(y), e)])

        return te.compute(
            (self.problem.heads, self.geo.rows.bias_rows, 2 * self.geo.lanes - 1),
            lambda h, y, e: tirx.if_then_else(
                tirx.all(e >= margin, e < margin + 2 * self.columns - 1),
                bias_at(h, y, tirx.min(tirx.max(e - margin, 0), last)) * self.const(LOG2_E),
                self.const(0),
            ),
            name="padded_bias",
        )

    def scores(self, dots: list[Any]) -> Any:
        """Scaled products with the bias, minus infinity outside of windows."""
        geo = self.geo
        padded_bias = None if self.ops.rpb is None else self.padded_bias()

        def score(b: Any, h: Any, i: Any, r: Any, t: Any, u: Any, a: Any, l: Any) -> Any:
            column = geo.first_lane(r, t) + l
            result = functools.reduce(operator.add, [part[b, h, i, r, t, u, a, l] for part in dots])
            result = result * (self.ops.scale[0] * self.const(LOG2_E))
            if padded_bias is not None:
                row = geo.rows.bias_row(i, a)
                result = result + padded_bias[h, row, column - geo.query_column(r, t, u) + geo.lanes - 1]
            return tirx.Select(geo.exists(i, r, t, u, a, column), result, self.const(-math.inf))

        return te.compute(self.box, score, name="scores")

    def fold(self, name: str, at: Any, combine: Any) -> Any:
        """Reduce a box to one number per query: over rows and vectors first, then over one vector's lanes."""
        vector = self.tile.vector
        a, v = te.reduce_axis((0, self.rows), name="a"), te.reduce_axis((0, self.geo.lanes // vector), name="v")
        partial = te.compute(
            (*self.tiled, vector),
            lambda *q: combine(at(*q[:-1], a, v * vector + q[-1]), axis=[a, v]),
            name=f"{name}_lanes",
        )
        l = te.reduce_axis((0, vector), name="l")
        return te.compute(self.tiled, lambda *q: combine(partial[(*q, l)], axis=l), name=name)

    def weight(self, exponent: Any) -> Any:
        """The weight of a key, as it is kept."""
        return exp2_nonpositive(exponent, self.accum)

    def weight_at(self, weights: Any, *index: Any) -> Any:
        """A weight that was kept, in the dtype of sums."""
        return weights[index]

    def first_key(self, r: Any, t: Any, u: Any) -> Any:
        """The group's column of the first key whose value a query is multiplied with."""
        return self.geo.columns(r, t, u)[0] if self.tile.exact_values else self.geo.first_lane(r, t)

    def attended(self, weights: Any) -> Any:
        """Sums of values by weights."""
        p, tile, geo = self.problem, self.tile, self.geo
        if tile.pack_values:
            packed_value = te.compute(
                (*self.packed_groups, geo.packed_width, p.head_dim_v),
                lambda b, h, yg, y, xg, x, c: self.packed(
                    lambda i, j: self.convert.widened(self.ops.value[(b, *i, j, h, c)]), yg, y, xg, x
                ),
                name="packed_value",
            )

        def value_at(b: Any, row: tuple[Any, Any], group: Any, column: Any, h: Any, c: Any) -> Any:
            if tile.pack_values:
                return packed_value[b, h, row[0], row[1], group, column, c]
            x = group + geo.dilation * column
            if not tile.exact_values:
                x = tirx.min(x, geo.width - 1)
            return self.convert.widened(self.ops.value[(b, *geo.rows.place(geo.rows.packed_row(*row)), x, h, c)])

        a = te.reduce_axis((0, self.rows), name="a")
        l = te.reduce_axis((0, self.columns if tile.exact_values else geo.lanes), name="l")

        def attend(b: Any, h: Any, i: Any, r: Any, t: Any, u: Any, x: Any) -> Any:
            first = self.first_key(r, t, u)
            weight = weights[b, h, i, r, t, u, a, first - geo.first_lane(r, t) + l]
            found = value_at(b, geo.rows.key(i, a), r, first + l, self.kv_head(h), x)
            if tile.exact_values and any(p.is_causal):  # zero times inf is not zero
                found = tirx.Select(geo.exists(i, r, t, u, a, first + l), found, self.const(0))
            return te.sum(weight * found, axis=[a, l])

        return te.compute((*self.tiled, p.head_dim_v), attend, name="attended")

    def outputs(self, attended: Any, maximum: Any, total: Any) -> Any:
        """The PrimFunc of normalised sums, in the order of columns, and the log-sum-exp."""
        p, geo, accum, queries = self.problem, self.geo, self.accum, self.tile.queries
        inverse = te.compute(self.tiled, lambda *q: self.const(1) / nonzero(total[q], accum), name="inverse")
        normalised = te.compute(
            (*self.tiled, p.head_dim_v), lambda *q: attended[q] * inverse[q[:-1]], name="normalised"
        )

        def place(i: Any, j: Any) -> tuple[Any, ...]:
            """The tile's coordinates of the query at row i, column j."""
            r, c = (0, j) if geo.dilation == 1 else (j % geo.dilation, j // geo.dilation)
            return i, r, c // queries, c % queries

        tokens = (self.ops.batch, geo.rows.count, geo.width, p.heads)
        out = te.compute(
            (*tokens, p.head_dim_v),
            lambda b, i, j, h, x: self.convert.rounded(normalised[(b, h, *place(i, j), x)]),
            name="out",
        )
        outputs = [out]
        if p.return_lse:
            tiled_lse = te.compute(
                self.tiled, lambda *q: (maximum[q] + tirx.log2(total[q])) * self.const(LN_2), name="tiled_lse"
            )
            outputs.append(te.compute(tokens, lambda b, i, j, h: tiled_lse[(b, h, *place(i, j))], name="lse"))
        func = self.ops.prim_func(p, outputs, self.tile.to_json())
        if p.rank != 2:  # the loops stay those over rows
            for name in ("out", "lse")[: len(outputs)]:
                func = with_output_layout(func, lambda b, i, *rest: (b, *geo.rows.place(i), *rest), name)
        return func
