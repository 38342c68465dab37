"""What a warp of the flash formulation does in a step: scores, an online softmax in powers of two, sums of values.

A lane has two queries of each sub-tile (lane // 4 and 8 more), and of each 8 keys those of numbers lane % 4 * 2 and one
more: so a tensor core leaves its product. Weights in 16 bits are the left matrix of the next product as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention import flash_device as device
from tvm_na.te.attention.flash_layout import Layout, left, right
from tvm_na.te.attention.flash_place import Place
from tvm_na.te.attention.flash_tile import SIDE, padded
from tvm_na.te.common.math import LN_2, LOG2_E, least, nonzero
from tvm_na.te.common.rows import ravelled
from tvm_na.te.common.threads import number, only_where, registers

_MASKED = float("-inf")
#: Below any score, in powers of two, and finite: a maximum is no less, so that what is masked has a weight of 0 also
#: where no score is finite.
_LOWEST = -3e38
_KINDS = {"float16": "fp16", "bfloat16": "bf16"}


def f32(value: float) -> Any:
    """A number as an expression."""
    return tirx.const(value, "float32")


class Warp:
    """The registers of a warp. Without a bias scores are kept as products, and multiplied by ``factor`` where powers of
    two are taken of them, in one instruction; with one they are complete."""

    def __init__(self, problem: NAProblem, layout: Layout, place: Place, shared: Any, factor: Any, table: Any) -> None:
        shape = layout.shape
        self.problem, self.layout, self.place, self.shared, self.table = problem, layout, place, shared, table
        self.tiles, self.keys = shape.tiles_of_warp, shape.keys
        self.in_keys, self.in_values = padded(problem.head_dim) // SIDE, padded(problem.head_dim_v) // SIDE
        self.factor = factor
        self.power = f32(1.0) if problem.bias else factor
        per_tile = self.in_keys if shape.keeps_queries else 1
        self.queries = registers("queries", (self.tiles * per_tile * 8,), problem.dtype)
        self.dots = registers("scores", (self.tiles * self.keys // 2,), "float32")
        self.weights = registers("weights", (self.tiles * self.keys // 2,), problem.dtype)
        self.operand = registers("operand", (8,), problem.dtype)
        self.attended = registers("attended", (self.tiles * self.in_values * 8,), "float32")
        self.maximum = registers("maximum", (2 * self.tiles,), "float32")
        self.total = registers("total", (2 * self.tiles,), "float32")
        self.new = registers("new_maximum", (2 * self.tiles,), "float32")
        self.alpha = registers("alpha", (2 * self.tiles,), "float32")
        self.ranges = [place.of_warp(axis) for axis in range(3)]
        self.column = number("column", place.lane % 4 * 2, "int32")
        self.left_key = number("left_key", left(layout.key, place.lane), "int32")
        self.right_key = number("right_key", right(layout.key, place.lane), "int32")
        self.left_value = number("left_value", left(layout.value, place.lane), "int32")

    def rows(self) -> Iterator[tuple[int, int, int]]:
        """Sub-tile, half and number of each of a lane's queries."""
        for tile in range(self.tiles):
            for half in range(2):
                yield tile, half, 2 * tile + half

    def clear(self) -> None:
        """Begin."""
        _fill(self.attended, 0.0)
        _fill(self.total, 0.0)
        lowest = f32(_LOWEST) if self.problem.bias else tirx.max(f32(_LOWEST) / self.factor, f32(least("float32")))
        lowest = number("lowest", lowest, "float32")
        with T.unroll(0, 2 * self.tiles) as row:
            T.buffer_store(self.maximum, lowest, [row])

    # --- tensor cores

    def _load(self, transposed: bool, target: Any, offset: Any, at: Any, further: Any) -> None:
        """16 x 16 numbers, of which this lane's row begins at ``at``, a register, and ``further``, which is known."""
        from tvm.script import tirx as script

        kind = self.problem.dtype
        source = self.shared.access_ptr("r", offset=at)
        T.evaluate(script.ptx_legacy.ldmatrix(transposed, 4, ".b16", target.data, offset, source, further, dtype=kind))

    def _multiply(self, a: Any, at_a: Any, at_b: Any, c: Any, at_c: Any) -> None:
        from tvm.script import tirx as script

        kind = _KINDS[self.problem.dtype]
        operands = (a.data, at_a, self.operand.data, at_b, c.data, at_c)
        names = ("m16n8k16", "row", "col", kind, kind, "fp32")
        T.evaluate(script.ptx_legacy.mma(*names, *operands, False, dtype="float32"))

    def load_queries(self, k: Any) -> None:
        """The k-th 16 channels of the queries of all sub-tiles."""
        row, kept = self.layout.key, self.layout.shape.keeps_queries
        first = self.layout.queries_of(self.place.warp, 0) * row.length
        lane = number("query_at", first + row.further(self.left_key, k * SIDE), "int32")
        with T.unroll(0, self.tiles) as tile:
            at = (tile * self.in_keys + k) * 8 if kept else tile * 8
            self._load(False, self.queries, at, lane, tile * (SIDE * row.length))

    def keep_queries(self) -> None:
        """All channels of the queries."""
        with T.unroll(0, self.in_keys) as k:
            self.load_queries(k)

    def scores(self, base: Any) -> None:
        """Products of queries and the keys at ``base``."""
        row, kept = self.layout.key, self.layout.shape.keeps_queries
        _fill(self.dots, 0.0)
        with T.unroll(0, self.in_keys) as k:
            if not kept:
                self.load_queries(k)
            lane = number("key_at", base + row.further(self.right_key, k * SIDE), "int32")
            with T.unroll(0, self.keys // SIDE) as n16:
                self._load(False, self.operand, 0, lane, n16 * (SIDE * row.length))
                with T.unroll(0, self.tiles) as tile, T.unroll(0, 2) as n8:
                    query = (tile * self.in_keys + k) * 8 if kept else tile * 8
                    self._multiply(self.queries, query, n8 * 4, self.dots, (tile * (self.keys // 8) + n16 * 2 + n8) * 4)

    def add_values(self, base: Any) -> None:
        """Add products of weights and the values at ``base``."""
        row = self.layout.value
        with T.unroll(0, self.in_values) as n16:
            lane = number("value_at", base + row.further(self.left_value, n16 * SIDE), "int32")
            with T.unroll(0, self.keys // SIDE) as k:
                self._load(True, self.operand, 0, lane, k * (SIDE * row.length))
                with T.unroll(0, self.tiles) as tile, T.unroll(0, 2) as n8:
                    to = (tile * (self.in_values * 2) + n16 * 2 + n8) * 4
                    self._multiply(self.weights, (tile * (self.keys // SIDE) + k) * 8, n8 * 4, self.attended, to)

    # --- softmax

    def seen(self, position: Sequence[Any]) -> Any:
        """Whether any of the warp's queries may see a key of the step at a position."""
        *outer, x = position
        (first, _), (_, last) = self.ranges[-1]
        found = [x < last, x + self.keys > first]
        for at, ((begin, _), (_, end)) in zip(outer, self.ranges, strict=False):
            found += [] if isinstance(at, int) else [at >= begin, at < end]
        return tirx.all(*found)

    def masked(self, position: Sequence[Any], keys: int) -> Any:
        """Whether any of the warp's queries may see less than so many keys, all of those from a position on."""
        *outer, x = position
        (_, end), (begin, _) = self.ranges[-1]
        found = [x < begin, x + keys > end]
        for at, ((_, last), (first, _)) in zip(outer, self.ranges, strict=False):
            found += [] if isinstance(at, int) else [at < first, at >= last]
        return tirx.any(*found)

    def _each_key(self, row: int) -> Any:
        """Loops over a lane's keys of a query: their number behind the lane's first, and where their scores are."""
        return _Keys(self.keys, self._first(row))

    def _first(self, row: int) -> int:
        """Where a query's scores begin."""
        return row // 2 * (self.keys // 2) + row % 2 * 2

    def mask(self, position: Sequence[Any]) -> None:
        """Minus infinity for what a query does not see; 16 keys that all queries see are left as they are."""
        *outer, x = position
        limits = [self._limits(tile, half, row, outer) for tile, half, row in self.rows()]
        with T.unroll(0, self.keys // SIDE) as n16, only_where(self.masked([*outer, x + n16 * SIDE], SIDE)):
            for row, (begin, most) in enumerate(limits):
                from_begin = number(f"from_begin{row}", x + self.column - begin, "int32")
                with T.unroll(0, 2) as n8, T.unroll(0, 2) as pair:
                    at = self._first(row) + (n16 * 2 + n8) * 4 + pair
                    # One comparison without a sign: none is less than 0.
                    sees = tirx.Cast("uint32", from_begin + ((n16 * 2 + n8) * 8 + pair)) < tirx.Cast("uint32", most)
                    T.buffer_store(self.dots, tirx.Select(sees, self.dots[at], f32(_MASKED)), [at])

    def _limits(self, tile: int, half: int, row: int, outer: Sequence[Any]) -> tuple[Any, Any]:
        """Where a query's window begins along the last axis, and how many keys it has there: none in rows that it does
        not see."""
        begin, end = self.place.window_of(2, tile, half)
        there = []
        for axis, at in enumerate(outer):
            if not isinstance(at, int):
                window = self.place.window_of(axis, tile, half)
                there += [at >= window[0], at < window[1]]
        size = end - begin if self.problem.is_causal[-1] else tirx.const(self.problem.kernel_size[-1], "int32")
        most = tirx.Select(tirx.all(*there), size, tirx.const(0, "int32")) if there else size
        return begin, number(f"most{row}", most, "int32")

    def add_bias(self, position: Sequence[Any]) -> None:
        """Scores in powers of two with the bias. Of keys that are masked afterwards that of any others."""
        sizes = (1,) * (3 - self.problem.rank) + self.problem.kernel_size
        table = [2 * size - 1 for size in sizes]
        for tile, half, row in self.rows():
            away = [
                0 if isinstance(at, int) else at - query + (size - 1)
                for at, query, size in zip(position, self.place.query(tile, half), sizes, strict=True)
            ]
            first = number(f"bias{row}", ravelled(away, table) + self.column, "int32")
            with self._each_key(row) as (key, at):
                index = tirx.max(tirx.min(first + key, prod(table) - 1), 0)
                bias = device.read(self.table, index, self.problem.dtype) * f32(LOG2_E)
                T.buffer_store(self.dots, self.dots[at] * self.factor + bias, [at])

    def weigh(self) -> None:
        """Weights of a step, relative to the greatest score so far; what was summed before is made relative to it."""
        for _, _, row in self.rows():
            T.buffer_store(self.new, self.maximum[row], [row])
            with self._each_key(row) as (_, at):
                T.buffer_store(self.new, tirx.max(self.new[row], self.dots[at]), [row])
            for step in (1, 2):
                T.buffer_store(self.new, tirx.max(self.new[row], device.across(self.new[row], step)), [row])
            shift = number(f"shift{row}", self.new[row] * self.power, "float32")
            T.buffer_store(self.alpha, tirx.exp2(self.maximum[row] * self.power - shift), [row])
            T.buffer_store(self.maximum, self.new[row], [row])
            T.buffer_store(self.total, self.total[row] * self.alpha[row], [row])
            with self._each_key(row) as (_, at):
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
        self.scores(base)
        if self.problem.bias:
            self.add_bias(position)
        with only_where(self.masked(position, self.keys)):
            self.mask(position)
        self.weigh()
        self.add_values(base + self.layout.values)

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
                self._write_row(out, index(position), tile, half, row)
                if lse is not None:
                    value = self.maximum[row] * self.power + tirx.log2(self.total[row])
                    with only_where(self.place.lane % 4 == 0):
                        T.buffer_store(lse, value * f32(LN_2), index(position))

    def _write_row(self, out: Any, index: list[Any], tile: int, half: int, row: int) -> None:
        channels, dtype = self.problem.head_dim_v, self.problem.dtype
        count = -(-channels // 8)
        inverse = number(f"inverse{row}", device.inverse(nonzero(self.total[row], "float32")), "float32")
        result = registers(f"result{row}", (2 * count,), dtype)
        with T.unroll(0, count) as n8:
            with T.unroll(0, 2) as pair:
                at = (tile * (self.in_values * 2) + n8) * 4 + half * 2 + pair
                T.buffer_store(result, (self.attended[at] * inverse).astype(dtype), [n8 * 2 + pair])
            channel = n8 * 8 + self.column
            with only_where(channel < channels if channels % 8 else None), T.vectorized(0, 2) as pair:
                T.buffer_store(out, result[n8 * 2 + pair], [*index, channel + pair])


class _Keys:
    """Unrolled loops over a lane's keys: their number, and where their scores are."""

    def __init__(self, keys: int, first: int) -> None:
        self.keys, self.first = keys, first

    def __enter__(self) -> tuple[Any, Any]:
        self._outer, self._inner = T.unroll(0, self.keys // 8), T.unroll(0, 2)
        n8, pair = self._outer.__enter__(), self._inner.__enter__()
        return n8 * 8 + pair, self.first + n8 * 4 + pair

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)
        self._outer.__exit__(*error)


def _fill(buffer: Any, value: float) -> None:
    with T.unroll(0, int(buffer.shape[0])) as at:
        T.buffer_store(buffer, tirx.const(value, str(buffer.dtype)), [at])
