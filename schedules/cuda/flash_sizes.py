"""Sizes of warps and blocks for the flash formulation: which fit a GPU, and which are taken where nothing was measured.

What a kernel takes is estimated from what it does for a query: instructions, products, loads from shared memory, keys
and values that come from the second cache, at the rates of ``tvm_na/targets/gpus.py``. No GPU has confirmed it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

from tvm_na.problems.attention import NAProblem
from tvm_na.targets import gpus
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.flash_axis import FlashAxis, axes
from tvm_na.te.attention.flash_layout import Layout
from tvm_na.te.attention.flash_tile import SIDE, FlashShape, FlashTile, can_be_swizzled, padded

_ITEM_BYTES = 2
#: Along each axis.
TILES, WARPS = (1, 2), (1, 2, 4, 8)
#: Of a step; steps in shared memory.
KEYS, STAGES = (16, 32, 48, 64, 96, 128), (2, 3, 4)
_MOST_WARPS = 8  # of a default

# Cycles of a multiprocessor for a load of 16 x 16 numbers.
_LOAD = SIDE * SIDE * _ITEM_BYTES // gpus.SHARED_BYTES_OF_CYCLE
# Instructions of a lane for a score, for a step, for a copy of 16 bytes.
_SCORE, _STEP, _COPY = 5.5, 60, 3
# Registers of a lane beside scores, sums and queries, of a sub-tile and in all; more for a bias (of a sub-tile) and for
# places that are permuted.
_OF_TILE, _BESIDE, _OF_BIAS, _OF_SWIZZLE = 6, 36, 8, 6
# Of 255, as many as the compiler was seen to manage without memory, by this estimate.
ENOUGH_REGISTERS = 232


@dataclass(frozen=True)
class Box:
    """The queries of a block, and the keys that it and its warps meet.

    Attributes:
        queries: Those that are on the map, on average.
        rows, columns: Of keys, of the block; all axes but the last are rows.
        warp_rows, warp_columns: Those that a warp of it sees.
        fits: Whether the block is not much larger than the map.
    """

    queries: float
    rows: int
    columns: int
    warp_rows: int
    warp_columns: int
    fits: bool


@functools.lru_cache(maxsize=2048)
def box(
    problem: NAProblem,
    tile: FlashTile,
    tiles: tuple[int, int, int],
    warps: tuple[int, int, int],
    kind: type[FlashAxis] = FlashAxis,
) -> Box:
    """Of a block with so many sub-tiles and warps; blocks at the border of the map are counted as others."""
    along = axes(problem, tile, FlashShape(tiles, warps, SIDE, 2, False, False), kind)
    *outer, last = along
    return Box(
        queries=prod(axis.longest / axis.blocks for axis in along),
        rows=prod(axis.keys(axis.of_block) for axis in outer),
        columns=last.keys(last.of_block),
        warp_rows=prod(axis.keys(axis.of_warp) for axis in outer),
        warp_columns=last.keys(last.of_warp),
        fits=all(axis.of_block < 2 * axis.longest or axis.of_block == axis.queries for axis in along),
    )


@dataclass(frozen=True)
class Work:
    """What a block does for a query.

    Attributes:
        steps: Of the block.
        warp_steps: Those that its warps compute, all together.
        products: Queries by keys, where one pass over the window needs as many as it has keys.
        keys: Keys with their values that come from global memory.
    """

    steps: float
    warp_steps: float
    products: float
    keys: float


# mypy takes what a dataclass has for its class.
def work(problem: NAProblem, tile: FlashTile, shape: FlashShape, kind: type[FlashAxis] = FlashAxis) -> Work:
    """See :class:`Work`."""
    found = box(problem, tile, shape.tiles, shape.warps, kind)  # type: ignore[arg-type]
    steps = -(-found.columns // shape.keys)
    # The keys of one of several warps begin anywhere in a step.
    seen = steps if shape.warps[-1] == 1 else min(steps, (found.warp_columns + shape.keys - 1) / shape.keys)
    warp_steps = shape.warps_of_block * found.warp_rows * seen / found.queries
    return Work(
        steps=found.rows * steps / found.queries,
        warp_steps=warp_steps,
        products=warp_steps * shape.tiles_of_warp * SIDE * shape.keys,
        keys=found.rows * found.columns / found.queries,
    )


def registers(problem: NAProblem, shape: FlashShape) -> int:
    """Of a lane, an estimate."""
    in_keys, in_values = padded(problem.head_dim), padded(problem.head_dim_v)
    of_tile = in_values // 2 + shape.keys // 2 + (in_keys // 4 if shape.keeps_queries else 4)
    of_tile += _OF_TILE + (_OF_BIAS if problem.bias else 0)
    return shape.tiles_of_warp * of_tile + _BESIDE + (_OF_SWIZZLE if shape.swizzled else 0)


def shared_bytes(problem: NAProblem, shape: FlashShape) -> int:
    """Of a block."""
    return Layout(problem, shape).size * _ITEM_BYTES


@dataclass(frozen=True)
class Step:
    """What a warp does in a step.

    Attributes:
        products: Of tensor cores, 16 x 8 x 16 each.
        loads: Of 16 x 16 numbers from shared memory.
        others: Other instructions.
        turns: How often a block goes through all steps.
    """

    products: float
    loads: float
    others: float
    turns: int = 1


def cycles(problem: NAProblem, tile: FlashTile, shape: FlashShape, target: NATarget) -> float:
    """Of a multiprocessor for a query, an estimate."""
    k, v, tiles = padded(problem.head_dim) // SIDE, padded(problem.head_dim_v) // SIDE, shape.tiles_of_warp
    step = Step(
        products=tiles * 2 * (shape.keys // SIDE) * (k + v),
        loads=(shape.keys // SIDE) * (k + v) + (0 if shape.keeps_queries else tiles * k),
        others=tiles * (shape.keys // 2 * _SCORE + 4 * v),
    )
    blocks = blocks_at_once(shape, registers(problem, shape), shared_bytes(problem, shape), target)
    return bound(problem, work(problem, tile, shape), step, shape, blocks, target)


def bound(problem: NAProblem, done: Work, step: Step, shape: FlashShape, blocks: int, target: NATarget) -> float:
    """Cycles of a multiprocessor, which has so many blocks at once, for a query (or key), an estimate."""
    bytes_of_key = (problem.head_dim + problem.head_dim_v) * _ITEM_BYTES
    instructions = step.products + step.loads + step.others
    gpu = gpus.like(target)
    of_step = shape.warps_of_block * _STEP + shape.keys * bytes_of_key / 16 / gpus.WARP * _COPY
    needs = (
        (done.warp_steps * instructions + step.turns * done.steps * of_step) / gpus.SCHEDULERS,
        done.warp_steps * step.products * gpu.product,
        done.warp_steps * step.loads * _LOAD,
        step.turns * done.keys * bytes_of_key / gpu.cache_bytes,
        step.turns * done.steps * gpu.latency / (shape.stages - 1) / blocks,
    )
    return gpus.together(needs) * gpus.waits(blocks * shape.warps_of_block)


def blocks_at_once(shape: FlashShape, of_lane: int, of_block: int, target: NATarget) -> int:
    """Of a multiprocessor, with so many registers of a lane and bytes of shared memory of a block."""
    return max(1, gpus.blocks_at_once(target.arch, shape.warps_of_block, min(255, of_lane), of_block))


def shapes(
    problem: NAProblem, tile: FlashTile, swizzled: bool, kind: type[FlashAxis] = FlashAxis
) -> Iterator[FlashShape]:
    """Those that a default is chosen from."""
    tiles, warps = (_along(problem, options) for options in (TILES, WARPS))
    for of_warp, of_block in product(tiles, warps):
        if prod(of_block) <= _MOST_WARPS and box(problem, tile, of_warp, of_block, kind).fits:  # type: ignore[arg-type]
            for keys, stages, keeps in product(KEYS, STAGES, (False, True)):
                yield FlashShape(of_warp, of_block, keys, stages, swizzled, keeps)


def _along(problem: NAProblem, options: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Options along each axis that the problem has."""
    lacking = ((1,),) * (3 - problem.rank)
    return [(z, y, x) for z, y, x in product(*lacking, *(options,) * problem.rank)]


def is_good(problem: NAProblem, shape: FlashShape, target: NATarget) -> bool:
    """Whether a default may be so: it fits the GPU, and a lane's registers."""
    if registers(problem, shape) > ENOUGH_REGISTERS:
        return False
    return shared_bytes(problem, shape) <= target.max_shared_bytes


@functools.lru_cache(maxsize=256)
def default_shape(problem: NAProblem, tile: FlashTile, target: NATarget) -> FlashShape | None:
    """The one with the fewest :func:`cycles`, of those that are good; None if there is none.

    Its rows are permuted only where longer ones do not fit.
    """
    for swizzled in (False, True)[: 1 + can_be_swizzled(problem)]:
        good = [shape for shape in shapes(problem, tile, swizzled) if is_good(problem, shape, target)]
        if good:
            return min(good, key=lambda shape: cycles(problem, tile, shape, target))
    return None
