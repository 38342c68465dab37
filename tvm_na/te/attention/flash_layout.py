"""Where the flash formulation has its numbers in shared memory: rows of channels, of queries and of a ring of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention.flash_tile import SIDE, FlashShape, padded

#: Numbers of 16 bits of a part: what eight lanes load at once of eight rows, in 16 bytes each.
PART = 8


@dataclass(frozen=True)
class SharedRow:
    """A row of channels, padded with zeros to a multiple of 16.

    Attributes:
        channels: Those that there are.
        swizzled: See :class:`tvm_na.te.attention.flash_tile.FlashShape`.
    """

    channels: int
    swizzled: bool

    @property
    def width(self) -> int:
        """Numbers that a thread copies at once: at most 16 bytes, which begin at a multiple of them."""
        return min(PART, self.channels & -self.channels)

    @property
    def copies(self) -> int:
        """Copies of a row."""
        return self.channels // self.width

    @property
    def length(self) -> int:
        """Numbers from one row to the next."""
        return padded(self.channels) + (0 if self.swizzled else PART)

    def part(self, row: Any, part: Any) -> Any:
        """Where a part of a row begins. Rows may be counted from any multiple of 8."""
        if not self.swizzled:
            return row * self.length + part * PART
        # Eight rows have their n-th parts in different banks: of short rows several lie in one line of all banks.
        parts = self.length // PART
        moved = row // max(1, PART // parts) % min(parts, PART)
        return row * self.length + (part ^ moved) * PART

    def further(self, at: Any, channels: Any) -> Any:
        """Where the part is that lies ``channels``, a multiple of 16, behind the one at ``at``, a first or second."""
        return at ^ channels if self.swizzled else at + channels

    def channel(self, row: Any, channel: Any) -> Any:
        """Where a channel of a row is."""
        return self.part(row, channel // PART) + (0 if self.width == PART else channel % PART)


@dataclass(frozen=True)
class Layout:
    """Shared memory of a block: queries in the order of warps and sub-tiles, then keys and values of each stage."""

    problem: NAProblem
    shape: FlashShape

    @property
    def key(self) -> SharedRow:
        """Of queries and keys."""
        return SharedRow(self.problem.head_dim, self.shape.swizzled)

    @property
    def value(self) -> SharedRow:
        """Of values."""
        return SharedRow(self.problem.head_dim_v, self.shape.swizzled)

    @property
    def ring(self) -> int:
        """Where the first stage begins."""
        return self.shape.queries * self.key.length

    @property
    def stage(self) -> int:
        """Numbers of a stage."""
        return self.shape.keys * (self.key.length + self.value.length)

    @property
    def values(self) -> int:
        """Where values begin in a stage."""
        return self.shape.keys * self.key.length

    @property
    def table(self) -> int:
        """Where the bias begins."""
        return self.ring + self.shape.stages * self.stage

    def queries_of(self, warp: Any, tile: Any) -> Any:
        """The first row of queries of a sub-tile of a warp; queries come first in memory."""
        return (warp * self.shape.tiles_of_warp + tile) * SIDE

    @property
    def size(self) -> int:
        """Numbers in all."""
        return self.table


def left(row: SharedRow, lane: Any) -> Any:
    """Where a lane's row begins, relative to the first, of a matrix of 16 x 16 that is loaded as a left one.

    And of a right one whose rows are the summed index (loaded transposed).
    """
    return row.part(lane % SIDE, lane // SIDE)


def right(row: SharedRow, lane: Any) -> Any:
    """The same of a right matrix whose columns are rows in memory."""
    return row.part(lane // SIDE * PART + lane % PART, lane % SIDE // PART)
