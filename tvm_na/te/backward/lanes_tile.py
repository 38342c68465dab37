"""What the lanes formulation of the gradients depends on: the sizes of a tile, and how rows are cut into chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm_na.te.attention.lanes_tile import LanesTile
from tvm_na.te.common.formulation import Tile
from tvm_na.te.common.rows import Rows
from tvm_na.te.common.window import maximum, minimum


@dataclass(frozen=True)
class BackwardTile(Tile):
    """The sizes that the formulation itself depends on.

    Attributes:
        queries: Queries per tile, along the columns.
        vector: Elements of the vectors in which lanes are counted.
        chunks: Into how many parts the rows are cut, each with sums of its own.
        tiles: Tiles that pass through a stage together; a divisor of those of a row.
        pack_keys: Whether keys are first copied so that those of one head and dilation group lie together.
    """

    formulation = "backward lanes"
    queries: int
    vector: int
    chunks: int = 1
    tiles: int = 1
    pack_keys: bool = False

    def lanes(self) -> LanesTile:
        """The tile of the forward pass with the same queries and lanes."""
        return LanesTile(self.queries, self.vector)


@dataclass(frozen=True)
class Chunks:
    """How the rows of queries are cut into chunks, and which rows of keys the windows of each reach.

    Attributes:
        count: Chunks.
        rows: Rows of a chunk; the last may have fewer.
        before: How far the rows of keys begin before the chunk.
        reach: Rows of keys of a chunk, the same for all.
        map_rows: Rows of the map.
    """

    count: int
    rows: int
    before: int
    reach: int
    map_rows: int

    @classmethod
    def of(cls, rows: Rows, count: int) -> Chunks:
        """``count`` chunks, or fewer where that leaves some without rows."""
        length = -(-rows.count // max(1, min(count, rows.count)))
        firsts = range(0, rows.count, length)
        spans = []
        for first in firsts:
            chunk = range(first, min(first + length, rows.count))
            # The rows of a window lie in order, so its first and last are enough.
            low = min(int(rows.key_row(i, 0)) for i in chunk)
            high = max(int(rows.key_row(i, rows.keys - 1)) for i in chunk)
            spans.append((first, low, high))
        before = max(first - low for first, low, _ in spans)
        reach = max(high + 1 - max(first - before, 0) for first, _, high in spans)
        return cls(len(firsts), length, before, reach, rows.count)

    def first_key_row(self, chunk: Any) -> Any:
        """The first of the rows of keys of a chunk."""
        first, last = chunk * self.rows - self.before, self.map_rows - self.reach
        return 0 if self.count == 1 else maximum(minimum(first, last), 0)
