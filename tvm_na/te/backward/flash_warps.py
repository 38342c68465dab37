"""What a warp of the flash formulation of the gradients does in a step.

Both kernels have products of rows and columns twice: scores, of queries and keys, and gradients of weights, of
``d_out`` and values. What is rounded to 16 bits then are weights and gradients of scores, once for each product with
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import STATISTICS
from tvm_na.te.attention import flash_device as device
from tvm_na.te.attention.flash_layout import SharedRow, left
from tvm_na.te.attention.flash_place import Place
from tvm_na.te.attention.flash_scores import Scores, f32, fill
from tvm_na.te.attention.flash_tile import padded
from tvm_na.te.attention.flash_warp import LOWEST
from tvm_na.te.backward import flash_device
from tvm_na.te.backward.flash_range import OF_WEIGHTS, Range
from tvm_na.te.backward.flash_tile import WIDE, GradientLayout
from tvm_na.te.common.math import least, nonzero
from tvm_na.te.common.rows import ravelled
from tvm_na.te.common.threads import number, only_where, registers

#: The index of a position's row in a tensor.
Index = Callable[[Sequence[Any]], list[Any]]


class Pairs(Scores):
    """Registers for pairs of a row and a column."""

    layout: GradientLayout

    def __init__(self, problem: NAProblem, layout: GradientLayout, place: Place, shared: Any, factor: Any) -> None:
        super().__init__(problem, layout, place, shared, factor)
        self.rows_of = (self.left("own", layout.key, 0), self.left("own_values", layout.value, layout.own_values))
        self.d_weights = registers("d_weights", (self.tiles * self.keys // 2,), "float32")
        self.factors = registers("factors", (self.tiles * self.keys // 2,), problem.dtype)
        self.left_key = number("left_key", left(layout.key, place.lane), "int32")
        self.range, self.of_weights = Range(problem.dtype), OF_WEIGHTS[problem.dtype]

    def sums(self, name: str, row: SharedRow) -> Any:
        """Zeros for sums of what columns have."""
        found = registers(name, (self.tiles * padded(row.channels) // 2,), "float32")
        fill(found, 0.0)
        return found

    def keep_rows(self) -> None:
        """What the rows have, in registers."""
        for matrix in self.rows_of:
            self.keep(matrix)

    def pairs(self, base: Any, position: Sequence[Any], table: Any) -> None:
        """Scores, minus infinity where masked, and gradients of weights."""
        self.multiply(self.rows_of[0], base, self.dots)
        self.multiply(self.rows_of[1], base + self.layout.values, self.d_weights)
        if table is not None:
            self.add_bias(position, table)
        with only_where(self.masked(position, self.keys)):
            self.mask(position)

    def weight(self, at: Any, top: Any) -> Any:
        """A weight, relative to a top in powers of two."""
        return tirx.exp2(self.dots[at] * self.power - top)

    def round_d_scores(self) -> None:
        """Of a step, to 16 bits."""
        with T.unroll(0, self.tiles * self.keys // 2) as at:
            T.buffer_store(self.factors, self.d_weights[at].astype(self.problem.dtype), [at])

    def write_sums(self, target: Any, sums: Any, inverse: Any, factor: Any, index: Index) -> None:
        """Sums times one factor and then another, at the index of each row that there is."""
        with T.unroll(0, int(sums.shape[0])) as at:
            T.buffer_store(sums, sums[at] * inverse, [at])
        for tile, half, _ in self.rows():
            position = self.place.query(tile, half)
            with only_where(self.place.exists(position)):
                self.write_row(target, index(position), sums, factor, tile, half)


class QueryWarp(Pairs):
    """Rows are queries: first the statistics of their windows, then the gradients of scores again, and sums of keys.

    What weights are relative to is the greatest score so far; all sums take the same number for it, rounded or not, so
    that weights are as exact as differences of scores are.
    """

    def __init__(self, problem: NAProblem, layout: GradientLayout, place: Place, shared: Any, factor: Any) -> None:
        super().__init__(problem, layout, place, shared, factor)
        of_rows = (2 * self.tiles,)
        self.maximum, self.top = registers("maximum", of_rows, "float32"), registers("top", of_rows, "float32")
        self.total, self.delta = registers("total", of_rows, "float32"), registers("delta", of_rows, "float32")
        self.d_query = self.sums("d_query_sums", layout.key)
        fill(self.total, 0.0)
        fill(self.delta, 0.0)
        lowest = f32(LOWEST) if problem.bias else tirx.max(f32(LOWEST) / self.factor, f32(least("float32")))
        lowest = number("lowest", lowest, "float32")
        with T.unroll(0, 2 * self.tiles) as row:
            T.buffer_store(self.maximum, lowest, [row])
            T.buffer_store(self.top, lowest * self.power, [row])

    def first(self, base: Any, position: Sequence[Any], table: Any) -> None:
        """Add a step to the sums of weights, and of these times their gradients."""
        self.pairs(base, position, table)
        for _, _, row in self.rows():
            for_maximum = self.maximum
            with self.each_column(row) as (_, at):
                T.buffer_store(for_maximum, tirx.max(for_maximum[row], self.dots[at]), [row])
            for step in (1, 2):
                T.buffer_store(for_maximum, tirx.max(for_maximum[row], device.across(for_maximum[row], step)), [row])
            top = number(f"new_top{row}", self.maximum[row] * self.power, "float32")
            change = number(f"change{row}", tirx.exp2(self.top[row] - top), "float32")
            T.buffer_store(self.top, top, [row])
            T.buffer_store(self.total, self.total[row] * change, [row])
            T.buffer_store(self.delta, self.delta[row] * change, [row])
            with self.each_column(row) as (_, at):
                weight = number(f"weight{row}", self.weight(at, top), "float32")
                T.buffer_store(self.total, self.total[row] + weight, [row])
                T.buffer_store(self.delta, self.delta[row] + weight * self.d_weights[at], [row])

    def finish_first(self, d_lse: Any, statistics: Any, index: Index) -> None:
        """Write the statistics; ``total`` is the inverse of the sum of weights then, ``delta`` what their gradients
        lose."""
        self.place.forget_windows()
        for tile, half, row in self.rows():
            for sums in (self.total, self.delta):
                for step in (1, 2):
                    T.buffer_store(sums, sums[row] + device.across(sums[row], step), [row])
            T.buffer_store(self.total, f32(1.0) / nonzero(self.total[row], "float32"), [row])
            T.buffer_store(self.delta, self.delta[row] * self.total[row], [row])
            if d_lse is not None:
                position = self.place.query(tile, half)
                with only_where(self.place.exists(position)):
                    T.buffer_store(self.delta, self.delta[row] - d_lse[tuple(index(position))], [row])
            self._write_statistics(statistics, index, tile, half, row)
            T.buffer_store(self.total, self.range.times(self.total[row]), [row])

    def _write_statistics(self, statistics: Any, index: Index, tile: int, half: int, row: int) -> None:
        position = self.place.query(tile, half)
        exists, writes = self.place.exists(position), self.place.lane % 4 == 0
        values = (self.top[row], self.total[row] * f32(self.of_weights), self.delta[row])
        with only_where(writes if exists is None else tirx.all(exists, writes)):
            for n, value in enumerate(values):
                T.buffer_store(statistics, value, [*index(position), n])

    def second(self, base: Any, position: Sequence[Any], table: Any) -> None:
        """Add a step to the gradients of queries."""
        self.pairs(base, position, table)
        for _, _, row in self.rows():
            with self.each_column(row) as (_, at):
                weight = self.weight(at, self.top[row]) * self.total[row]
                T.buffer_store(self.d_weights, weight * (self.d_weights[at] - self.delta[row]), [at])
        self.range.keep(self.d_weights, [self.total, self.d_query])
        self.round_d_scores()
        self.add(self.factors, self.layout.key, self.left_key, base, self.d_query)


class KeyWarp(Pairs):
    """Rows are keys, columns the queries that see them: sums of queries and of ``d_out``, and for the bias."""

    columns_are_keys = False

    def __init__(self, problem: NAProblem, layout: GradientLayout, place: Place, shared: Any, factor: Any) -> None:
        super().__init__(problem, layout, place, shared, factor)
        self.d_key, self.d_value = self.sums("d_key_sums", layout.key), self.sums("d_value_sums", layout.value)
        self.left_value = number("left_value", left(layout.value, place.lane), "int32")
        self.of_columns = registers("of_columns", (2 * STATISTICS,), "float32")

    def step(self, base: Any, position: Sequence[Any], table: Any) -> None:
        """Everything of a step, of which some key is seen."""
        self.pairs(base, position, table)
        with T.unroll(0, self.keys // 8) as n8:
            self.read_statistics(base, n8)
            for _, _, row in self.rows():
                with T.unroll(0, 2) as pair:
                    at = self.first_of(row) + n8 * 4 + pair
                    top, inverse, delta = (self.of_columns[2 * n + pair] for n in range(STATISTICS))
                    weight = number(f"weight{row}", self.weight(at, top) * inverse, "float32")
                    T.buffer_store(self.factors, weight.astype(self.problem.dtype), [at])
                    difference = self.range.times(self.d_weights[at]) - self.range.times(delta)
                    T.buffer_store(self.d_weights, weight * difference, [at])
        values = base + self.layout.values
        self.add(self.factors, self.layout.value, self.left_value, values, self.d_value)
        self.range.keep(self.d_weights, [self.d_key])
        self.round_d_scores()
        self.add(self.factors, self.layout.key, self.left_key, base, self.d_key)
        if self.layout.entries:
            self.add_to_bias(position)

    def read_statistics(self, base: Any, n8: Any) -> None:
        """Of the lane's two columns among 8."""
        for kind in range(STATISTICS):
            at = base + (self.layout.statistics + WIDE * kind * self.keys) + (n8 * 8 + self.column) * WIDE
            to = tirx.address_of(self.of_columns[2 * kind])
            T.evaluate(flash_device.read_pair(to, tirx.address_of(self.shared[at])))

    # --- the bias

    def add_to_bias(self, position: Sequence[Any]) -> None:
        """Add gradients of scores to the warp's sums, sub-tile by sub-tile."""
        layout, lane, tile = self.layout, self.place.lane, self.place.tile
        table = [2 * size - 1 for size in self.window]
        inverse = self.range.inverse(self.of_weights)
        square = tirx.address_of(self.shared[layout.square(self.place.warp)])
        sums = tirx.address_of(self.shared[layout.sums(self.place.warp)])
        for number_of_tile in range(self.tiles):
            if number_of_tile:  # else the barrier of the step was between
                T.evaluate(flash_device.warp_barrier())
            for half in range(2):
                self._write_square(square, inverse, number_of_tile, half)
            T.evaluate(flash_device.warp_barrier())
            away = self.away(position, self.place.tile_begin(number_of_tile))
            shape, of_table = (tile.rows, tile.columns, self.keys, layout.pitch), (prod(table), table[-1])
            call = flash_device.add_diagonals(sums, square, ravelled(away, table), away[-1], lane, shape, of_table)
            T.evaluate(call)

    def _write_square(self, square: Any, inverse: Any, tile: int, half: int) -> None:
        """A lane's gradients of a row; zeros for a key that there is not."""
        exists = self.place.exists(self.place.query(tile, half))
        row = self.place.lane // 4 + 8 * half
        with T.unroll(0, self.keys // 8) as n8, T.unroll(0, 2) as pair:
            value = self.d_weights[self.first_of(2 * tile + half) + n8 * 4 + pair] * inverse
            value = value if exists is None else tirx.Select(exists, value, f32(0.0))
            at = row * self.layout.pitch + self.column + (n8 * 8 + pair)
            T.evaluate(flash_device.write_float(square, at, value))
