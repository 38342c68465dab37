"""Where a thread of the flash formulation is on the map: its block and warp, its lane's queries, their windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx

from tvm_na.te.attention.flash_axis import FlashAxis
from tvm_na.te.attention.flash_tile import FlashShape, FlashTile
from tvm_na.te.common.rows import unravelled
from tvm_na.te.common.threads import integer

#: The two queries of a sub-tile that a lane has are so many apart.
_APART = 8


@dataclass(frozen=True)
class Place:
    """A thread's place.

    Attributes:
        axes: Planes, rows and columns.
        tile, shape: What they are cut into.
        residues: Of the block's group, along each axis.
        first: The block's first query, along each axis.
        warp: The number of the warp.
        lane: The number of the lane.
    """

    axes: Sequence[FlashAxis]
    tile: FlashTile
    shape: FlashShape
    residues: Sequence[Any]
    first: Sequence[Any]
    warp: Any
    lane: Any
    _windows: dict[tuple[int, int], tuple[Any, Any]] = field(default_factory=dict)

    def window(self, axis: int, t: Any) -> tuple[Any, Any]:
        """Of a position along an axis."""
        return self.axes[axis].window(self.residues[axis], t)

    def keys(self) -> tuple[list[Any], list[Any]]:
        """Where the keys of the block begin and end, along each axis."""
        begins, ends = [], []
        for a, axis in enumerate(self.axes):
            begins.append(integer(f"begin{a}", self.window(a, self.first[a])[0]))
            ends.append(integer(f"end{a}", self.window(a, self.first[a] + (axis.of_block - 1))[1]))
        return begins, ends

    def on_map(self, position: Sequence[Any], rank: int) -> list[Any]:
        """A position on the map, along the axes that the problem has."""
        placed = [axis.place(r, t) for axis, r, t in zip(self.axes, self.residues, position, strict=True)]
        return placed[len(placed) - rank :]

    def query(self, tile: int, half: int) -> list[Any]:
        """A query of this lane: along each axis, the number of a position."""
        return [
            self.first[a] + self._of_warp(a) + self._of_lane(a) + self._fixed(a, tile, half)
            for a in range(len(self.axes))
        ]

    def tile_begin(self, tile: int) -> list[Any]:
        """The first query of a sub-tile of this warp."""
        return [self.first[a] + self._of_warp(a) + self._fixed(a, tile, 0) for a in range(len(self.axes))]

    def copied_query(self, n: Any) -> list[Any]:
        """The query of the n-th row of shared memory; the last of the group where there is none."""
        warp, tile, row = unravelled(n, (self.shape.warps_of_block, self.shape.tiles_of_warp, 16))
        warps, tiles = unravelled(warp, self.shape.warps), unravelled(tile, self.shape.tiles)
        rows = (0, row // self.tile.columns, row % self.tile.columns)
        found = []
        for a, axis in enumerate(self.axes):
            t = self.first[a] + warps[a] * axis.of_warp + tiles[a] * axis.queries + rows[a]
            found.append(0 if axis.longest == 1 else tirx.min(t, axis.group(self.residues[a]) - 1))
        return found

    def exists(self, position: Sequence[Any]) -> Any:
        """Whether a query is in the group; None where it always is."""
        inside = [
            t < axis.group(r)
            for axis, r, t in zip(self.axes, self.residues, position, strict=True)
            if axis.length % (axis.of_block * axis.dilation)
        ]
        return tirx.all(*inside) if inside else None

    def window_of(self, axis: int, tile: int, half: int) -> tuple[Any, Any]:
        """The window of a query of this lane, in registers; those with the same one along an axis share it."""
        fixed = self._fixed(axis, tile, half)
        if (axis, fixed) not in self._windows:
            begin, end = self.window(axis, self.query(tile, half)[axis])
            kept = integer(f"window{axis}_{fixed}", begin)
            size = self.axes[axis].size
            self._windows[axis, fixed] = (
                kept,
                integer(f"window_end{axis}_{fixed}", end) if size is None else kept + size,
            )
        return self._windows[axis, fixed]

    def forget_windows(self) -> None:
        """Have them found again: where they are needed next, the code that found them may not have run."""
        self._windows.clear()

    def of_warp(self, axis: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """The windows of the first and of the last query of this warp along an axis, in registers."""
        t = self.first[axis] + self._of_warp(axis)
        first, last = self.window(axis, t), self.window(axis, t + (self.axes[axis].of_warp - 1))
        name = f"warp{axis}"
        return (
            (integer(f"{name}_first", first[0]), integer(f"{name}_first_end", first[1])),
            (integer(f"{name}_last", last[0]), integer(f"{name}_last_end", last[1])),
        )

    def _of_warp(self, axis: int) -> Any:
        return (
            unravelled(self.warp, self.shape.warps)[axis] * self.axes[axis].of_warp if self.axes[axis].warps > 1 else 0
        )

    def _of_lane(self, axis: int) -> Any:
        """What a lane's number adds to the position of its first query."""
        row, columns = self.lane // 4, min(self.tile.columns, _APART)
        return (0, row // columns, row % columns)[axis] if columns < _APART or axis == 2 else 0

    def _fixed(self, axis: int, tile: int, half: int) -> int:
        """What a sub-tile and a half of it add: a number that is known."""
        further = _APART * half
        of_half = (0, further // self.tile.columns, further % self.tile.columns)[axis]
        return unravelled(tile, self.shape.tiles)[axis] * self.axes[axis].queries + of_half
