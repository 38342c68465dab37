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
    ops, geo = Operands.of(problem, batch_size), Geometry(problem, tile)
    convert = Conversions(problem.dtype, problem.accum_dtype, float16_instructions)
    accum, vector, lanes = problem.accum_dtype, tile.vector, geo.lanes
    batch, dilation = ops.batch, geo.dilation
    rows, columns = geo.rows.keys, problem.kernel_size[-1]
    kv_head = (
        (lambda h: h) if problem.heads == problem.heads_kv else (lambda h: h // (problem.heads // problem.heads_kv))
    )
    log2_e = tirx.const(LOG2_E, accum)

    def packed(source: Any, y_group: Any, y: Any, x_group: Any, x: Any, at: Any) -> Any:
        """``source`` at a place of a dilation group; zero behind the end of the map."""
        on_map, row, column = geo.on_map(y_group, y, x_group, x)
        value = convert.widened(source[at(row, column)])
        return tirx.if_then_else(tirx.all(*on_map), value, tirx.const(0, accum)) if on_map else value

    groups = (batch, problem.heads_kv, *geo.rows.groups, dilation)
    packed_key = te.compute(
        (*groups, problem.head_dim, geo.packed_width),
        lambda b, h, yg, y, xg, d, x: packed(ops.key, yg, y, xg, x, lambda i, j: (b, *i, j, h, d)),
        name="packed_key",
    )
    if tile.pack_values:
        packed_value = te.compute(
            (*groups, geo.packed_width, problem.head_dim_v),
            lambda b, h, yg, y, xg, x, c: packed(ops.value, yg, y, xg, x, lambda i, j: (b, *i, j, h, c)),
            name="packed_value",
        )

    def value_at(b: Any, row: tuple[Any, Any], group: Any, column: Any, h: Any, c: Any) -> Any:
        if tile.pack_values:
            return packed_value[b, h, row[0], row[1], group, column, c]
        x = group + dilation * column
        if not tile.exact_values:
            x = tirx.min(x, geo.width - 1)
        return convert.widened(ops.value[(b, *geo.rows.place(geo.rows.packed_row(*row)), x, h, c)])

    tiled = (batch, problem.heads, geo.rows.count, dilation, geo.tiles, tile.queries)
    box = (*tiled, rows, lanes)

    def query_at(b: Any, h: Any, i: Any, r: Any, t: Any, u: Any, d: Any) -> Any:
        column = r + dilation * geo.query_column(r, t, u)
        return convert.widened(ops.query[(b, *geo.rows.place(i), column, h, d)])

    if convert.needed:  # each number meets many keys, and is converted once
        tile_query = te.compute((*tiled, problem.head_dim), query_at, name="tile_query")
        query_at = lambda *index: tile_query[index]  # noqa: E731

    def products(name: str, first: int, channels: int) -> Any:
        d = te.reduce_axis((0, channels), name="d")

        def product(b: Any, h: Any, i: Any, r: Any, t: Any, u: Any, a: Any, l: Any) -> Any:
            query = query_at(b, h, i, r, t, u, first + d)
            return query * packed_key[(b, kv_head(h), *geo.rows.key(i, a), r, first + d, geo.first_lane(r, t) + l)]

        return te.compute(box, lambda *q: te.sum(product(*q), axis=d), name=name)

    dots = [products(name, n * size, size) for n, (name, size) in enumerate(dots_blocks(problem).items())]

    if ops.rpb is not None:
        # Padded by what lanes outside a window reach for, so that whole vectors can be read.
        margin = lanes - columns
        bias_at = lambda h, y, e: convert.widened(ops.rpb[(h, *geo.rows.bias_place(y), e)])  # noqa: E731
        padded_bias = te.compute(
            (problem.heads, geo.rows.bias_rows, 2 * lanes - 1),
            lambda h, y, e: tirx.if_then_else(
                tirx.all(e >= margin, e < margin + 2 * columns - 1),
                bias_at(h, y, tirx.min(tirx.max(e - margin, 0), 2 * columns - 2)) * log2_e,
                tirx.const(0, accum),
            ),
            name="padded_bias",
        )

    def score(b: Any, h: Any, i: Any, r: Any, t: Any, u: Any, a: Any, l: Any) -> Any:
        column = geo.first_lane(r, t) + l
        result = functools.reduce(operator.add, [part[b, h, i, r, t, u, a, l] for part in dots])
        result = result * (ops.scale[0] * log2_e)
        if ops.rpb is not None:
            row = geo.rows.bias_row(i, a)
            result = result + padded_bias[h, row, column - geo.query_column(r, t, u) + lanes - 1]
        return tirx.Select(geo.exists(i, r, t, u, a, column), result, tirx.const(-math.inf, accum))

    scores = te.compute(box, score, name="scores")

    def fold(name: str, source: Any, combine: Any) -> Any:
        """Reduce a box to one number per query: over rows and vectors first, then over one vector's lanes."""
        a, v = te.reduce_axis((0, rows), name="a"), te.reduce_axis((0, lanes // vector), name="v")
        partial = te.compute(
            (*tiled, vector),
            lambda *q: combine(source[(*q[:-1], a, v * vector + q[-1])], axis=[a, v]),
            name=f"{name}_lanes",
        )
        l = te.reduce_axis((0, vector), name="l")
        return te.compute(tiled, lambda *q: combine(partial[(*q, l)], axis=l), name=name)

    # No less than the least finite number, so that what is masked has a weight of 0 also where no score is finite.
    maximum = fold("maximum", scores, te.max)
    weights = te.compute(box, lambda *q: exp2_nonpositive(scores[q] - maximum[q[:-2]], accum), name="weights")
    total = fold("total", weights, te.sum)

    a = te.reduce_axis((0, rows), name="a")
    l = te.reduce_axis((0, columns if tile.exact_values else lanes), name="l")

    def attend(b: Any, h: Any, i: Any, r: Any, t: Any, u: Any, x: Any) -> Any:
        first = geo.columns(r, t, u)[0] if tile.exact_values else geo.first_lane(r, t)
        weight = weights[b, h, i, r, t, u, a, first - geo.first_lane(r, t) + l]
        found = value_at(b, geo.rows.key(i, a), r, first + l, kv_head(h), x)
        if tile.exact_values and any(problem.is_causal):  # zero times inf is not zero
            found = tirx.Select(geo.exists(i, r, t, u, a, first + l), found, tirx.const(0, accum))
        return te.sum(weight * found, axis=[a, l])

    attended = te.compute((*tiled, problem.head_dim_v), attend, name="attended")

    inverse = te.compute(tiled, lambda *q: tirx.const(1, accum) / nonzero(total[q], accum), name="inverse")
    normalised = te.compute((*tiled, problem.head_dim_v), lambda *q: attended[q] * inverse[q[:-1]], name="normalised")

    def place(i: Any, j: Any) -> tuple[Any, ...]:
        """The tile's coordinates of the query at row i, column j."""
        r, c = (0, j) if dilation == 1 else (j % dilation, j // dilation)
        return i, r, c // tile.queries, c % tile.queries

    tokens = (batch, geo.rows.count, geo.width, problem.heads)
    out = te.compute(
        (*tokens, problem.head_dim_v),
        lambda b, i, j, h, x: convert.rounded(normalised[(b, h, *place(i, j), x)]),
        name="out",
    )
    outputs = [out]
    if problem.return_lse:
        tiled_lse = te.compute(
            tiled, lambda *q: (maximum[q] + tirx.log2(total[q])) * tirx.const(LN_2, accum), name="tiled_lse"
        )
        outputs.append(te.compute(tokens, lambda b, i, j, h: tiled_lse[(b, h, *place(i, j))], name="lse"))
    func = ops.prim_func(problem, outputs, tile.to_json())
    if problem.rank != 2:  # the loops stay those over rows
        for name in ("out", "lse")[: len(outputs)]:
            func = with_output_layout(func, lambda b, i, *rest: (b, *geo.rows.place(i), *rest), name)
    return func
