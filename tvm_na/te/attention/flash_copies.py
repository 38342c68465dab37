"""Asynchronous copies of the flash formulation: queries once, keys and values in a ring of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_na.te.attention import flash_device as device
from tvm_na.te.attention.flash_layout import Layout, SharedRow
from tvm_na.te.attention.flash_tile import padded
from tvm_na.te.common.threads import only_where, registers

_ITEM_BYTES = 2


@dataclass
class Cursor:
    """The keys of a step: their position along each axis, the first one along the last.

    Attributes:
        begins, ends: Of all keys of the block, along each axis.
        keys: Of a step.
        at: The position, a register along each axis that has more than one.
    """

    name: str
    begins: Sequence[Any]
    ends: Sequence[Any]
    keys: int
    at: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        for axis, begin in enumerate(self.begins):
            self.at.append(begin if isinstance(begin, int) else _register(f"{self.name}{axis}", begin))

    @property
    def position(self) -> list[Any]:
        """Along each axis."""
        return [at if isinstance(at, int) else at[0] for at in self.at]

    def advance(self) -> None:
        """Go to the next step: along the last axis first."""
        self._advance(len(self.at) - 1)

    def _advance(self, axis: int) -> None:
        at = self.at[axis]
        if isinstance(at, int):
            if axis:
                self._advance(axis - 1)
            return
        T.buffer_store(at, at[0] + (self.keys if axis == len(self.at) - 1 else 1), [0])
        if any(not isinstance(outer, int) for outer in self.at[:axis]):
            with T.If(at[0] >= self.ends[axis]), T.Then():
                T.buffer_store(at, self.begins[axis], [0])
                self._advance(axis - 1)


def _register(name: str, value: Any) -> Any:
    buffer = registers(name, (1,), "int32")
    T.buffer_store(buffer, value, [0])
    return buffer


@dataclass(frozen=True)
class Copies:
    """Copies by all threads of a block.

    Attributes:
        shared: The buffer.
        layout: What is where in it.
        threads: Of the block.
        thread: The number of this one.
    """

    shared: Any
    layout: Layout
    threads: int
    thread: Any

    def _each(self, rows: int, of_row: int, body: Callable[[Any, Any], None], unrolled: bool = False) -> None:
        """``body(row, n)`` for ``of_row`` numbers of each row, dealt out to threads."""
        count = rows * of_row
        aligned = self.threads % of_row == 0
        with (T.unroll if unrolled else T.serial)(0, -(-count // self.threads)) as turn:
            n = turn * self.threads + self.thread
            # In the one case it is known that the row of a thread's next copy is so many further, in the same column.
            row = turn * (self.threads // of_row) + self.thread // of_row if aligned else n // of_row
            with only_where(n < count if count % self.threads else None):
                body(row, (self.thread if aligned else n) % of_row)

    def address(self, at: Any) -> Any:
        """Of a number in shared memory."""
        return tirx.address_of(self.shared[at])

    def rows(
        self, at: Any, count: int, row: SharedRow, source: Any, place: Callable[[Any], Sequence[Any]], again: bool
    ) -> None:
        """Begin copies of so many rows from ``source``, where the n-th one has the index ``place(n)``.

        Unrolled where it is done ``again`` and again.
        """

        def copy(n: Any, part: Any) -> None:
            channel = part * row.width
            found = tirx.address_of(source[(*place(n), channel)])
            T.evaluate(device.copy(self.address(at + row.channel(n, channel)), found, row.width * _ITEM_BYTES))

        self._each(count, row.copies, copy, unrolled=again)

    def numbers(self, count: int, kinds: int, to: Callable[[Any, Any], Any], source: Callable[[Any, Any], Any]) -> None:
        """Begin copies of so many numbers of 32 bits of each kind: ``source(n, kind)`` to where ``to`` says."""

        def copy(n: Any, kind: Any) -> None:
            T.evaluate(device.copy(self.address(to(n, kind)), tirx.address_of(source(n, kind)), 2 * _ITEM_BYTES))

        self._each(count, kinds, copy, unrolled=True)

    def scale_queries(self, factor: Any, dtype: str) -> None:
        """Multiply the queries, of which each thread has those that it copied, when they have come."""
        row = self.layout.key

        def scale(n: Any, part: Any) -> None:
            at = self.address(row.channel(n, part * row.width))
            T.evaluate(device.multiply(at, row.width, factor, dtype))

        self._each(self.layout.shape.queries, row.copies, scale)

    def clear_padding(self) -> None:
        """Zeros in the channels that there are not, of all rows; nothing is copied there."""
        layout, shape = self.layout, self.layout.shape
        self.clear(0, shape.queries, layout.key)
        for stage in range(shape.stages):
            at = layout.ring + stage * layout.stage
            self.clear(at, shape.keys, layout.key)
            self.clear(at + layout.values, shape.keys, layout.value)

    def clear(self, at: Any, rows: int, row: SharedRow) -> None:
        """Zeros in the channels that there are not, of so many rows."""
        missing = (padded(row.channels) - row.channels) // row.width
        if not missing:
            return

        def clear(n: Any, part: Any) -> None:
            place = self.address(at + row.channel(n, row.channels + part * row.width))
            T.evaluate(device.clear(place, row.width * _ITEM_BYTES))

        self._each(rows, missing, clear)
