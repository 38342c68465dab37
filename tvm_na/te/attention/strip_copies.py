"""What comes to shared memory in the strip formulation: keys and values, by asynchronous copies, and the bias."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_na.te.attention import flash_device as device
from tvm_na.te.attention import strip_device
from tvm_na.te.attention.flash_scores import f32
from tvm_na.te.attention.strip_layout import PART, Ring
from tvm_na.te.attention.strip_place import Place
from tvm_na.te.common.math import LOG2_E
from tvm_na.te.common.operands import Operands
from tvm_na.te.common.rows import ravelled, unravelled
from tvm_na.te.common.threads import dealt_out, number, only_where, registers
from tvm_na.te.common.window import minimum

_BYTES = 16
_MOST_UNROLLED = 16  # copies of a thread


class Copies:
    """Copies by all threads of a block, one step of the walk after the other."""

    def __init__(self, place: Place, shared: Any, ops: Operands, sample: Any, head: Any) -> None:
        """``head`` is that of keys and values."""
        self.place, self.layout, self.shared, self.ops = place, place.layout, shared, ops
        self.sample, self.head = sample, head
        self.threads = 32 * self.layout.shape.warps
        self.begin = number("strip", place.strip, "int32")
        self.start = number("start", place.walk.start, "int32")
        #: The columns of the walk that were copied, or are on their way, and the place of the next one in the ring.
        self.done, self.slot = (registers(name, (1,), "int32") for name in ("done", "next_slot"))
        for counter in (self.done, self.slot):
            T.buffer_store(counter, 0, [0])

    def address(self, at: Any) -> Any:
        """Of a number in shared memory."""
        return tirx.address_of(self.shared[at])

    def fetch(self, step: Any, most: int, where: Any = None) -> None:
        """Begin the copies of what a step needs beside what others do: ``most`` columns or fewer.

        They are a group of copies, also where nothing is to be copied.
        """
        with only_where(where):
            end = number("copied_end", self.place.walk.end(step) - self.start, "int32")
            rings = ((0, self.layout.key, self.ops.key), (self.layout.values, self.layout.value, self.ops.value))
            for base, ring, source in rings:
                self._columns(base, ring, source, most, end)
            plan = self.layout.plan
            slot = number("slot_after", self.slot[0] + end - self.done[0], "int32")
            after = tirx.Select(slot >= plan.ring, slot - plan.ring, slot) if plan.wraps else slot
            T.buffer_store(self.slot, after, [0])
            T.buffer_store(self.done, end, [0])
        T.evaluate(device.commit())

    def _columns(self, base: int, ring: Ring, source: Any, most: int, end: Any) -> None:
        rows, plan, groups = self.layout.rows, self.layout.plan, self.place.groups
        short = rows > self.layout.axes[0].shortest

        def copy(row: Any, column: Any, part: Any) -> None:
            walked = number("walked", self.done[0] + column, "int32")
            with only_where(walked < end):
                slot = number("to_slot", self.slot[0] + column, "int32")
                slot = tirx.Select(slot >= plan.ring, slot - plan.ring, slot) if plan.wraps else slot
                y = minimum(self.begin + row, groups[0] - 1) if short else self.begin + row
                at = self.place.on_map(y, self.start + walked)
                found = tirx.address_of(source[(self.sample, *at, self.head, part * PART)])
                to = self.address(base + row * ring.row + ring.place(slot, walked, part))
                T.evaluate(device.copy(to, found, _BYTES))

        self._each(rows, most, ring.parts, copy)

    def _each(self, rows: int, columns: int, parts: int, body: Callable[[Any, Any, Any], None]) -> None:
        """``body(row, column, part)`` dealt out to threads; parts of a key, and keys of a row, to neighbors."""
        of_row = columns * parts
        if not of_row:
            return
        count, aligned = rows * of_row, self.threads % of_row == 0
        turns = -(-count // self.threads)
        with (T.unroll if turns <= _MOST_UNROLLED else T.serial)(0, turns) as turn:
            n = turn * self.threads + self.place.thread
            # In the one case a thread has the same column and part of so many rows further on.
            within = self.place.thread % of_row if aligned else n % of_row
            row = turn * (self.threads // of_row) + self.place.thread // of_row if aligned else n // of_row
            with only_where(n < count if count % self.threads else None):
                body(row, within // parts, within % parts)

    def clear_columns(self) -> None:
        """Zeros behind the last column of groups that are shorter than a box; nothing is copied there."""
        _, column = self.layout.axes
        missing = column.box - column.shortest
        if missing <= 0:
            return
        for base, ring in ((0, self.layout.key), (self.layout.values, self.layout.value)):

            def clear(row: Any, n: Any, part: Any, base: int = base, ring: Ring = ring) -> None:
                at = n + column.shortest
                with only_where(None if column.longest == column.shortest else at >= self.place.groups[1]):
                    place = base + row * ring.row + ring.place(at, at, part)
                    T.evaluate(device.clear(self.address(place), _BYTES))

            self._each(self.layout.rows, missing, ring.parts, clear)

    def table(self, head: Any) -> Any:
        """Write the head's bias in powers of two to shared memory; its address, None without one."""
        problem, shape = self.layout.problem, self.layout.table_shape
        if not problem.bias:
            return None
        table = self.address(self.layout.table)
        source = tirx.address_of(self.ops.rpb[(head, 0, 0)])
        least = [axis.reach()[0] for axis in self.layout.axes]

        def write(n: Any) -> None:
            index = [
                number(f"bias_index{axis}", at + first + k - 1, "int32")
                for axis, (at, first, k) in enumerate(
                    zip(unravelled(n, shape), least, problem.kernel_size, strict=True)
                )
            ]
            sizes = [2 * k - 1 for k in problem.kernel_size]
            there = tirx.all(*(tirx.all(i >= 0, i < size) for i, size in zip(index, sizes, strict=True)))
            at = ravelled(index, sizes)
            T.evaluate(strip_device.write_bias(table, n, source, at, there, f32(LOG2_E), problem.dtype))

        dealt_out(prod(shape), self.threads, self.place.thread, write)
        return table
