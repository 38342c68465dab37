"""What the strip formulation (see ``strip.py``) depends on: its sub-tiles, and the sizes that a schedule draws."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention.flash_tile import DTYPES, SIDE
from tvm_na.te.common.formulation import Tile

#: Keys that a tensor core multiplies at once: neighbors along a row of the map.
KEYS = 8
#: Channels of a head, at most.
MOST_CHANNELS = 128


@dataclass(frozen=True)
class StripTile(Tile):
    """A sub-tile of 16 queries.

    Attributes:
        rows: Queries along the first axis: 1, 2, 4 or 8.
        columns: Queries along the second axis.
    """

    formulation = "strip"
    rows: int
    columns: int


@dataclass(frozen=True)
class StripShape:
    """What a block has.

    Attributes:
        rows: Warps along the first axis: so many sub-tiles are as high as the strip.
        columns: Warps along the second axis: so many sub-tiles are computed in a step.
        parts: Parts that the strip is cut into along its length, each walked along by a block of its own.
        stages: Steps whose keys and values have a place in shared memory, the one that is computed among them.
    """

    rows: int
    columns: int
    parts: int
    stages: int

    @property
    def warps(self) -> int:
        """Of a block."""
        return self.rows * self.columns


def is_served(problem: NAProblem) -> bool:
    """Whether there is such an expression: two axes, 16 bits, no stride, and heads of 16 to 128 channels."""
    dims = (problem.head_dim, problem.head_dim_v)
    fits = all(d % SIDE == 0 and d <= MOST_CHANNELS for d in dims)
    return problem.rank == 2 and problem.dtype in DTYPES and problem.stride == (1, 1) and fits
