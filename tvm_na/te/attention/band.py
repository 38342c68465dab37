"""Neighborhood attention forward for tensor cores: sub-tiles of 16 queries against a band of keys (rank 2).

A sub-tile of ``rows`` x ``columns`` = 16 queries meets all keys that any window of an inner one can hold: a band of
``rows + kernel_size - 1`` rows and, rounded up to 16, ``columns + kernel_size - 1`` columns. It begins where the first
query's window would begin if there were no border, so that every index is affine in the number of the sub-tile. What
falls off the map is wrapped by the length of the band: that lands on the rows next to the border, each once, in
another order; so the band still holds every window of the sub-tile. Keys outside of a window are masked.

With dilation each group of positions (see :mod:`tvm_na.te.common.window`) is a map of its own.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx

from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.te.attention.band_axis import DTYPES, SIDE, BandTile, axes, is_served
from tvm_na.te.attention.scatter import Scatter, scattered
from tvm_na.te.common.math import LN_2, LOG2_E, nonzero, rounded
from tvm_na.te.common.operands import Operands

#: What is added to the scores of masked keys. A maximum is no less than the least finite number, so their weights are 0
#: also where no score is finite.
_MASKED = -math.inf
#: Added to the exponents of weights in TF32, which tensor cores round towards zero: by 2^-11.5 of a weight on average.
_RAISED = 2.0**-11


def forward(problem: NAProblem, tile: BandTile, batch: int | None = None) -> Any:
    """The PrimFunc of ``problem``, with ``batch`` samples or any number.

    softmax(scale * query key^T + rpb) value over each query's window; the softmax is computed in powers of two, its
    weights are rounded to the problem's dtype, and so is their sum a sum of rounded ones. In TF32 values are rounded
    too, and scores are as exact as those of float32. Arguments as in
    :mod:`tvm_na.te.common.operands`. A window's output is NaN where a masked key or value of its band is.

    Raises:
        ValueError: for a problem that there is no such expression of, or a sub-tile of other than 16 queries.
    """
    if not is_served(problem):
        required = f"rank 2, {', '.join(DTYPES)}, stride 1, head_dim 16, 32, 64 or 128"
        raise ValueError(f"problem: required {required}, got {problem}")
    if tile.rows * tile.columns != SIDE or tile.passes not in (1, 2):
        raise ValueError(f"tile: required rows x columns = {SIDE} and 1 or 2 passes, got {tile}")
    stages = _Stages(problem, tile, Operands.of(problem, batch))
    if tile.passes == 1:
        scores = stages.scores("")
        maximum = stages.maximum(scores)
        weights = stages.weights(scores, maximum)
    else:
        maximum = stages.maximum(stages.scores("_first"))
        weights = stages.weights(stages.scores(""), maximum)
    total = stages.total(weights)
    outputs, places = [stages.out(stages.attended(weights), total)], [stages.to_map("out", (problem.head_dim_v,))]
    if problem.return_lse:
        outputs.append(stages.lse(maximum, total))
        places.append(stages.to_map("lse", ()))
    return scattered(stages.ops.prim_func(problem, outputs, tile.to_json()), places)


def _zero_where(condition: Any) -> Any:
    return tirx.Select(condition, tirx.const(0.0, "float32"), tirx.const(_MASKED, "float32"))


class _Stages:
    """The stages of the expression.

    A sub-tile's indices are (sample, head, residue and residue of its group, number along rows and along columns); a
    stage adds to these.
    """

    def __init__(self, problem: NAProblem, tile: BandTile, ops: Any) -> None:
        self.problem, self.tile, self.ops = problem, tile, ops
        self.row, self.column = axes(problem, tile)
        self.groups = (self.row.dilation, self.column.dilation)
        self.tiles = (ops.batch, problem.heads, *self.groups, self.row.tiles, self.column.tiles)
        self.band = (self.row.keys, self.column.keys)
        self.sub_tile = (tile.rows, tile.columns)
        self.table: Any = None if ops.rpb is None else self.bias_table()
        self.query_tile = self.tiled(ops.query, problem.head_dim)

    def queries(self, t: tuple[Any, ...], m: Any) -> tuple[Any, Any]:
        """The positions of the ``m``-th query of the sub-tile ``t`` in its group."""
        row = self.row.query(t[2], t[4], m // self.tile.columns)
        return row, self.column.query(t[3], t[5], m % self.tile.columns)

    def tiled(self, source: Any, channels: int) -> Any:
        """Queries, in sub-tiles; twice, since they lie in two memories."""

        def at(*t: Any) -> Any:
            row, column = self.queries(t, t[6])
            return source[t[0], self.row.place(t[2], row), self.column.place(t[3], column), t[1], t[7]]

        shared = te.compute((*self.tiles, SIDE, channels), at, name="queries")
        return te.compute(shared.shape, lambda *t: shared[t], name="query_tile")

    def banded(self, source: Any, name: str, channels: int) -> Any:
        """Keys or values: the bands of all sub-tiles, where neighbors share what they have in common."""

        def at(b: Any, h: Any, r: Any, s: Any, x: Any, y: Any, d: Any) -> Any:
            row, column = self.row.place(r, self.row.key(r, x)), self.column.place(s, self.column.key(s, y))
            found = source[b, row, column, h, d]
            return rounded(found) if name == "values" and self.problem.dtype == TF32 else found

        shape = (self.ops.batch, self.problem.heads_kv, *self.groups, self.row.all_keys, self.column.all_keys, channels)
        return te.compute(shape, at, name=name)

    def of_band(self, shared: Any, name: str) -> Any:
        """The band of each sub-tile."""
        group = self.problem.heads // self.problem.heads_kv

        def at(*t: Any) -> Any:
            head = t[1] if group == 1 else t[1] // group
            return shared[t[0], head, t[2], t[3], t[4] * self.tile.rows + t[6], t[5] * self.tile.columns + t[7], t[8]]

        return te.compute((*self.tiles, *self.band, shared.shape[-1]), at, name=name)

    def bias_table(self) -> Any:
        """The bias in powers of two, with a column more, for keys in masked columns: no bias acts on what is masked.

        With one pass there is a table for each row of sub-tiles: (head, residue, number along rows, row of queries,
        row of the band, column), in which rows are masked too. Where in it the bias of a key lies depends on the
        sub-tile by one addend only, so that there is nothing to compute for each key. With two passes, which are for
        windows whose tables would be too large, it is (head, row, column), with a row more for masked rows.
        """
        heads, height, width = self.problem.bias_shape
        log2_e, masked = tirx.const(LOG2_E, "float32"), tirx.const(_MASKED, "float32")

        def value(h: Any, u: Any, v: Any) -> Any:
            return self.ops.rpb[h, tirx.min(u, height - 1), tirx.min(v, width - 1)].astype("float32") * log2_e

        def seen(h: Any, r: Any, w: Any, m: Any, a: Any, v: Any) -> tuple[Any, Any]:
            row = self.row.query(r, w, m)
            key = self.row.key(r, w * self.tile.rows + a)
            return tirx.all(self.row.sees(r, row, key), v < width), self.row.bias_index(row, key)

        columns = self.column.bias_columns
        # A stage of its own for what is read, masked or not: in a choice there would be a branch, and nothing could be
        # read before the one before has come.
        if self.tile.passes == 2:
            found = te.compute((heads, height + 1, columns), value, name="found")

            def there(*t: Any) -> Any:
                return tirx.all(t[1] < height, t[2] < width)

            return te.compute(found.shape, lambda *t: tirx.Select(there(*t), found[t], masked), name="table")
        shape = (heads, self.row.dilation, self.row.tiles, self.tile.rows, self.row.keys, columns)
        found = te.compute(shape, lambda *t: value(t[0], seen(*t)[1], t[5]), name="found")
        return te.compute(shape, lambda *t: tirx.Select(seen(*t)[0], found[t], masked), name="table")

    def scores(self, suffix: str) -> Any:
        """Scores in powers of two; minus infinity in masked columns, but not in all masked rows."""
        query = self.query_tile
        key = self.of_band(self.banded(self.ops.key, f"keys{suffix}", self.problem.head_dim), f"key_tile{suffix}")
        d = te.reduce_axis((0, self.problem.head_dim), name="d")

        def dot(*t: Any) -> Any:
            tile, (a, m, c) = t[:6], t[6:]
            return te.sum(query[(*tile, m, d)].astype("float32") * key[(*tile, a, c, d)].astype("float32"), axis=d)

        shape = (*self.tiles, self.row.keys, SIDE, self.column.keys)
        dots = te.compute(shape, dot, name=f"dots{suffix}")
        scale = self.ops.scale[0] * tirx.const(LOG2_E, "float32")
        addend = self.column_mask if self.table is None else self.bias
        return te.compute(shape, lambda *t: dots[t] * scale + addend(*t), name=f"scores{suffix}")

    def column_mask(self, *t: Any) -> Any:
        """0, or minus infinity for keys in masked columns."""
        _, column = self.queries(t, t[7])
        key = self.column.key(t[3], t[5] * self.tile.columns + t[8])
        return _zero_where(self.column.sees(t[3], column, key))

    def bias(self, *t: Any) -> Any:
        """Bias and mask at (sub-tile, row of the band, query, column of the band)."""
        row, column = self.queries(t, t[7])
        key = self.column.key(t[3], t[5] * self.tile.columns + t[8])
        seen = self.column.sees(t[3], column, key)
        v = tirx.Select(seen, key - column + (self.column.kernel_size - 1), 2 * self.column.kernel_size - 1)
        if self.tile.passes == 1:
            return self.table[t[1], t[2], t[4], t[7] // self.tile.columns, t[6], v]
        key = self.row.key(t[2], t[4] * self.tile.rows + t[6])
        u = tirx.Select(self.row.sees(t[2], row, key), key - row + (self.row.kernel_size - 1), self.table.shape[1] - 1)
        return self.table[t[1], u, v]

    def row_mask(self, t: tuple[Any, ...], a: Any, m: Any) -> Any:
        """0, or minus infinity for keys in a row of the band that is masked, but not in the table of biases."""
        if self.table is not None:
            return tirx.const(0.0, "float32")
        row, _ = self.queries(t, m)
        key = self.row.key(t[2], t[4] * self.tile.rows + a)
        return _zero_where(self.row.sees(t[2], row, key))

    def maximum(self, scores: Any) -> Any:
        """The maximum of each query, in three steps: a row of the band, all rows, and the four lanes of a query.

        A lane has columns 2l, 2l + 1, 2l + 8, ... of a row of scores: ``l`` is the last index of each step.
        """
        halves, pair = te.reduce_axis((0, self.column.keys // 8), "n"), te.reduce_axis((0, 2), "p")
        of_row = te.compute(
            (*self.tiles, self.row.keys, SIDE, 4),
            lambda *t: te.max(scores[(*t[:8], halves * 8 + t[8] * 2 + pair)], axis=[halves, pair]),
            name="row_maximum",
        )
        a = te.reduce_axis((0, self.row.keys), "a")
        of_lane = te.compute(
            (*self.tiles, SIDE, 4),
            lambda *t: te.max(of_row[(*t[:6], a, *t[6:])] + self.row_mask(t[:6], a, t[6]), axis=a),
            name="lane_maximum",
        )
        lane = te.reduce_axis((0, 4), "l")
        return te.compute((*self.tiles, SIDE, 4), lambda *t: te.max(of_lane[(*t[:7], lane)], axis=lane), name="maximum")

    def weights(self, scores: Any, maximum: Any) -> Any:
        """Powers of the differences of scores to their maximum."""

        def shift_of(*t: Any) -> Any:
            found = self.row_mask(t[:6], t[6], t[7]) - maximum[(*t[:6], t[7], t[8])]
            return found + tirx.const(_RAISED, "float32") if self.problem.dtype == TF32 else found

        shift = te.compute((*self.tiles, self.row.keys, SIDE, 4), shift_of, name="shift")

        def at(*t: Any) -> Any:
            return tirx.exp2(scores[t] + shift[(*t[:8], t[8] % 8 // 2)]).astype(self.problem.tensor_dtype)

        return te.compute(scores.shape, at, name="weights")

    def total(self, weights: Any) -> Any:
        """The sum of weights of each query, eight times: a product with ones."""
        ones = te.compute((8, SIDE), lambda n, k: tirx.const(1, self.problem.tensor_dtype), name="ones")
        a, c = te.reduce_axis((0, self.row.keys), "a"), te.reduce_axis((0, self.column.keys), "c")

        def at(*t: Any) -> Any:
            weight = weights[(*t[:6], a, t[6], c)].astype("float32")
            return te.sum(weight * ones[t[7], c % SIDE].astype("float32"), axis=[a, c])

        return te.compute((*self.tiles, SIDE, 8), at, name="total")

    def attended(self, weights: Any) -> Any:
        """Sums of values by weights."""
        value = self.of_band(self.banded(self.ops.value, "values", self.problem.head_dim_v), "value_tile")
        a, c = te.reduce_axis((0, self.row.keys), "a"), te.reduce_axis((0, self.column.keys), "c")

        def at(*t: Any) -> Any:
            weight = weights[(*t[:6], a, t[6], c)].astype("float32")
            return te.sum(weight * value[(*t[:6], a, c, t[7])].astype("float32"), axis=[a, c])

        return te.compute((*self.tiles, SIDE, self.problem.head_dim_v), at, name="attended")

    def out(self, attended: Any, total: Any) -> Any:
        """The output of each sub-tile."""

        def at(*t: Any) -> Any:
            m = t[6] * self.tile.columns + t[7]
            # Each lane has two totals, and many more sums: so few divisions suffice.
            # As exact as the weights: a division that rounds takes ten instructions and a call.
            one = tirx.const(1.0, "float32")
            divisor = nonzero(total[(*t[:6], m, t[8] % 8)], "float32")
            inverse = tirx.call_pure_extern("float32", "__fdividef", one, divisor)
            return (attended[(*t[:6], m, t[8])] * inverse).astype(self.problem.tensor_dtype)

        return te.compute((*self.tiles, *self.sub_tile, self.problem.head_dim_v), at, name="normalized")

    def lse(self, maximum: Any, total: Any) -> Any:
        """The log-sum-exp of each sub-tile."""

        def at(*t: Any) -> Any:
            m = t[6] * self.tile.columns + t[7]
            value = maximum[(*t[:6], m, 0)] + tirx.log2(total[(*t[:6], m, 0)])
            return value * tirx.const(LN_2, "float32")

        return te.compute((*self.tiles, *self.sub_tile), at, name="lse_tile")

    def to_map(self, name: str, channels: tuple[int, ...]) -> Scatter:
        """The output ``name`` of (sub-tile, row, column, ...), at its places on the map."""
        row, column = self.row, self.column

        def place(*t: Any) -> tuple[tuple[Any, ...], Any]:

            i = (t[4] * row.queries + t[6]) * row.dilation + t[2]
            j = (t[5] * column.queries + t[7]) * column.dilation + t[3]
            return (t[0], i, j, t[1], *t[8:]), tirx.all(i < row.length, j < column.length)

        return Scatter(name, (self.ops.batch, *self.problem.spatial, self.problem.heads, *channels), place)
