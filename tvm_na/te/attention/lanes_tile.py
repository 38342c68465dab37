"""What the lanes formulation depends on, and where its tiles and their boxes of keys lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm_na.problems.attention import NAProblem
from tvm_na.te.common.formulation import Tile
from tvm_na.te.common.rows import Rows
from tvm_na.te.common.window import group_length, group_window, minimum

# Channels, at most, that are summed up in one running sum, where they can be cut into as many parts.
_PART = 64


def channel_parts(channels: int) -> int:
    """Into how many equal parts a product over so many channels is cut, each with a sum of its own.

    A running sum is rounded as often as it has terms, and what a large score loses weights lose.
    """
    fewest = -(-channels // _PART)
    return next((n for n in range(fewest, 2 * fewest + 1) if channels % n == 0), 1)


def dots_blocks(problem: NAProblem, at_once: int = 1) -> dict[str, int]:
    """The stages that scores are the sum of, by name: how many steps each has, of so many channels at once."""
    steps = -(-problem.head_dim // at_once)
    parts = channel_parts(steps)
    return {f"dots{n or ''}": steps // parts for n in range(parts)}


@dataclass(frozen=True)
class LanesTile(Tile):
    """The sizes that the expression itself depends on.

    Attributes:
        queries: Queries per tile, along the columns.
        vector: Elements of the vectors in which lanes are counted.
        exact_values: Whether each query is multiplied with the values of its own window (no wasted product,
            and an inf or NaN outside the window stays there) or with those of the whole box.
        pack_values: Whether values are first copied so that those of one head and dilation group lie together.
        at_once: Channels of keys, and keys, that a step of a product multiplies.
    """

    formulation = "lanes"
    at_once: ClassVar[int] = 1
    queries: int
    vector: int
    exact_values: bool = True
    pack_values: bool = False


@dataclass(frozen=True)
class DotsTile(LanesTile):
    """The same with products of pairs of bfloat16; values are packed, in pairs, with ``pack_values`` or without."""

    formulation = "dots"
    at_once: ClassVar[int] = 2


def spanned_columns(problem: NAProblem, queries: int) -> int:
    """The most columns of a dilation group that the windows of one tile of ``queries`` queries span."""
    k, s, causal = problem.kernel_size[-1], problem.stride[-1], problem.is_causal[-1]
    # Windows away from borders repeat themselves, and those at borders lie closer together: a short group has them all.
    enough = 2 * (k + queries) + s + math.lcm(queries, s)
    lengths = {
        min(group_length(problem.spatial[-1], problem.dilation[-1], r), enough) for r in (0, problem.dilation[-1] - 1)
    }
    spanned = k
    for length in lengths:
        for first in range(0, length, queries):
            last = min(first + queries, length) - 1
            starts = [group_window(t, length, k, s, causal)[0] for t in (first, last)]
            spanned = max(spanned, starts[1] - starts[0] + k)
    return spanned


def lanes_of(problem: NAProblem, tile: LanesTile) -> int:
    """The lanes of the box of a tile: the spanned columns rounded up to vectors."""
    return _round_up(spanned_columns(problem, tile.queries), tile.vector)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


class Geometry:
    """Index arithmetic of the tiles: i, a are rows; group r, tile t, query u of the tile, lane l are columns.

    Attributes:
        rows: The rows.
        width: The columns of the map.
        dilation: Of the columns.
        lanes: Columns of a tile's box.
        group: Columns of the longest dilation group.
        tiles: Of a group.
        packed_width: Columns of a packed group, whole vectors.
        even: Whether every tile of every group is full.
    """

    def __init__(self, problem: NAProblem, tile: LanesTile) -> None:
        self.problem, self.tile = problem, tile
        self.rows = Rows(problem)
        self.width, self.dilation = problem.spatial[-1], problem.dilation[-1]
        self.lanes = lanes_of(problem, tile)
        self.group = -(-self.width // self.dilation)
        self.tiles = -(-self.group // tile.queries)
        self.packed_width = _round_up(max(self.group, self.lanes), tile.vector)
        self.even = self.group * self.dilation == self.width and self.tiles * tile.queries == self.group

    def length(self, r: Any) -> Any:
        """The number of columns in a group: a constant where all groups have as many."""
        even = self.width % self.dilation == 0
        return self.group if even else group_length(self.width, self.dilation, r)

    def query_column(self, r: Any, t: Any, u: Any) -> Any:
        """A query's place in its group; places that the last tile has too many repeat the group's last."""
        place = t * self.tile.queries + u
        return place if self.even else minimum(place, self.length(r) - 1)

    def columns(self, r: Any, t: Any, u: Any) -> tuple[Any, Any]:
        """Start and end of a query's window, in its group's coordinates."""
        p, place = self.problem, self.query_column(r, t, u)
        return group_window(place, self.length(r), p.kernel_size[-1], p.stride[-1], p.is_causal[-1])

    def first_lane(self, r: Any, t: Any) -> Any:
        """The group's column at lane 0 of a tile's box."""
        return minimum(self.columns(r, t, 0)[0], self.packed_width - self.lanes)

    def exists(self, i: Any, r: Any, t: Any, u: Any, a: Any, column: Any) -> Any:
        """Whether the window of a query holds row ``a`` of its box and the group's ``column``."""
        from tvm import tirx

        start, end = self.columns(r, t, u)
        return tirx.all(column >= start, column < end, *self.rows.exists(i, a))

    def on_map(self, y_group: Any, y: Any, x_group: Any, x: Any) -> tuple[list[Any], tuple[Any, ...], Any]:
        """What must hold for a place of packed groups to be on the map, and its row and column, clamped to the map."""
        row, column = self.rows.packed_row(y_group, y), x_group + self.dilation * x
        conditions = []
        if self.rows.groups[0] * self.rows.groups[1] > self.rows.count:
            conditions.append(row < self.rows.count)
        if self.packed_width * self.dilation > self.width:
            conditions.append(column < self.width)
        if conditions:
            row, column = minimum(row, self.rows.count - 1), minimum(column, self.width - 1)
        return conditions, self.rows.place(row), column
