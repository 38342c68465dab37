"""How many threads a query or key has where gradients are gathered on a GPU, and which of them a block has."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem, most_bias_chunks
from tvm_na.problems.base import ITEM_BYTES
from tvm_na.schedules.base import divisors
from tvm_na.te.backward.gather_tile import BackwardGatherTile, chunks_of

#: Threads of a block, by default.
THREADS = 256
_CHANNELS = 8  # of a thread: as many as it takes to make the work beside the products small
_MOST = {"rows": 8, "columns": 32, "heads": 8}  # of a block
_SHARED_BYTES = 48 * 1024  # that every GPU gives a block
_FEWEST_GROUPS = 8  # of a block: with fewer there are not enough threads at work


def tiles(problem: BackwardProblem) -> list[BackwardGatherTile]:
    """The forms of the expression that are worth scheduling, the default first."""
    wide = max(problem.forward.head_dim, problem.forward.head_dim_v)
    lanes = 1
    while lanes < 32 and lanes * _CHANNELS < wide:
        lanes *= 2
    worth = [n for n in (lanes, lanes // 2, lanes * 2) if 1 <= n <= 32 and n <= wide]
    blocks = [BackwardGatherTile(n, *shape) for n in worth for shape in bias_blocks(problem, n)]
    return [*blocks, *(BackwardGatherTile(n) for n in (worth[:1] if blocks else worth))]


def bias_blocks(problem: BackwardProblem, lanes: int) -> list[tuple[int, int]]:
    """Rows and columns of keys whose sums for the bias fit into the shared memory of a block, the best first; at most
    two, and none where that would be too few keys, or too many blocks."""
    forward = problem.forward
    if not forward.bias:
        return []
    entries = prod(forward.bias_shape[1:])
    groups = min(THREADS // lanes, _SHARED_BYTES // (entries * ITEM_BYTES[forward.accum_dtype]))
    shapes = [
        (y, x)
        for y, x in _shapes(forward, groups)
        if prod(chunks_of(forward, y, x)) <= most_bias_chunks(problem)
        and y * x >= min(_FEWEST_GROUPS, prod(forward.spatial[-2:]))
    ]
    best = sorted(shapes, key=lambda shape: cost(forward, *shape))[:1]
    half = sorted((s for s in shapes if prod(s) <= groups // 2), key=lambda shape: cost(forward, *shape))[:1]
    return list(dict.fromkeys(best + half))


def options(extent: int, what: str) -> list[int]:
    """How many of ``extent`` rows, columns or heads a block may have: divisors, and powers of two."""
    most = min(_MOST[what], extent)
    powers = [1 << n for n in range(most.bit_length())]
    return sorted({n for n in (*divisors(extent), *powers) if n <= most})


def _shapes(problem: NAProblem, groups: int) -> Iterator[tuple[int, int]]:
    """Rows and columns of blocks with at most so many positions."""
    rows, columns = (1, *problem.spatial)[-2:]
    for y in options(rows, "rows"):
        yield from ((y, x) for x in options(columns, "columns") if y * x <= groups)


def cost(problem: NAProblem, y: int, x: int) -> tuple[int, int]:
    """The rows of channels that blocks of ``y`` x ``x`` positions read, and how many blocks there are."""
    rows, columns = (1, *problem.spatial)[-2:]
    halo_y, halo_x = [0, *((k - 1) * d for k, d in zip(problem.kernel_size, problem.dilation, strict=True))][-2:]
    blocks = -(-rows // y) * -(-columns // x)
    # What neighbors read is read again by each block, but no more than there is.
    return blocks * min(y + halo_y, rows) * min(x + halo_x, columns), blocks


def block_shape(problem: NAProblem, lanes: int, heads: int) -> tuple[int, int, int]:
    """Rows, columns and heads of a block that together read the fewest rows of channels, for all positions."""
    groups = max(1, THREADS // lanes)
    y, x = min(_shapes(problem, groups), key=lambda shape: cost(problem, *shape))
    return y, x, max(n for n in options(heads, "heads") if n * y * x <= groups)


def nearest(wanted: int, among: tuple[int, ...]) -> int:
    """The largest of ``among`` that is at most ``wanted``, else the smallest."""
    return max((n for n in among if n <= wanted), default=min(among))
