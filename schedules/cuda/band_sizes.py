"""Sizes of a GPU's blocks for the band formulation: what fits, and what is taken where nothing was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
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


#: What blocks have of sub-tiles: all at once, each with a warp of its own, or those along one axis in turn.
AT_ONCE, COLUMNS_IN_TURN, HEADS_IN_TURN = "tiles at once", "columns in turn", "heads in turn"


def axis_in_turn(sketch: str) -> str | None:
    """``columns`` or ``heads``, where those of a block are computed one after the other."""
    return sketch.removesuffix(" in turn") if sketch != AT_ONCE else None


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


#: More than this no sketch has of a block, and less none.
MAX_IN_BLOCK, SMALLEST = BlockShape(16, 8, 8), BlockShape(1, 1, 1)


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


def parts_of_rows(rows: int, warps: int, row_warps: int) -> int:
    """Into how many parts each of so many rows is cut that a block's warps copy, each part by a warp of its own.

    Whole rows where every warp has one: what of an address depends on the row is found once for it. Of fewer rows as
    many parts as leave the busiest warp the least.

    Args:
        rows: Those that are copied at once.
        warps: Of the block.
        row_warps: How often a warp copies for a row.
    """
    if rows >= warps:
        return 1
    return min(divisors(row_warps), key=lambda parts: (-(-rows * parts // warps) * (row_warps // parts), parts))


def default_rows(tile: BandTile, row: BandAxis, column: BandAxis) -> int:
    """Rows of the band that are computed at once, of those that divide all."""
    return largest_divisor(row.keys, _STEP * _LANES // (SIDE * column.keys))


def keeps_scores(problem: NAProblem, tile: BandTile) -> bool:
    """Whether the scores of a sub-tile fit the registers of a warp."""
    row, column = axes(problem, tile)
    numbers = row.keys * column.keys + problem.head_dim_v + problem.head_dim * bytes_of(problem) // 4
    return numbers * SIDE // _LANES <= _REGISTERS


def least_registers(problem: NAProblem, tile: BandTile) -> int:
    """Registers that a lane cannot do without: what it holds at one moment, whatever the compiler does.

    With one pass the scores of all keys, until their maximum is known; with two the sums of values, from one step to
    the next. Beside them two maxima, and with two passes two sums of weights.
    """
    row, column = axes(problem, tile)
    numbers, beside = (row.keys * column.keys, 2) if tile.passes == 1 else (problem.head_dim_v, 4)
    return numbers * SIDE // _LANES + beside


def extents(problem: NAProblem, tile: BandTile) -> dict[str, int]:
    """What a :class:`BlockShape` counts, of the whole map."""
    row, column = axes(problem, tile)
    return {"rows": row.tiles, "columns": column.tiles, "heads": heads_of(problem)}


def sizes_along(problem: NAProblem, tile: BandTile, axis: str, in_turn: bool = False) -> list[int]:
    """How many sub-tiles along ``rows`` or ``columns``, or ``heads``, a block can have; one alone is not in turn."""
    return [
        n for n in divisors(extents(problem, tile)[axis]) if (2 if in_turn else 1) <= n <= getattr(MAX_IN_BLOCK, axis)
    ]


def can_be_in_turn(problem: NAProblem, tile: BandTile, target: NATarget, sketch: str) -> bool:
    """Whether a block can have what the sketch says one after the other."""
    axis = axis_in_turn(sketch)
    assert axis is not None
    sizes = sizes_along(problem, tile, axis, in_turn=True)
    if not sizes:
        return False
    smallest = replace(SMALLEST, **{axis: sizes[0]})
    return shared_bytes(smallest, problem, tile, axis) <= target.max_shared_bytes


def default_shape(problem: NAProblem, tile: BandTile, target: NATarget, turn: str | None = None) -> BlockShape:
    """The default of a block, whose sub-tiles along ``turn`` are computed in turn.

    Of the shapes that leave room for a second block, have no more than the wanted warps and not too few, the one that
    loads the fewest keys for each query: what a block's queries see beside them comes from the second cache, again for
    each block, and that is the first limit of a GPU here. Of equal ones the largest.
    """
    row, column = axes(problem, tile)
    options = product(*(sizes_along(problem, tile, axis, axis == turn) for axis in extents(problem, tile)))
    most = target.max_shared_bytes

    def goodness(shape: BlockShape) -> tuple[bool, bool, int, float, int]:
        warps = shape.tiles // (1 if turn is None else getattr(shape, turn))
        taken = shared_bytes(shape, problem, tile, turn)
        loaded = keys_of(shape, tile, row, column) / (shape.rows * shape.columns)
        fits, beside_another = taken <= most and warps <= _WARPS, taken <= most // _BLOCKS
        return fits, beside_another, min(warps, _FEW_WARPS), -loaded, shape.tiles

    return max((BlockShape(*option) for option in options), key=goodness)
