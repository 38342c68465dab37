"""Where the strip formulation has its numbers in shared memory: rings of columns of keys and values, and the bias."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention.flash_tile import can_be_swizzled
from tvm_na.te.attention.strip_axis import Plan, StripAxis, axes, plan
from tvm_na.te.attention.strip_tile import StripShape, StripTile

#: Numbers of 16 bits of a part: what eight lanes load at once of eight keys, in 16 bytes each, and a thread copies.
PART = 8
_LINE = 64  # numbers that lie in different banks
_WORDS = 2  # numbers of 16 bits in one of the bias's


@dataclass(frozen=True)
class Ring:
    """Keys or values: rows of the strip, each with the places of some columns, where a column comes back to the same.

    Attributes:
        channels: Of a key.
        columns: Places of a row.
        swizzled: Whether the parts of a key are permuted by its column; else each key is a part longer. So eight
            neighbors have the same part in different banks.
    """

    channels: int
    columns: int
    swizzled: bool

    @property
    def parts(self) -> int:
        """Of a key."""
        return self.channels // PART

    @property
    def length(self) -> int:
        """Numbers from one key to the next."""
        return self.channels + (0 if self.swizzled else PART)

    @property
    def row(self) -> int:
        """Numbers from one row to the next."""
        return self.columns * self.length

    def place(self, slot: Any, column: Any, part: Any) -> Any:
        """Where a part of the key of a column begins, in its row; ``slot`` is the place that the column has there."""
        if not self.swizzled:
            return slot * self.length + part * PART
        moved = column // max(1, PART // self.parts) % min(self.parts, PART)
        return slot * self.length + (part ^ moved) * PART

    def further(self, at: Any, channels: int) -> Any:
        """Where the part lies ``channels`` (a multiple of 16) behind the one at ``at``, which is a first or second."""
        return at ^ channels if self.swizzled else at + channels


def unit(problem: NAProblem) -> int:
    """Columns of a ring are a multiple of it: so neighbors are in different banks where the ring begins anew, too."""
    if not can_be_swizzled(problem):
        return 1
    return max(1, _LINE // min(problem.head_dim, problem.head_dim_v))


@dataclass(frozen=True)
class Layout:
    """Shared memory of a block: keys, values, and the head's bias in float32.

    The bias is a table of distances from a query to a key, along both axes as far as sub-tiles reach; beyond a window
    it is 0. Neighboring rows of it begin four banks apart, or an odd multiple of that.
    """

    problem: NAProblem
    tile: StripTile
    shape: StripShape

    @property
    def axes(self) -> tuple[StripAxis, StripAxis]:
        """Rows, and columns."""
        return axes(self.problem, self.tile, self.shape)

    @property
    def plan(self) -> Plan:
        """Of the walk."""
        return plan(self.axes[1], self.shape.stages, unit(self.problem))

    @property
    def rows(self) -> int:
        """Of the strip."""
        row, _ = self.axes
        return row.keys(row.of_block)

    @property
    def key(self) -> Ring:
        """Of keys."""
        return Ring(self.problem.head_dim, self.plan.ring, can_be_swizzled(self.problem))

    @property
    def value(self) -> Ring:
        """Of values."""
        return Ring(self.problem.head_dim_v, self.plan.ring, can_be_swizzled(self.problem))

    @property
    def values(self) -> int:
        """Where values begin."""
        return self.rows * self.key.row

    @property
    def table(self) -> int:
        """Where the bias begins, a multiple of four bytes."""
        return self.values + self.rows * self.value.row

    @property
    def table_shape(self) -> tuple[int, int]:
        """Rows and columns of the bias; none without one."""
        if not self.problem.bias:
            return 0, 0
        (least, most), (left, right) = (axis.reach() for axis in self.axes)
        columns = right - left + 1
        return most - least + 1, columns + (4 - columns) % 8

    @property
    def size(self) -> int:
        """Numbers of 16 bits in all."""
        return self.table + _WORDS * prod(self.table_shape)
