"""What the flash formulation (see ``flash.py``) depends on: its sub-tiles, and the sizes that a schedule draws."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tvm_na.problems.attention import NAProblem
from tvm_na.te.common.formulation import Tile

#: Queries of a sub-tile, and the keys and channels that a tensor core multiplies at once.
SIDE = 16
#: Dtypes of problems that it is for.
DTYPES = ("float16", "bfloat16")
#: Channels of a head, at most: more sums of values than that a warp cannot keep.
MOST_CHANNELS = 256


@dataclass(frozen=True)
class FlashTile(Tile):
    """A sub-tile of 16 queries along the last two axes.

    Attributes:
        rows: Queries along the last axis but one.
        columns: Queries along the last axis.
    """

    formulation = "flash"
    rows: int
    columns: int


@dataclass(frozen=True)
class FlashShape:
    """What a warp and a block have, along three axes (planes, rows and columns, those that a problem lacks with 1).

    Attributes:
        tiles: Sub-tiles of a warp, which computes them together.
        warps: Warps of a block.
        keys: Keys of a step, neighbors along the last axis; a multiple of 16.
        stages: Steps whose keys and values have a place in shared memory.
        swizzled: Whether rows of shared memory are as long as they are and their parts permuted, instead of 16 bytes
            longer, so that a tensor core's loads meet different banks.
        keeps_queries: Whether a warp has its queries in registers.
    """

    tiles: tuple[int, int, int]
    warps: tuple[int, int, int]
    keys: int
    stages: int
    swizzled: bool
    keeps_queries: bool

    @property
    def tiles_of_warp(self) -> int:
        """Sub-tiles of a warp."""
        return prod(self.tiles)

    @property
    def warps_of_block(self) -> int:
        """Warps of a block."""
        return prod(self.warps)

    @property
    def queries(self) -> int:
        """Queries of a block."""
        return SIDE * self.tiles_of_warp * self.warps_of_block


def padded(channels: int) -> int:
    """Channels as tensor cores multiply them: a multiple of 16."""
    return -(-channels // SIDE) * SIDE


def can_be_swizzled(problem: NAProblem) -> bool:
    """Whether the parts of a row (8 channels each) are a power of two, of keys and values alike."""
    return all(padded(d) & (padded(d) - 1) == 0 for d in (problem.head_dim, problem.head_dim_v))


def least_registers(problem: NAProblem, shape: FlashShape) -> int:
    """Registers that a lane cannot do without, whatever the compiler does: sums of values, and scores."""
    return shape.tiles_of_warp * (padded(problem.head_dim_v) + shape.keys) // 2


def is_served(problem: NAProblem) -> bool:
    """Whether there is such an expression: 16 bits, and heads of an even number of channels that warps can keep.

    An asynchronous copy is of 4 bytes at least, and begins at a multiple of them.
    """
    dims = (problem.head_dim, problem.head_dim_v)
    return problem.dtype in DTYPES and all(d % 2 == 0 and d <= MOST_CHANNELS for d in dims)
