"""What warps of flash formulations have in common: products on tensor cores, of which a lane keeps some, bias, masks.

A warp has *rows* (of its sub-tiles, 16 each) and meets *columns* (of a step): queries and keys in the attention. A lane
has two rows of each sub-tile (lane // 4 and 8 more), and of each 8 columns those of numbers lane % 4 * 2 and one more:
so a tensor core leaves its product. Rounded to 16 bits a product is the left matrix of the next one as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention import flash_device as device
from tvm_na.te.attention.flash_layout import Layout, SharedRow, right
from tvm_na.te.attention.flash_layout import left as lane_of_left
from tvm_na.te.attention.flash_place import Place
from tvm_na.te.attention.flash_tile import SIDE, padded
from tvm_na.te.common.math import LOG2_E
from tvm_na.te.common.rows import ravelled
from tvm_na.te.common.threads import number, only_where, registers

_MASKED = float("-inf")
_KINDS = {"float16": "fp16", "bfloat16": "bf16"}


def f32(value: float) -> Any:
    """A number as an expression."""
    return tirx.const(value, "float32")


@dataclass(frozen=True)
class Left:
    """The left matrix of products with columns of a step: what the rows of a warp have.

    Attributes:
        row: How rows of it, and of the columns that it is multiplied by, lie in shared memory.
        begin: Where those of the block begin there.
        kept: Whether a warp has all of it in registers.
        registers: For all of it, or 16 channels.
        right: Where a lane's row of columns begins, relative to the first.
    """

    row: SharedRow
    begin: int
    kept: bool
    registers: Any
    right: Any

    @property
    def parts(self) -> int:
        """Of 16 channels each."""
        return padded(self.row.channels) // SIDE

    def at(self, tile: Any, k: Any) -> Any:
        """Where the k-th part of a sub-tile is in the registers."""
        return (tile * self.parts + k) * 8 if self.kept else tile * 8


class Scores:
    """Registers and steps of a warp.

    Without a bias scores are kept as products, and multiplied by ``factor`` where powers of two are taken of them, in
    one instruction; with one they are complete.

    Attributes:
        columns_are_keys: Whether rows are queries and columns keys, or the other way around.
    """

    columns_are_keys = True

    def __init__(self, problem: NAProblem, layout: Layout, place: Place, shared: Any, factor: Any) -> None:
        shape = layout.shape
        self.problem, self.layout, self.place, self.shared = problem, layout, place, shared
        self.tiles, self.keys = shape.tiles_of_warp, shape.keys
        self.factor = factor
        self.power = f32(1.0) if problem.bias else factor
        self.dots = registers("scores", (self.tiles * self.keys // 2,), "float32")
        self.operand = registers("operand", (8,), problem.dtype)
        self.ranges = [place.of_warp(axis) for axis in range(3)]
        self.column = number("column", place.lane % 4 * 2, "int32")

    def left(self, name: str, row: SharedRow, begin: int) -> Left:
        """A left matrix whose rows begin at ``begin`` in shared memory."""
        kept = self.layout.shape.keeps_queries
        parts = padded(row.channels) // SIDE if kept else 1
        buffer = registers(name, (self.tiles * parts * 8,), self.problem.dtype)
        return Left(row, begin, kept, buffer, number(f"right_of_{name}", right(row, self.place.lane), "int32"))

    def rows(self) -> Iterator[tuple[int, int, int]]:
        """Sub-tile, half and number of each of a lane's rows."""
        for tile in range(self.tiles):
            for half in range(2):
                yield tile, half, 2 * tile + half

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

    def load_left(self, left: Left, k: Any) -> None:
        """The k-th 16 channels of all sub-tiles."""
        row = left.row
        first = left.begin + self.layout.queries_of(self.place.warp, 0) * row.length
        lane = number("left_at", first + row.further(lane_of_left(row, self.place.lane), k * SIDE), "int32")
        with T.unroll(0, self.tiles) as tile:
            self._load(False, left.registers, left.at(tile, k), lane, tile * (SIDE * row.length))

    def keep(self, left: Left) -> None:
        """All channels, where they are kept."""
        if left.kept:
            with T.unroll(0, left.parts) as k:
                self.load_left(left, k)

    def multiply(self, left: Left, base: Any, to: Any) -> None:
        """Products of rows and of the columns at ``base``."""
        row = left.row
        fill(to, 0.0)
        with T.unroll(0, left.parts) as k:
            if not left.kept:
                self.load_left(left, k)
            lane = number("right_at", base + row.further(left.right, k * SIDE), "int32")
            with T.unroll(0, self.keys // SIDE) as n16:
                self._load(False, self.operand, 0, lane, n16 * (SIDE * row.length))
                with T.unroll(0, self.tiles) as tile, T.unroll(0, 2) as n8:
                    at = (tile * (self.keys // 8) + n16 * 2 + n8) * 4
                    self._multiply(left.registers, left.at(tile, k), n8 * 4, to, at)

    def add(self, factors: Any, row: SharedRow, lane_at: Any, base: Any, to: Any) -> None:
        """Add products of factors, which are of 16 bits, and what the columns at ``base`` have.

        ``lane_at`` is where a lane's row begins, relative to the first.
        """
        parts = padded(row.channels) // SIDE
        with T.unroll(0, parts) as n16:
            lane = number("value_at", base + row.further(lane_at, n16 * SIDE), "int32")
            with T.unroll(0, self.keys // SIDE) as k:
                self._load(True, self.operand, 0, lane, k * (SIDE * row.length))
                with T.unroll(0, self.tiles) as tile, T.unroll(0, 2) as n8:
                    at = (tile * (parts * 2) + n16 * 2 + n8) * 4
                    self._multiply(factors, (tile * (self.keys // SIDE) + k) * 8, n8 * 4, to, at)

    # --- bias and masks

    def seen(self, position: Sequence[Any]) -> Any:
        """Whether any of the warp's rows may see a column of the step at a position."""
        *outer, x = position
        (first, _), (_, last) = self.ranges[-1]
        found = [x < last, x + self.keys > first]
        for at, ((begin, _), (_, end)) in zip(outer, self.ranges, strict=False):
            found += [] if isinstance(at, int) else [at >= begin, at < end]
        return tirx.all(*found)

    def masked(self, position: Sequence[Any], keys: int) -> Any:
        """Whether any of the warp's rows may see less than so many columns, all of those from a position on."""
        *outer, x = position
        (_, end), (begin, _) = self.ranges[-1]
        found = [x < begin, x + keys > end]
        for at, ((_, last), (first, _)) in zip(outer, self.ranges, strict=False):
            found += [] if isinstance(at, int) else [at < first, at >= last]
        return tirx.any(*found)

    def each_column(self, row: int) -> Any:
        """Loops over a lane's columns: their number behind the lane's first, and where their scores of a row are."""
        return _Columns(self.keys, self.first_of(row))

    def first_of(self, row: int) -> int:
        """Where a row's scores begin."""
        return row // 2 * (self.keys // 2) + row % 2 * 2

    def mask(self, position: Sequence[Any]) -> None:
        """Minus infinity for what a row does not see; 16 columns that all rows see are left as they are."""
        *outer, x = position
        limits = [self._limits(tile, half, row, outer) for tile, half, row in self.rows()]
        with T.unroll(0, self.keys // SIDE) as n16, only_where(self.masked([*outer, x + n16 * SIDE], SIDE)):
            for row, (begin, most) in enumerate(limits):
                from_begin = number(f"from_begin{row}", x + self.column - begin, "int32")
                with T.unroll(0, 2) as n8, T.unroll(0, 2) as pair:
                    at = self.first_of(row) + (n16 * 2 + n8) * 4 + pair
                    # One comparison without a sign: none is less than 0.
                    sees = tirx.Cast("uint32", from_begin + ((n16 * 2 + n8) * 8 + pair)) < tirx.Cast("uint32", most)
                    T.buffer_store(self.dots, tirx.Select(sees, self.dots[at], f32(_MASKED)), [at])

    def _limits(self, tile: int, half: int, row: int, outer: Sequence[Any]) -> tuple[Any, Any]:
        """Where a row's window begins along the last axis, and how many columns it has there: none where it does not
        see them along another axis."""
        begin, end = self.place.window_of(2, tile, half)
        there = []
        for axis, at in enumerate(outer):
            if not isinstance(at, int):
                window = self.place.window_of(axis, tile, half)
                there += [at >= window[0], at < window[1]]
        same = self.place.axes[2].size
        size = end - begin if same is None else tirx.const(same, "int32")
        most = tirx.Select(tirx.all(*there), size, tirx.const(0, "int32")) if there else size
        return begin, number(f"most{row}", most, "int32")

    def add_bias(self, position: Sequence[Any], table: Any) -> None:
        """Scores in powers of two with the bias at an address. Of what is masked afterwards that of any others."""
        count = prod(2 * size - 1 for size in self.window)
        for tile, half, row in self.rows():
            first, sign = number(f"bias{row}", self.entry(position, tile, half), "int32"), self._sign
            with self.each_column(row) as (column, at):
                index = tirx.max(tirx.min(first + sign * column, count - 1), 0)
                bias = device.read(table, index, self.problem.dtype) * f32(LOG2_E)
                T.buffer_store(self.dots, self.dots[at] * self.factor + bias, [at])

    def entry(self, position: Sequence[Any], tile: int, half: int) -> Any:
        """The number of the bias's entry for a row and the lane's first column of a step; the next are one further, or
        one before where columns are queries."""
        away = self.away(position, self.place.query(tile, half))
        return ravelled(away, [2 * size - 1 for size in self.window]) + self._sign * self.column

    def away(self, position: Sequence[Any], own: Sequence[Any]) -> list[Any]:
        """The index of the bias along each axis, for a step's first column and a row at a position of its own."""
        return [
            0 if isinstance(at, int) else self._sign * (at - row) + (size - 1)
            for at, row, size in zip(position, own, self.window, strict=True)
        ]

    @property
    def window(self) -> tuple[int, ...]:
        """Its size along three axes."""
        return (1,) * (3 - self.problem.rank) + self.problem.kernel_size

    @property
    def _sign(self) -> int:
        return 1 if self.columns_are_keys else -1

    # --- results

    def write_row(self, target: Any, index: list[Any], sums: Any, factor: Any, tile: int, half: int) -> None:
        """A row of sums, each times a factor, to ``target[index]``."""
        channels, dtype = int(target.shape[-1]), str(target.dtype)
        count, parts = -(-channels // 8), padded(channels) // SIDE
        result = registers(f"result{tile}_{half}", (2 * count,), dtype)
        with T.unroll(0, count) as n8:
            with T.unroll(0, 2) as pair:
                at = (tile * (parts * 2) + n8) * 4 + half * 2 + pair
                T.buffer_store(result, (sums[at] * factor).astype(dtype), [n8 * 2 + pair])
            channel = n8 * 8 + self.column
            with only_where(channel < channels if channels % 8 else None), T.vectorized(0, 2) as pair:
                T.buffer_store(target, result[n8 * 2 + pair], [*index, channel + pair])


class _Columns:
    """Unrolled loops over a lane's columns: their number, and where their scores are."""

    def __init__(self, keys: int, first: int) -> None:
        self.keys, self.first = keys, first

    def __enter__(self) -> tuple[Any, Any]:
        self._outer, self._inner = T.unroll(0, self.keys // 8), T.unroll(0, 2)
        n8, pair = self._outer.__enter__(), self._inner.__enter__()
        return n8 * 8 + pair, self.first + n8 * 4 + pair

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)
        self._outer.__exit__(*error)


def fill(buffer: Any, value: float) -> None:
    """One number in all registers of a buffer."""
    with T.unroll(0, int(buffer.shape[0])) as at:
        T.buffer_store(buffer, tirx.const(value, str(buffer.dtype)), [at])
