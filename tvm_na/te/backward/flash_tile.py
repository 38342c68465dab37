"""What the flash formulation of the gradients (see ``flash.py``) depends on, and its shared memory."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import STATISTICS
from tvm_na.te.attention.flash_axis import FlashAxis, axes
from tvm_na.te.attention.flash_layout import Layout
from tvm_na.te.attention.flash_tile import SIDE, FlashShape, FlashTile, padded
from tvm_na.te.common.window import group_queries, minimum

#: Numbers of 16 bits that a number of 32 bits takes.
WIDE = 2
#: Numbers from one row of a sub-tile's gradients of scores to the next are so many more than columns: lanes write two
#: neighbors at once, and 16 of them to different banks.
_APART = 8


@dataclass(frozen=True)
class BackwardFlashTile(FlashTile):
    """A sub-tile of 16 queries, and one of 16 keys, along the last two axes."""

    formulation = "backward flash"


@dataclass(frozen=True)
class BackwardFlashShape:
    """What warps and blocks have.

    Attributes:
        queries: Of the kernel whose rows are queries and columns keys.
        keys: Of the kernel whose rows are keys and columns queries.
    """

    queries: FlashShape
    keys: FlashShape


class KeyAxis(FlashAxis):
    """An axis whose rows are keys: the window of a key holds the queries that see it."""

    @property
    def size(self) -> int | None:
        """Borders make a difference, and so does a stride."""
        return None

    def keys(self, queries: int) -> int:
        """Queries, about and on average, that see any of so many neighboring keys."""
        return min(queries - 1 + self.kernel_size + (self.stride - 1), self.longest)

    def window(self, residue: Any, t: Any) -> tuple[Any, Any]:
        """Where the queries of a key begin and end; keys beyond the end have those of the last."""
        if self.longest == 1:
            return 0, 1
        group = self.group(residue)
        return group_queries(minimum(t, group - 1), group, self.kernel_size, self.stride, self.is_causal)


@dataclass(frozen=True)
class GradientLayout(Layout):
    """Shared memory of a block: rows of two tensors, a ring of columns of two others, and what else there is.

    Attributes:
        of_keys: Whether rows are keys: then columns have statistics, and with a bias each warp sums for it.
    """

    of_keys: bool = False

    @property
    def own_values(self) -> int:
        """Where the rows of the second tensor begin."""
        return self.shape.queries * self.key.length

    @property
    def ring(self) -> int:
        """Where the first stage begins."""
        return self.shape.queries * (self.key.length + self.value.length)

    @property
    def statistics(self) -> int:
        """Where the statistics of columns begin in a stage: of each kind one after the other."""
        return super().stage

    @property
    def stage(self) -> int:
        """Numbers of a stage."""
        return super().stage + (STATISTICS * WIDE * self.shape.keys if self.of_keys else 0)

    @property
    def entries(self) -> int:
        """Of a head's bias, as many numbers as a warp's sums have; 0 where there are none."""
        return bias_entries(self.problem) if self.of_keys and self.problem.bias else 0

    @property
    def pitch(self) -> int:
        """Numbers of 32 bits from one row of a sub-tile's gradients of scores to the next."""
        return self.shape.keys + _APART

    def sums(self, warp: Any) -> Any:
        """Where a warp's sums for the bias begin."""
        return self.table + warp * (WIDE * self.entries)

    def square(self, warp: Any) -> Any:
        """Where a warp has the gradients of the scores of a sub-tile."""
        # From a multiple of 16 bytes on.
        begin = self.table + -(-self.shape.warps_of_block * WIDE * self.entries // 8) * 8
        return begin + warp * (WIDE * SIDE * self.pitch)

    @property
    def size(self) -> int:
        """Numbers in all."""
        return int(self.square(self.shape.warps_of_block)) if self.entries else self.table


def bias_entries(problem: NAProblem) -> int:
    """Of one head."""
    return prod(problem.bias_shape[1:])


def least_registers(problem: NAProblem, shape: BackwardFlashShape) -> int:
    """Registers that a lane of either kernel cannot do without: sums, scores and gradients of weights."""
    key, value = padded(problem.head_dim), padded(problem.head_dim_v)
    of_queries = shape.queries.tiles_of_warp * (key // 2 + shape.queries.keys)
    return min(of_queries, shape.keys.tiles_of_warp * ((key + value) // 2 + shape.keys.keys))


def blocks_of_keys(problem: NAProblem, tile: FlashTile, shape: FlashShape) -> int:
    """Of a sample's head, of all groups of a dilation."""
    return prod(axis.dilation * axis.blocks for axis in axes(problem, tile, shape, KeyAxis))
