"""What a warp of the flash formulation does in a step: scores, an online softmax in powers of two, sums of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention import flash_device as device
from tvm_na.te.attention.flash_layout import Layout, left
from tvm_na.te.attention.flash_place import Place
from tvm_na.te.attention.flash_scores import Scores, f32, fill
from tvm_na.te.attention.flash_tile import SIDE, padded
from tvm_na.te.common.math import LN_2, least, nonzero
from tvm_na.te.common.threads import number, only_where, registers

#: Below any score, in powers of two, and finite: a maximum is no less, so that what is masked has a weight of 0 also
#: where no score is finite.
LOWEST = -3e38


class Warp(Scores):
    """The registers of a warp, which has queries and meets keys."""

    def __init__(self, problem: NAProblem, layout: Layout, place: Place, shared: Any, factor: Any, table: Any) -> None:
        super().__init__(problem, layout, place, shared, factor)
        self.table = table
        self.queries = self.left("queries", layout.key, 0)
        self.weights = registers("weights", (self.tiles * self.keys // 2,), problem.dtype)
        self.in_values = padded(problem.head_dim_v) // SIDE
        self.attended = registers("attended", (self.tiles * self.in_values * 8,), "float32")
        self.maximum = registers("maximum", (2 * self.tiles,), "float32")
        self.total = registers("total", (2 * self.tiles,), "float32")
        self.new = registers("new_maximum", (2 * self.tiles,), "float32")
        self.alpha = registers("alpha", (2 * self.tiles,), "float32")
        self.left_value = number("left_value", left(layout.value, place.lane), "int32")

    def clear(self) -> None:
        """Begin."""
        fill(self.attended, 0.0)
        fill(self.total, 0.0)
        lowest = f32(LOWEST) if self.problem.bias else tirx.max(f32(LOWEST) / self.factor, f32(least("float32")))
        lowest = number("lowest", lowest, "float32")
        with T.unroll(0, 2 * self.tiles) as row:
            T.buffer_store(self.maximum, lowest, [row])

    def weigh(self) -> None:
        """Weights of a step, relative to the greatest score so far; what was summed before is made relative to it."""
        for _, _, row in self.rows():
            T.buffer_store(self.new, self.maximum[row], [row])
            with self.each_column(row) as (_, at):
                T.buffer_store(self.new, tirx.max(self.new[row], self.dots[at]), [row])
            for step in (1, 2):
                T.buffer_store(self.new, tirx.max(self.new[row], device.across(self.new[row], step)), [row])
            shift = number(f"shift{row}", self.new[row] * self.power, "float32")
            T.buffer_store(self.alpha, tirx.exp2(self.maximum[row] * self.power - shift), [row])
            T.buffer_store(self.maximum, self.new[row], [row])
            T.buffer_store(self.total, self.total[row] * self.alpha[row], [row])
            with self.each_column(row) as (_, at):
                T.buffer_store(self.dots, tirx.exp2(self.dots[at] * self.power - shift), [at])
                T.buffer_store(self.total, self.total[row] + self.dots[at], [row])
                T.buffer_store(self.weights, self.dots[at].astype(self.problem.dtype), [at])
        # Of a large window few steps have a greater maximum. (Written so that it holds for NaN.)
        changed = tirx.any(*(tirx.Not(self.alpha[row] == f32(1.0)) for _, _, row in self.rows()))
        with only_where(device.any_lane(changed)):
            self._rescale()

    def _rescale(self) -> None:
        each = self.in_values * 8
        with T.unroll(0, self.tiles) as tile, T.unroll(0, each) as n:
            at = tile * each + n
            T.buffer_store(self.attended, self.attended[at] * self.alpha[2 * tile + n % 4 // 2], [at])

    def step(self, base: Any, position: Sequence[Any]) -> None:
        """Everything of a step, of which some query sees something."""
        self.multiply(self.queries, base, self.dots)
        if self.problem.bias:
            self.add_bias(position, self.table)
        with only_where(self.masked(position, self.keys)):
            self.mask(position)
        self.weigh()
        self.add(self.weights, self.layout.value, self.left_value, base + self.layout.values, self.attended)

    # --- results

    def finish(self) -> None:
        """Sums of weights over the four lanes of a query."""
        for _, _, row in self.rows():
            for step in (1, 2):
                T.buffer_store(self.total, self.total[row] + device.across(self.total[row], step), [row])

    def write(self, out: Any, lse: Any, index: Any) -> None:
        """Outputs, at ``index(position)`` of each query that there is."""
        for tile, half, row in self.rows():
            position = self.place.query(tile, half)
            with only_where(self.place.exists(position)):
                total = nonzero(self.total[row], "float32")
                inverse = number(f"inverse{row}", device.inverse(total), "float32")
                self.write_row(out, index(position), self.attended, inverse, tile, half)
                if lse is not None:
                    value = self.maximum[row] * self.power + tirx.log2(self.total[row])
                    with only_where(self.place.lane % 4 == 0):
                        T.buffer_store(lse, value * f32(LN_2), index(position))
