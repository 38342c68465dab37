"""Sizes of a GPU's blocks for the band formulation: what fits, and what is taken where nothing was measured."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.base import ITEM_BYTES
from tvm_na.schedules.base import divisors, largest_divisor
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.band_axis import SIDE, BandAxis, BandTile, axes

_COPIED_BYTES = 16  # at once, by a thread
#: Registers of a lane for scores, sums of values and queries: of 255, as many as leave enough for the rest.
_REGISTERS = 176
_STEP = 64  # of them for scores, where they are computed in steps
_LANES = 32
_FEW_WARPS, _WARPS = 4, 8  # of a block: at least, where there are as many sub-tiles; at most
_BLOCKS = 2  # of a multiprocessor: one computes while the other waits for memory


@dataclass(frozen=True)
class BlockShape:
    """What a block has.

    Attributes:
        rows: Sub-tiles along rows.
        columns: Sub-tiles along columns.
        heads: Heads.
    """

    rows: int
    columns: int
    heads: int

    @property
    def tiles(self) -> int:
        """Sub-tiles in all."""
        return self.rows * self.columns * self.heads


#: More than this no sketch has of a block.
MAX_IN_BLOCK = BlockShape(16, 8, 8)


def bytes_of(problem: NAProblem) -> int:
    """Bytes of a number of query, key and value."""
    return ITEM_BYTES[problem.tensor_dtype]


def copied(problem: NAProblem) -> int:
    """Numbers that a thread copies at once."""
    return _COPIED_BYTES // bytes_of(problem)


def heads_of(problem: NAProblem) -> int:
    """The heads that a block can have: all, or those that share keys."""
    return problem.heads if problem.heads == problem.heads_kv else problem.heads // problem.heads_kv


def keys_of(shape: BlockShape, tile: BandTile, row: BandAxis, column: BandAxis, rows: int | None = None) -> int:
    """The keys that a block meets of each head, in ``rows`` rows of the band at a time (default: all)."""
    height = (shape.rows - 1) * tile.rows + (row.keys if rows is None else rows)
    return height * ((shape.columns - 1) * tile.columns + column.keys)


def shared_bytes(shape: BlockShape, problem: NAProblem, tile: BandTile, turn: str | None = None) -> int:
    """Shared memory of a block, whose sub-tiles along ``turn`` are computed in turn: queries, keys, values, the bias.

    Of heads in turn there are two at a time, one computed and one copied.
    """
    row, column = axes(problem, tile)
    step = default_rows(tile, row, column) if tile.passes == 2 else None
    keys = keys_of(shape, tile, row, column, step)
    padding = copied(problem)
    queries = shape.rows * shape.columns * SIDE * (problem.head_dim + padding)
    others = keys * (problem.head_dim + problem.head_dim_v + 2 * padding)
    rows = shape.rows * tile.rows * row.keys if tile.passes == 1 else 2 * problem.kernel_size[0]
    table = rows * column.bias_columns if problem.bias else 0
    heads = 2 if turn == "heads" else shape.heads
    heads_kv = heads if turn == "heads" or problem.heads == problem.heads_kv else 1
    return bytes_of(problem) * (queries * heads + others * heads_kv) + 4 * table * shape.heads


def default_rows(tile: BandTile, row: BandAxis, column: BandAxis) -> int:
    """Rows of the band that are computed at once, of those that divide all."""
    return largest_divisor(row.keys, _STEP * _LANES // (SIDE * column.keys))


def keeps_scores(problem: NAProblem, tile: BandTile) -> bool:
    """Whether the scores of a sub-tile fit the registers of a warp."""
    row, column = axes(problem, tile)
    numbers = row.keys * column.keys + problem.head_dim_v + problem.head_dim * bytes_of(problem) // 4
    return numbers * SIDE // _LANES <= _REGISTERS


def default_shape(problem: NAProblem, tile: BandTile, target: NATarget, turn: str | None = None) -> BlockShape:
    """The default of a block, whose sub-tiles along ``turn`` are computed in turn.

    Of the shapes that leave room for a second block, have no more than the wanted warps and not too few, the one that
    loads the fewest keys for each query: what a block's queries see beside them comes from the second cache, again for
    each block, and that is the first limit of a GPU here. Of equal ones the largest.
    """
    row, column = axes(problem, tile)
    options = product(
        *(
            [n for n in divisors(extent) if n <= most]
            for extent, most in (
                (row.tiles, MAX_IN_BLOCK.rows),
                (column.tiles, MAX_IN_BLOCK.columns),
                (heads_of(problem), MAX_IN_BLOCK.heads),
            )
        )
    )
    most = target.max_shared_bytes

    def goodness(shape: BlockShape) -> tuple[bool, bool, int, float, int]:
        warps = shape.tiles // (1 if turn is None else getattr(shape, turn))
        taken = shared_bytes(shape, problem, tile, turn)
        loaded = keys_of(shape, tile, row, column) / (shape.rows * shape.columns)
        fits, beside_another = taken <= most and warps <= _WARPS, taken <= most // _BLOCKS
        return fits, beside_another, min(warps, _FEW_WARPS), -loaded, shape.tiles

    return max((BlockShape(*option) for option in options), key=goodness)
