"""One axis of a map for the flash formulation: its groups of positions, and the queries of sub-tiles, warps, blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm_na.problems.attention import MAX_RANK, NAProblem
from tvm_na.te.attention.flash_tile import FlashShape, FlashTile
from tvm_na.te.common.window import group_length, group_window, minimum

_LACKING = (1, 1, 1, 1, False)  # an axis of one position


@dataclass(frozen=True)
class FlashAxis:
    """One spatial axis. Positions are those of a group of its dilation; ``place`` gives the position on the map.

    Attributes:
        length, kernel_size, stride, dilation, is_causal: As in the problem.
        queries: Of a sub-tile.
        tiles: Sub-tiles of a warp.
        warps: Warps of a block.
    """

    length: int
    kernel_size: int
    stride: int
    dilation: int
    is_causal: bool
    queries: int
    tiles: int
    warps: int

    @property
    def of_warp(self) -> int:
        """Queries of a warp."""
        return self.queries * self.tiles

    @property
    def of_block(self) -> int:
        """Queries of a block."""
        return self.of_warp * self.warps

    @property
    def longest(self) -> int:
        """Positions of the longest group."""
        return group_length(self.length, self.dilation, 0)

    @property
    def blocks(self) -> int:
        """Blocks of the longest group."""
        return -(-self.longest // self.of_block)

    def keys(self, queries: int) -> int:
        """Keys, at most, that so many neighboring queries see."""
        apart = -(-(queries - 1) // self.stride) * self.stride
        return min(apart + self.kernel_size, self.longest)

    @property
    def size(self) -> int | None:
        """Keys of a window; None where not all have as many."""
        return None if self.is_causal else self.kernel_size

    def group(self, residue: Any) -> Any:
        """The length of a group."""
        even = self.length % self.dilation == 0
        return self.longest if even else group_length(self.length, self.dilation, residue)

    def window(self, residue: Any, t: Any) -> tuple[Any, Any]:
        """Where the window of a query begins and ends; queries beyond the end have that of the last."""
        if self.longest == 1:
            return 0, 1
        group = self.group(residue)
        return group_window(minimum(t, group - 1), group, self.kernel_size, self.stride, self.is_causal)

    def place(self, residue: Any, t: Any) -> Any:
        """The position on the map."""
        return t if self.dilation == 1 else t * self.dilation + residue


def axes(
    problem: NAProblem, tile: FlashTile, shape: FlashShape, kind: type[FlashAxis] = FlashAxis
) -> tuple[FlashAxis, FlashAxis, FlashAxis]:
    """Planes, rows and columns."""
    windows = [_LACKING] * (MAX_RANK - problem.rank) + problem.axes
    queries = (1, tile.rows, tile.columns)
    z, y, x = (
        kind(*window, n, tiles, warps)
        for window, n, tiles, warps in zip(windows, queries, shape.tiles, shape.warps, strict=True)
    )
    return z, y, x
