"""What a warp of the strip formulation does in a step: the scores of a sub-tile's box of keys, softmax, sums of values.

Keys are multiplied in blocks of eight neighbors along a row. A tensor core gives a lane two keys of each, numbers
``lane % 4 * 2`` and one more: these are columns ``lane % 4`` and four more, so that lanes meet the bias in different
banks. Two blocks, of the same row or not, are the sixteen keys whose values are summed at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_na.te.attention import flash_device as device
from tvm_na.te.attention import strip_device
from tvm_na.te.attention.flash_scores import f32
from tvm_na.te.attention.flash_tile import SIDE
from tvm_na.te.attention.strip_layout import PART, Ring
from tvm_na.te.attention.strip_place import Place
from tvm_na.te.attention.strip_tile import KEYS
from tvm_na.te.common.math import LN_2, nonzero
from tvm_na.te.common.threads import number, only_where, registers

_MASKED = float("-inf")
#: Below any score, in powers of two, and finite: a maximum is no less, so that what is masked has a weight of 0 also
#: where no score is finite.
_LOWEST = -3e38
_KINDS = {"float16": "fp16", "bfloat16": "bf16"}
_HALVES = range(2)


class Warp:
    """The registers of a warp, and what it does with them."""

    def __init__(self, place: Place, shared: Any, factor: Any, table: Any) -> None:
        layout = place.layout
        self.problem, self.layout, self.place = layout.problem, layout, place
        self.shared, self.factor, self.table = shared, factor, table
        row, column = layout.axes
        self.rows, self.of_row = row.box, column.box // KEYS
        self.blocks = self.rows * self.of_row
        self.pairs = -(-self.blocks // 2)
        self.in_keys, self.in_values = self.problem.head_dim // SIDE, self.problem.head_dim_v // SIDE
        dtype = self.problem.dtype
        self.queries = registers("queries", (self.in_keys * 8,), dtype)
        self.scores = registers("scores", (self.pairs * 8,), "float32")
        self.weights = registers("weights", (self.pairs * 8,), dtype)
        self.operand = registers("operand", (8,), dtype)
        self.ones = registers("ones", (4,), dtype)
        self.attended = registers("attended", (self.in_values * 8,), "float32")
        self.total = registers("total", (4,), "float32")
        self.maximum = registers("maximum", (2,), "float32")
        _fill(self.ones, 1.0)
        self.lane4 = number("lane4", place.lane % 4, "int32")
        self.row = number("row", place.warp_row + place.lane_row, "int32")
        first = row.begin(place.groups[0], place.warp_row, row.box)
        self.first_row = number("first_row", first, "int32")
        self.row_begin, self.row_size = place.window(0, "row", self.row)

    # --- queries

    def load_queries(self, query: Any, step: Any, sample: Any, head: Any) -> None:
        """The queries of a step, from global memory to where tensor cores want them."""
        column = self.place.walk.query(step, self.place.warp_column)
        for half in _HALVES:
            at = self.place.on_map(*self.place.nearest(self.row, column + self.place.lane_column(half)))
            at = [number(f"query{axis}_{half}", t, "int32") for axis, t in enumerate(at)]
            with T.unroll(0, self.in_keys) as k, T.unroll(0, 2) as eight:
                source = tirx.address_of(query[(sample, *at, head, k * SIDE + eight * 8 + self.lane4 * 2)])
                to = tirx.address_of(self.queries[k * 8 + eight * 4 + half * 2])
                T.evaluate(strip_device.load_pair(to, source))

    # --- tensor cores

    def _load(self, transposed: bool, offset: Any, further: Any) -> None:
        from tvm.script import tirx as script

        source = self.shared.access_ptr("r", offset=offset)
        kind = self.problem.dtype
        T.evaluate(script.ptx_legacy.ldmatrix(transposed, 4, ".b16", self.operand.data, 0, source, further, dtype=kind))

    def _multiply(self, a: Any, at_a: Any, b: Any, at_b: Any, c: Any, at_c: Any) -> None:
        from tvm.script import tirx as script

        kind = _KINDS[self.problem.dtype]
        names = ("m16n8k16", "row", "col", kind, kind, "fp32")
        T.evaluate(script.ptx_legacy.mma(*names, a.data, at_a, b.data, at_b, c.data, at_c, False, dtype="float32"))

    def _pair(self, number_of: int) -> tuple[tuple[int, int, int], int]:
        """How the two blocks of a pair lie: columns of both in the box, and the second's row relative to the first's;
        and the first's row. A lack of a second one is made up for by the first."""
        blocks = [2 * number_of, min(2 * number_of + 1, self.blocks - 1)]
        (row, left), (below, right) = (divmod(block, self.of_row) for block in blocks)
        return (left, right, below - row), row

    def _lanes(
        self, name: str, ring: Ring, base: Any, slot: Any, column: Any, second: Any, part: Any
    ) -> dict[Any, Any]:
        """Where a lane's key begins, for each way in which the blocks of a pair lie, in registers.

        Args:
            name: Of the registers.
            ring: Of keys or of values.
            base: The first row of the box.
            slot: The place of the first column of the box in the ring.
            column: The number of that column in the walk.
            second: Whether the lane loads of the second block (0 or 1).
            part: Which part of the key it loads (0 or 1).
        """
        found: dict[Any, Any] = {}
        eighth = self.place.lane % 8
        for pair in range(self.pairs):
            way, _ = self._pair(pair)
            if way in found:
                continue
            left, right, below = way
            block = left if left == right else left + second * (right - left)
            in_box = number(f"{name}{len(found)}_column", block * KEYS + eighth // 2 + eighth % 2 * 4, "int32")
            at = self.wrapped(slot + in_box)
            row = base if below == 0 else base + second * (below * ring.row)
            place = row + ring.place(at, column + in_box, part)
            found[way] = number(f"{name}{len(found)}", place, "int32")
        return found

    def wrapped(self, slot: Any) -> Any:
        """A place in the ring of a place that may be beyond its end."""
        plan = self.layout.plan
        if not plan.wraps:
            return slot
        slot = number("slot", slot, "int32")
        return tirx.Select(slot >= plan.ring, slot - plan.ring, slot)

    def multiply_keys(self, base: Any, slot: Any, column: Any) -> None:
        """Products of queries and keys."""
        ring, lane = self.layout.key, self.place.lane
        lanes = self._lanes("key", ring, base * ring.row, slot, column, lane // SIDE, lane % SIDE // PART)
        _fill(self.scores, 0.0)
        for k in range(self.in_keys):
            at = {way: number("key_at", ring.further(place, k * SIDE), "int32") for way, place in lanes.items()}
            for pair in range(self.pairs):
                way, row = self._pair(pair)
                self._load(False, at[way], row * ring.row)
                for n8 in range(2 if 2 * pair + 1 < self.blocks else 1):
                    self._multiply(self.queries, k * 8, self.operand, n8 * 4, self.scores, (2 * pair + n8) * 4)

    def multiply_values(self, base: Any, slot: Any, column: Any) -> None:
        """Products of weights and values, and sums of weights: products with ones."""
        ring, lane = self.layout.value, self.place.lane
        base = self.layout.values + base * ring.row
        lanes = self._lanes("value", ring, base, slot, column, lane % SIDE // PART, lane // SIDE)
        _fill(self.attended, 0.0)
        _fill(self.total, 0.0)
        for pair in range(self.pairs):
            self._multiply(self.weights, pair * 8, self.ones, 0, self.total, 0)
        for n16 in range(self.in_values):
            at = {way: number("value_at", ring.further(place, n16 * SIDE), "int32") for way, place in lanes.items()}
            for pair in range(self.pairs):
                way, row = self._pair(pair)
                self._load(True, at[way], row * ring.row)
                for n8 in range(2):
                    to = (n16 * 2 + n8) * 4
                    self._multiply(self.weights, pair * 8, self.operand, n8 * 4, self.attended, to)

    # --- softmax

    def _each(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Row and first column in the box, half and number of the pair, and place of each of a lane's scores."""
        for block in range(self.blocks):
            row, column = divmod(block, self.of_row)
            for half in _HALVES:
                for pair in range(2):
                    yield row, column * KEYS + 4 * pair, half, pair, block * 4 + half * 2 + pair

    def complete(self, column: Any, first: Any) -> None:
        """Scores in powers of two, with the bias, and minus infinity where a query does not see a key.

        Args:
            column: The first query of the warp along the second axis.
            first: The first key of the box along it.
        """
        from_row = number("from_row", self.first_row - self.row_begin, "int32")
        index = self._bias_index(column, first)
        sizes: dict[tuple[int, int], Any] = {}
        begins = []
        for half in _HALVES:
            query = number(f"column{half}", column + self.place.lane_column(half), "int32")
            begins.append(self.place.window(1, f"column{half}", query))
        for row, of_box, half, _, at in self._each():
            if (of_box, half) not in sizes:
                begin, size = begins[half]
                sees = tirx.Cast("uint32", first + self.lane4 + of_box - begin) < tirx.Cast("uint32", size)
                found = tirx.Select(sees, self.row_size, tirx.const(0, "int32"))
                sizes[of_box, half] = number(f"rows{half}_{of_box}", found, "int32")
            score = self.scores[at] * self.factor
            if index is not None:
                score = score + strip_device.read_bias(self.table, index[half] + self._further(row, of_box))
            sees = tirx.Cast("uint32", from_row + row) < tirx.Cast("uint32", sizes[of_box, half])
            T.buffer_store(self.scores, tirx.Select(sees, score, f32(_MASKED)), [at])

    def _further(self, row: int, column: int) -> int:
        return row * self.layout.table_shape[1] + column

    def _bias_index(self, column: Any, first: Any) -> list[Any] | None:
        """Where in the table the bias of the lane's first key is, for both of its queries."""
        if not self.problem.bias:
            return None
        (least, _), (left, _) = (axis.reach() for axis in self.layout.axes)
        rows = self.first_row - self.row - least
        found = []
        for half in _HALVES:
            columns = first - column - self.place.lane_column(half) - left + self.lane4
            found.append(number(f"bias{half}", rows * self.layout.table_shape[1] + columns, "int32"))
        return found

    def weigh(self) -> None:
        """Weights, relative to the greatest score of a query."""
        _fill(self.maximum, _LOWEST)
        for *_, half, _, at in self._each():
            T.buffer_store(self.maximum, tirx.max(self.maximum[half], self.scores[at]), [half])
        for half in _HALVES:
            for step in (1, 2):
                found = tirx.max(self.maximum[half], device.across(self.maximum[half], step))
                T.buffer_store(self.maximum, found, [half])
        for *_, half, _, at in self._each():
            weight = tirx.exp2(self.scores[at] - self.maximum[half])
            T.buffer_store(self.weights, weight.astype(self.problem.dtype), [at])
        for at in range(self.blocks * 4, self.pairs * 8):
            T.buffer_store(self.weights, tirx.const(0.0, self.problem.dtype), [at])

    # --- results

    def write(self, out: Any, lse: Any, column: Any, sample: Any, head: Any) -> None:
        """Outputs of the queries that there are."""
        for half in _HALVES:
            at = number(f"written{half}", column + self.place.lane_column(half), "int32")
            with only_where(self.place.exists(self.row, at)):
                index = [sample, *self.place.on_map(self.row, at), head]
                total = self.total[half * 2]
                inverse = number("inverse", device.inverse(nonzero(total, "float32")), "float32")
                self._write_row(out, index, half, inverse)
                if lse is not None:
                    with only_where(self.lane4 == 0):
                        T.buffer_store(lse, (self.maximum[half] + tirx.log2(total)) * f32(LN_2), index)

    def _write_row(self, out: Any, index: list[Any], half: int, inverse: Any) -> None:
        dtype, count = self.problem.dtype, self.in_values * 2
        result = registers(f"result{half}", (count * 2,), dtype)
        with T.unroll(0, count) as n8:
            with T.unroll(0, 2) as pair:
                at = n8 * 4 + half * 2 + pair
                T.buffer_store(result, (self.attended[at] * inverse).astype(dtype), [n8 * 2 + pair])
            with T.vectorized(0, 2) as pair:
                T.buffer_store(out, result[n8 * 2 + pair], [*index, n8 * 8 + self.lane4 * 2 + pair])


def _fill(buffer: Any, value: float) -> None:
    with T.unroll(0, int(buffer.shape[0])) as at:
        T.buffer_store(buffer, tirx.const(value, str(buffer.dtype)), [at])
