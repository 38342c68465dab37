"""How many threads, queries and keys a block of the gather formulation has: what shared memory and loads allow."""

from __future__ import annotations

from math import prod

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.base import ITEM_BYTES
from tvm_na.schedules.base import divisors
from tvm_na.te.attention.gather_tile import GatherTile

#: Threads of a block, by default.
THREADS = 128
#: At most, of a block.
MAX_THREADS, MAX_ROWS, MAX_HEADS = 1024, 4, 8
#: Of the caches: shorter keys of neighboring heads share a line.
LINE_BYTES = 128
_LOAD_BYTES = 16  # of the widest load
_SHARED_BYTES = 48 * 1024  # that every GPU gives a block
_FEWEST_KEYS, _FEWEST_QUERIES = 8, 4


def load_width(problem: NAProblem, elements: int) -> int:
    """The most elements that one load can read of runs of so many."""
    return min(_LOAD_BYTES // ITEM_BYTES[problem.dtype], elements & -elements)


def group_threads(problem: NAProblem) -> int:
    """The threads of a query: as many as read a key with the widest loads; a power of two, from 4 up to a warp."""
    loads = problem.head_dim // load_width(problem, problem.head_dim)
    return max(4, min(32, 1 << (loads.bit_length() - 1)))


def spread(elements: int, group: int) -> int:
    """Elements with padding: an odd number of groups, so that the queries of a warp begin in different banks."""
    groups = -(-elements // group)
    return (groups + 1 - groups % 2) * group


def padded_parts(tile: GatherTile) -> int:
    """Elements from the parts of a key to those of the next: threads that sum them up meet different banks."""
    return tile.parts + (tile.parts > 1)


def keys_in_shared(problem: NAProblem, tile: GatherTile, queries: int) -> int:
    """For how many keys at once shared memory holds the parts of so many queries, beside their scores."""
    elements = _SHARED_BYTES // (queries * ITEM_BYTES[problem.accum_dtype])
    group = group_threads(problem)
    if tile.lanes:  # as many scores as keys at once; one more set for the second time
        return max(1, (elements // 2 - 4 * group) // (padded_parts(tile) + 1))
    return max(1, (elements - 2 * spread(prod(problem.kernel_size), group) - 2 * group) // padded_parts(tile))


def queries_in_shared(problem: NAProblem, tile: GatherTile, limit: int) -> int:
    """How many queries, at most ``limit``, shared memory has room for, if each has a few keys at once."""
    enough = min(tile.lanes or _FEWEST_KEYS, prod(problem.kernel_size))
    fitting = (n for n in range(limit, 0, -1) if keys_in_shared(problem, tile, n) >= enough)
    return next(fitting, 1)


def tiles(problem: NAProblem) -> list[GatherTile]:
    """The forms of the expression that are worth scheduling, the default first."""
    group = group_threads(problem)
    parts = [d for d in reversed(divisors(problem.head_dim)) if group % d == 0]
    kept = [GatherTile(n) for n in parts[:2]]
    kept = [tile for tile in kept if queries_in_shared(problem, tile, _FEWEST_QUERIES) == _FEWEST_QUERIES]
    return [*kept, GatherTile(parts[0], lanes=group)]
