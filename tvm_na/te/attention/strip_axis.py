"""The keys that sub-tiles of the strip formulation meet along an axis, and the walk along the second one.

What a sub-tile meets is a box of a size that is known, whose begin is that of its first window, and further back at the
end of the map. All of it is in the coordinates of a group of the dilation.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention.flash_axis import FlashAxis
from tvm_na.te.attention.strip_tile import KEYS, StripShape, StripTile
from tvm_na.te.common.window import group_window, maximum, minimum


@dataclass(frozen=True)
class StripAxis(FlashAxis):
    """An axis: ``tiles`` are the steps of a walk, and ``warps`` those along it.

    Attributes:
        unit: The keys of a sub-tile are a multiple of it; what lies beyond the end of the map is masked.
    """

    unit: int = 1

    @property
    def box(self) -> int:
        """Keys of a sub-tile."""
        return self.rounded(self.keys(self.queries))

    def rounded(self, keys: int) -> int:
        """Up to a multiple of the unit."""
        return -(-keys // self.unit) * self.unit

    @property
    def of_step(self) -> int:
        """Queries of a step of all warps."""
        return self.queries * self.warps

    @property
    def shortest(self) -> int:
        """Positions of the shortest group."""
        return self.length // self.dilation

    @property
    def ends_early(self) -> bool:
        """Whether some block has queries beyond the end of its group."""
        return self.length % (self.of_block * self.dilation) != 0

    def begin(self, group: Any, t: Any, keys: int) -> Any:
        """Where so many keys begin, the first of which the query at ``t`` sees first; all of them are in the group, if
        it is long enough."""
        first, _ = group_window(minimum(t, group - 1), group, self.kernel_size, self.stride, self.is_causal)
        return maximum(minimum(first, group - keys), 0)

    def reach(self) -> tuple[int, int]:
        """The least and the greatest distance of a key of a sub-tile from one of its queries."""
        return _reach(self)


def axes(problem: NAProblem, tile: StripTile, shape: StripShape) -> tuple[StripAxis, StripAxis]:
    """Rows, and columns, along which a block walks."""
    rows, columns = problem.axes
    row = StripAxis(*rows, tile.rows, 1, shape.rows)
    column = StripAxis(*columns, tile.columns, 1, shape.columns, KEYS)
    steps = -(-column.blocks // shape.parts)
    return row, StripAxis(*columns, tile.columns, steps, shape.columns, KEYS)


def _groups(axis: StripAxis) -> set[int]:
    return {axis.longest, max(1, axis.shortest)}


@functools.lru_cache(maxsize=4096)
def _reach(axis: StripAxis) -> tuple[int, int]:
    begins = [axis.begin(group, t, axis.box) - t for group in _groups(axis) for t in range(0, group, axis.queries)]
    return min(begins) - (axis.queries - 1), max(begins) + axis.box - 1


@dataclass(frozen=True)
class Walk:
    """Where the steps of a part begin and end: numbers in ``plan``, expressions in a kernel.

    Attributes:
        axis: The second one.
        group: Positions of the group.
        first: The part's first query.
    """

    axis: StripAxis
    group: Any
    first: Any

    @property
    def start(self) -> Any:
        """The first key of the part."""
        return self.axis.begin(self.group, self.first, self.axis.box)

    def query(self, step: Any, warp: Any = 0) -> Any:
        """The first query of a warp in a step."""
        return self.first + step * self.axis.of_step + warp * self.axis.queries

    def begin(self, step: Any, warp: Any = 0) -> Any:
        """The first key of a warp in a step."""
        return self.axis.begin(self.group, self.query(step, warp), self.axis.box)

    def end(self, step: Any) -> Any:
        """Behind the last key of a step."""
        return minimum(self.begin(step, self.axis.warps - 1) + self.axis.box, self.group)


@dataclass(frozen=True)
class Plan:
    """What the walks of all parts and groups have in common.

    Attributes:
        ring: Columns of shared memory.
        wraps: Whether some walk meets more than that.
        first: Columns, at most, that are copied for the first step.
        more: And for any other.
        copied: Columns that are copied for a group of the longest length, by all parts.
    """

    ring: int
    wraps: bool
    first: int
    more: int
    copied: int


@functools.lru_cache(maxsize=4096)
def plan(axis: StripAxis, stages: int, unit: int) -> Plan:
    """The plan of the second axis, with a ring of a multiple of ``unit`` columns."""
    ring, total, first, more = axis.box, axis.box, 0, 0
    for walk in _walks(axis):
        ends = [walk.end(step) for step in range(axis.tiles)]
        for step in range(axis.tiles):
            ring = max(ring, ends[min(step + stages, axis.tiles) - 1] - walk.begin(step))
        total, first = max(total, ends[-1] - walk.start), max(first, ends[0] - walk.start)
        more = max([more, *(after - before for before, after in itertools.pairwise(ends))])
    ring = -(-ring // unit) * unit
    copied = sum(walk.end(axis.tiles - 1) - walk.start for walk in _walks(axis) if walk.group == axis.longest)
    return Plan(ring, total > ring, first, more, copied)


def _walks(axis: StripAxis) -> Iterator[Walk]:
    for group in _groups(axis):
        for part in range(axis.blocks):
            yield Walk(axis, group, part * axis.of_block)


def keys_of(problem: NAProblem, tile: StripTile) -> int:
    """Keys that a sub-tile is multiplied by, without those that only fill a product."""
    row, column = axes(problem, tile, StripShape(1, 1, 1, 2))
    return row.box * column.box


def least_registers(problem: NAProblem, tile: StripTile) -> int:
    """Registers that a lane cannot do without, whatever the compiler does: scores, until their maximum is known."""
    return keys_of(problem, tile) // 2
