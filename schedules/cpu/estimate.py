"""What a tile of the lanes formulation is expected to take, from which the default is chosen."""

from __future__ import annotations

from tvm_na.problems.attention import NAProblem
from tvm_na.schedules.cpu.blocks import Block, score_block, value_block
from tvm_na.schedules.cpu.vectors import CACHE_BYTES, FAR, NEAR, channel_vector, vector_cycles
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.lanes_tile import Geometry, LanesTile, lanes_of, spanned_columns
from tvm_na.te.common.rows import Rows

# Cycles of a vector of scores from products to weights, most of them of its powers of two.
_SOFTMAX = 10.0
# Cycles of a query beside: the lanes of its vectors are folded one by one, and its sum is inverted.
_QUERY = 30.0


def values_are_shared(problem: NAProblem, tile: LanesTile) -> bool:
    """Whether all queries of a tile are multiplied with the same values."""
    return not tile.exact_values or spanned_columns(problem, tile.queries) == problem.kernel_size[-1]


def scores_of(problem: NAProblem, tile: LanesTile, target: NATarget) -> Block:
    """The block of accumulators of scores.

    A packed row of keys that exceeds the first cache has the channels of a key far apart, in few of its sets.
    """
    of_number = (8 if problem.dtype == "float64" else 4) / tile.at_once
    packed = Geometry(problem, tile).packed_width * problem.head_dim * of_number
    vectors = lanes_of(problem, tile) // tile.vector
    load = FAR if packed > CACHE_BYTES else NEAR
    return score_block(tile.queries, vectors, Rows(problem).keys, target.vector_registers, load)


def row_cycles(problem: NAProblem, tile: LanesTile, target: NATarget) -> float:
    """Cycles of a core for one head's queries of a row of the map."""
    rows, lanes, registers = Rows(problem).keys, lanes_of(problem, tile), target.vector_registers
    vectors = lanes // tile.vector
    # Products of pairs are expected to take as long as multiply-adds.
    scores = -(-problem.head_dim // tile.at_once) * scores_of(problem, tile, target).cycles
    softmax = _SOFTMAX * tile.queries * rows * vectors
    wide = vector_cycles(tile.vector, problem.accum_dtype)
    channels = channel_vector(problem.head_dim_v, tile.vector)
    keys = rows * -(-(problem.kernel_size[-1] if tile.exact_values else lanes) // tile.at_once)
    block = value_block(tile.queries, problem.head_dim_v // channels, values_are_shared(problem, tile), registers)
    values = keys * block.cycles * vector_cycles(channels, problem.accum_dtype)
    columns = -(-problem.spatial[-1] // problem.dilation[-1])
    tiles = problem.dilation[-1] * -(-columns // tile.queries)
    return tiles * ((scores + softmax) * wide + values + _QUERY * tile.queries)
