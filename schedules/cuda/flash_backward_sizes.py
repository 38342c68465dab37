"""Sizes of warps and blocks for the flash formulation of the gradients: as ``flash_sizes.py``, for two kernels."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem, most_bias_chunks
from tvm_na.schedules.cuda.flash_sizes import ENOUGH_REGISTERS, Step, blocks_at_once, bound, shapes, work
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.flash_axis import FlashAxis
from tvm_na.te.attention.flash_tile import SIDE, FlashShape, can_be_swizzled, padded
from tvm_na.te.backward.flash_tile import BackwardFlashShape, BackwardFlashTile, GradientLayout, KeyAxis, blocks_of_keys

_ITEM_BYTES, _LANES = 2, 32
#: Of a step.
COLUMNS = (16, 32, 48, 64)
# Instructions of a lane for a score: of queries in both turns, and of keys; more for a bias each time, for its sums.
_QUERY_SCORE, _KEY_SCORE, _BIAS, _SUMS = 11.5, 7.0, 7.0, 5.0
# Registers of a lane beside sums, scores, gradients of weights and rows: of a sub-tile, and in all; more for a bias and
# for places that are permuted.
_OF_TILE, _BESIDE, _OF_BIAS, _OF_SWIZZLE = 12, 40, 10, 6


@dataclass(frozen=True)
class Half:
    """One of the two kernels.

    Attributes:
        of_keys: Whether its rows are keys.
    """

    problem: NAProblem
    of_keys: bool

    @property
    def axis(self) -> type[FlashAxis]:
        """What an axis of its rows is."""
        return KeyAxis if self.of_keys else FlashAxis

    @property
    def channels(self) -> int:
        """Those of a pair of rows or columns, as tensor cores multiply them."""
        return padded(self.problem.head_dim) + padded(self.problem.head_dim_v)

    @property
    def summed(self) -> int:
        """Channels that a row has sums of."""
        return self.channels if self.of_keys else padded(self.problem.head_dim)

    def shared_bytes(self, shape: FlashShape) -> int:
        """Of a block."""
        return GradientLayout(self.problem, shape, self.of_keys).size * _ITEM_BYTES

    def registers(self, shape: FlashShape) -> int:
        """Of a lane, an estimate."""
        of_tile = self.summed // 2 + shape.keys + (self.channels // 4 if shape.keeps_queries else 4)
        of_tile += _OF_TILE + (_OF_BIAS if self.problem.bias else 0)
        return shape.tiles_of_warp * of_tile + _BESIDE + (_OF_SWIZZLE if shape.swizzled else 0)

    def step(self, shape: FlashShape) -> Step:
        """Of a warp."""
        tiles, columns, turns = shape.tiles_of_warp, shape.keys // SIDE, 1 if self.of_keys else 2
        multiplied = (turns * self.channels + self.summed) // SIDE
        score = _KEY_SCORE + (_SUMS if self.problem.bias else 0) if self.of_keys else _QUERY_SCORE
        score += turns * _BIAS if self.problem.bias else 0
        own = 0 if shape.keeps_queries else turns * tiles * self.channels // SIDE
        products, loads = tiles * 2 * columns * multiplied, columns * multiplied + own
        return Step(products, loads, tiles * shape.keys // 2 * score, turns)

    def cycles(self, tile: BackwardFlashTile, shape: FlashShape, target: NATarget) -> float:
        """Of a multiprocessor for a row, an estimate."""
        blocks = blocks_at_once(shape, self.registers(shape), self.shared_bytes(shape), target)
        done = work(self.problem, tile, shape, self.axis)
        return bound(self.problem, done, self.step(shape), shape, blocks, target)

    def is_good(self, tile: BackwardFlashTile, shape: FlashShape, target: NATarget) -> bool:
        """Whether a default may be so: it fits the GPU, a lane's registers, and the scratch memory."""
        if shape.keys not in COLUMNS or self.registers(shape) > ENOUGH_REGISTERS:
            return False
        if self.shared_bytes(shape) > target.max_shared_bytes:
            return False
        return not self.of_keys or has_scratch(self.problem, tile, shape)


def has_scratch(problem: NAProblem, tile: BackwardFlashTile, keys: FlashShape) -> bool:
    """Whether sums for a bias of all blocks of keys have a place."""
    return not problem.bias or _has_scratch(problem, tile, keys.tiles, keys.warps)


@functools.lru_cache(maxsize=1024)
def _has_scratch(
    problem: NAProblem, tile: BackwardFlashTile, tiles: tuple[int, int, int], warps: tuple[int, int, int]
) -> bool:
    blocks = blocks_of_keys(problem, tile, FlashShape(tiles, warps, SIDE, 2, False, False))
    return blocks <= most_bias_chunks(BackwardProblem(problem))


@functools.lru_cache(maxsize=256)
def default_shape(problem: NAProblem, tile: BackwardFlashTile, target: NATarget) -> BackwardFlashShape | None:
    """The ones with the fewest cycles, of those that are good; None if there are none for one of the kernels."""
    queries, keys = (_default(Half(problem, of_keys), tile, target) for of_keys in (False, True))
    return None if queries is None or keys is None else BackwardFlashShape(queries, keys)


def _default(half: Half, tile: BackwardFlashTile, target: NATarget) -> FlashShape | None:
    """Its rows are permuted only where longer ones do not fit."""
    for swizzled in (False, True)[: 1 + can_be_swizzled(half.problem)]:
        found = shapes(half.problem, tile, swizzled, half.axis)
        good = [shape for shape in found if half.is_good(tile, shape, target)]
        if good:
            return min(good, key=lambda shape: half.cycles(tile, shape, target))
    return None


def cycles(problem: NAProblem, tile: BackwardFlashTile, shape: BackwardFlashShape, target: NATarget) -> float:
    """Of both kernels for a position of a query's head, an estimate."""
    of_keys = Half(problem, True).cycles(tile, shape.keys, target)
    return Half(problem, False).cycles(tile, shape.queries, target) + of_keys
