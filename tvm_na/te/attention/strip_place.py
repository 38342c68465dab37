"""Where a thread of the strip formulation is on the map: its block, its warp, and its lane's queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from tvm_na.te.attention.strip_axis import StripAxis, Walk
from tvm_na.te.attention.strip_layout import Layout
from tvm_na.te.common.threads import integer
from tvm_na.te.common.window import minimum

_LANES = 32


@dataclass(frozen=True)
class Place:
    """A thread's place; a warp has rows of its own, and columns of its own in each step.

    Attributes:
        layout: Of the block.
        residues: Of the block's group, along both axes.
        row: The first query of the block along the first axis.
        walk: Of the block, along the second.
        warp: The number of the warp.
        lane: The number of the lane.
    """

    layout: Layout
    residues: Sequence[Any]
    row: Any
    walk: Walk
    warp: Any
    lane: Any

    @property
    def axes(self) -> tuple[StripAxis, StripAxis]:
        """Rows, and columns."""
        return self.layout.axes

    @property
    def groups(self) -> list[Any]:
        """Positions of the block's group along both axes."""
        return [axis.group(residue) for axis, residue in zip(self.axes, self.residues, strict=True)]

    @property
    def thread(self) -> Any:
        """The number of the thread."""
        return self.warp * _LANES + self.lane

    @property
    def strip(self) -> Any:
        """The first row of keys of the block."""
        return self.axes[0].begin(self.groups[0], self.row, self.layout.rows)

    @property
    def warp_row(self) -> Any:
        """The first query of the warp along the first axis."""
        return self.row + self.warp // self.layout.shape.columns * self.axes[0].queries

    @property
    def warp_column(self) -> Any:
        """The number of the warp along the second axis."""
        return self.warp % self.layout.shape.columns

    @property
    def lane_row(self) -> Any:
        """Which row of the sub-tile has both queries of the lane: the 16 lie column by column."""
        return self.lane // 4 % self.layout.tile.rows

    def lane_column(self, half: int) -> Any:
        """Which column of the sub-tile has the lane's first or second query."""
        return self.lane // 4 // self.layout.tile.rows + half * (8 // self.layout.tile.rows)

    def on_map(self, row: Any, column: Any) -> list[Any]:
        """A position of the group on the map."""
        return [axis.place(r, t) for axis, r, t in zip(self.axes, self.residues, (row, column), strict=True)]

    def nearest(self, row: Any, column: Any) -> list[Any]:
        """A position of the group, or the last one along an axis that has none."""
        axes = zip(self.axes, self.groups, (row, column), strict=True)
        return [minimum(t, group - 1) if axis.ends_early else t for axis, group, t in axes]

    def exists(self, row: Any, column: Any) -> Any:
        """Whether a position is in the group; None where every query of every block is."""
        inside = [
            t < group for axis, group, t in zip(self.axes, self.groups, (row, column), strict=True) if axis.ends_early
        ]
        return tirx.all(*inside) if inside else None

    def window(self, axis: int, name: str, t: Any) -> tuple[Any, Any]:
        """Where the window of a query begins along an axis, and how many keys it has, in registers."""
        begin, end = self.axes[axis].window(self.residues[axis], t)
        kept = integer(f"{name}_begin", begin)
        causal = self.axes[axis].is_causal
        return kept, integer(f"{name}_size", end - kept) if causal else tirx.const(self.axes[axis].kernel_size, "int32")
