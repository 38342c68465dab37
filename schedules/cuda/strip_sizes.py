"""Sizes of strips: which blocks fit a GPU, and which are taken where nothing was measured.

What a kernel takes is estimated from what it does for a query: instructions, loads from shared memory, keys and values
that come from the second cache, how much of a multiprocessor has work. No GPU has confirmed it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from tvm_na.problems.attention import NAProblem
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.flash_tile import SIDE
from tvm_na.te.attention.strip_axis import axes, keys_of
from tvm_na.te.attention.strip_layout import PART, Layout
from tvm_na.te.attention.strip_tile import KEYS, StripShape, StripTile

_ITEM_BYTES, _LANES = 2, 32
MOST_WARPS = 8  # of a block along rows, and in all of a default
COLUMNS, PARTS, STAGES = (1, 2, 4), (1, 2, 4), (2, 3)
#: Registers of a lane for scores, sums of values and queries: of 255, as many as leave enough for the rest.
_MOST_REGISTERS, _BESIDE = 176, 48
# Of a multiprocessor: schedulers, cycles of a product of 16 x 8 x 16, of a load of 16 x 16 numbers and of one of 32
# numbers, bytes of a cycle from the second cache, cycles until they come, registers, threads, warps that hide each
# other's latencies.
_SCHEDULERS, _PRODUCT, _LOAD, _READ, _BYTES, _LATENCY = 4, 2, 4, 1, 24, 800
_REGISTERS, _WARPS, _HIDING = 65536, 64, 16
# Instructions of a lane for a score, one more for its bias, for a step, for a copy, for a key of a table.
_SCORE, _OF_BIAS, _STEP, _COPY, _WRITE = 6.5, 1, 150, 8, 20
_PARTLY_HIDDEN = 0.25  # of what is not the first limit
#: A default reads no more keys than so many times those of the map, where it can: parts of a strip share some.
_FEW_TWICE = 1.15
#: And takes no more steps, where it can: a call of one sample has few blocks, and waits for each of their steps.
_FEW_STEPS = 16


@dataclass(frozen=True)
class Work:
    """What blocks do, of one head of one group.

    Attributes:
        blocks: Of them.
        steps: Of a block.
        tiles: Sub-tiles that are computed.
        copied: Keys that are copied with their values, by all blocks.
    """

    blocks: int
    steps: int
    tiles: int
    copied: int


@functools.lru_cache(maxsize=4096)
def work(problem: NAProblem, tile: StripTile, shape: StripShape) -> Work:
    """See :class:`Work`; of the group with the most positions."""
    row, column = axes(problem, tile, shape)
    layout = Layout(problem, tile, shape)
    tiles = -(-row.longest // tile.rows) * -(-column.longest // tile.columns)
    return Work(row.blocks * column.blocks, column.tiles, tiles, row.blocks * layout.rows * layout.plan.copied)


def traffic(problem: NAProblem, tile: StripTile, shape: StripShape) -> float:
    """How often a key is read, on average."""
    row, column = axes(problem, tile, shape)
    return work(problem, tile, shape).copied / (row.longest * column.longest)


def shared_bytes(problem: NAProblem, tile: StripTile, shape: StripShape) -> int:
    """Of a block."""
    return Layout(problem, tile, shape).size * _ITEM_BYTES


def registers(problem: NAProblem, tile: StripTile) -> int:
    """Of a lane, an estimate: scores and queries, or weights, sums of values and the next queries."""
    scores, queries, sums = keys_of(problem, tile) // 2, problem.head_dim // 4, problem.head_dim_v // 2
    return max(scores + queries, scores // 2 + sums + queries) + _BESIDE


def keeps_scores(problem: NAProblem, tile: StripTile) -> bool:
    """Whether the scores of a sub-tile fit the registers of a warp, and its sums of values after them."""
    return registers(problem, tile) <= _MOST_REGISTERS + _BESIDE


def cycles(problem: NAProblem, tile: StripTile, shape: StripShape, target: NATarget) -> float:
    """Of a multiprocessor for a query, an estimate."""
    done, layout = work(problem, tile, shape), Layout(problem, tile, shape)
    blocks, k, v = keys_of(problem, tile) // KEYS, problem.head_dim // SIDE, problem.head_dim_v // SIDE
    row, column = axes(problem, tile, shape)
    products = blocks * k + -(-blocks // 2) * (2 * v + 1)
    loads = -(-blocks // 2) * (k + v)
    scores = 4 * blocks
    instructions = products + loads + scores * (_SCORE + (_OF_BIAS if problem.bias else 0)) + 8 * v + _STEP
    of_key = (problem.head_dim + problem.head_dim_v) // PART
    table = layout.table_shape[0] * layout.table_shape[1] * done.blocks
    per_lane = (done.copied * of_key * _COPY + table * _WRITE) / _LANES
    at_once = blocks_at_once(problem, tile, shape, target)
    needs = (
        (done.tiles * instructions + per_lane) / _SCHEDULERS,
        done.tiles * products * _PRODUCT,
        done.tiles * (loads * _LOAD + (scores * _READ if problem.bias else 0)),
        done.copied * of_key * PART * _ITEM_BYTES / _BYTES,
        done.blocks * (1 + done.steps / shape.stages) * _LATENCY / at_once,
    )
    busy = max(needs) + _PARTLY_HIDDEN * (sum(needs) - max(needs))
    waits = 1 + max(0, _HIDING - at_once * shape.warps) / (2 * _HIDING)
    # Of a block's warps those that have queries; the others wait for them.
    idle = done.blocks * done.steps * shape.warps / done.tiles
    return busy * waits * (1 + (idle - 1) / 4) / (row.longest * column.longest)


def blocks_at_once(problem: NAProblem, tile: StripTile, shape: StripShape, target: NATarget) -> int:
    """Of a multiprocessor."""
    by_registers = _REGISTERS // (_LANES * shape.warps * min(255, registers(problem, tile)))
    by_memory = (target.max_shared_bytes + 1024) // (shared_bytes(problem, tile, shape) + 1024)
    return max(1, min(by_registers, by_memory, _WARPS // shape.warps))


def rows_of_warps(problem: NAProblem, tile: StripTile) -> tuple[int, ...]:
    """How many warps a block can have along rows: of those that make as many strips, the fewest."""
    row, _ = axes(problem, tile, StripShape(1, 1, 1, 2))
    tiles = row.blocks
    fewest = {-(-tiles // n): n for n in range(min(tiles, MOST_WARPS), 0, -1)}
    return tuple(sorted(fewest.values()))


def some_of(options: tuple[int, ...], steps: int) -> tuple[int, ...]:
    """Those that are of use for so many sub-tiles along columns: the first, and what is at most as many."""
    return tuple(n for n in options if n == 1 or n <= steps)


def options(problem: NAProblem, tile: StripTile) -> dict[str, tuple[int, ...]]:
    """The values of each field of a :class:`StripShape`."""
    _, column = axes(problem, tile, StripShape(1, 1, 1, 2))
    steps = column.tiles
    return {
        "rows": rows_of_warps(problem, tile),
        "columns": some_of(COLUMNS, steps),
        "parts": some_of(PARTS, steps),
        "stages": STAGES,
    }


def shapes(problem: NAProblem, tile: StripTile) -> Iterator[StripShape]:
    """All of them."""
    for values in product(*options(problem, tile).values()):
        yield StripShape(*values)


@functools.lru_cache(maxsize=256)
def default_shape(problem: NAProblem, tile: StripTile, target: NATarget) -> StripShape | None:
    """Of those that fit a GPU the one with the fewest :func:`cycles`; None if there is none.

    Of those that read few keys twice, if there are any, as a GPU has least of bytes; of these with few steps.
    """
    good = [
        shape
        for shape in shapes(problem, tile)
        if shape.warps <= MOST_WARPS and shared_bytes(problem, tile, shape) <= target.max_shared_bytes
    ]
    if not good or not keeps_scores(problem, tile):
        return None
    least = max(_FEW_TWICE, min(traffic(problem, tile, shape) for shape in good))
    few = [shape for shape in good if traffic(problem, tile, shape) <= least]
    short = [shape for shape in few if work(problem, tile, shape).steps <= _FEW_STEPS]
    return min(short or few, key=lambda shape: cycles(problem, tile, shape, target))
