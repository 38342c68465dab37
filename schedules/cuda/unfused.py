"""The schedules of the unfused operators on a GPU, one kernel each, without tensor cores.

A block has some queries (of sums over queries, some keys) of a sample: of some rows, columns and heads. Each is a group
of neighboring threads, ``threadIdx.x``, which read a key or a query together. What of a block lies in one piece in
memory, scores and weights, all its threads write or read in one piece, whatever the window.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tvm_na.problems.base import ITEM_BYTES
from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.schedules.base import Formulations, SearchSpace, divisors, largest_divisor
from tvm_na.schedules.cuda.gather_sizes import (
    LINE_BYTES,
    MAX_HEADS,
    MAX_ROWS,
    MAX_THREADS,
    THREADS,
    group_threads,
    load_width,
)
from tvm_na.schedules.cuda.groups import GroupSchedule
from tvm_na.targets.target import NATarget
from tvm_na.te.unfused.tiles import UnfusedTile

_SHARED_BYTES = 32 * 1024  # of a block by default: of the smallest multiprocessors, two blocks
_FEWEST_KEYS = 8  # of a window at once, before a block has fewer queries
_WARP = 32
_INDICES = (32, 64, 96, 128, 192, 256, 384, 512)  # of a bias, a thread each


class _Schedule(GroupSchedule):
    """What the schedules share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rank = self.problem.rank

    def place(self, loops: list[Any], heads: int, most: int) -> tuple[list[Any], list[Any]]:
        """Split loops over samples, positions and heads into blocks and what is in a block.

        Args:
            loops: The loops, the last over so many heads.
            heads: Of them.
            most: How many queries a block has at most by default.
        """
        batch, *outer, last, head = loops
        rows, columns = (1, *self.problem.spatial)[-2:]
        line = LINE_BYTES // (self.forward.head_dim * ITEM_BYTES[self.problem.dtype])
        own_heads = largest_divisor(heads, min(line, most, MAX_HEADS))
        own_columns = largest_divisor(columns, most // own_heads)
        own_rows = largest_divisor(rows, min(most // (own_heads * own_columns), MAX_ROWS))
        axes = [*outer[-1:], last, head]
        factors = self.block_factors(axes, heads, (own_rows, own_columns, own_heads))
        split = [self.split(loop, two) for loop, two in zip(axes, factors, strict=True)]
        return [batch, *outer[:-1], *(two[0] for two in split)], [two[1] for two in split]

    def bind_all(self, loop: Any) -> Any:
        """Deal a loop out to all threads of a block, neighbors to neighbors; returns what each thread goes through."""
        each, *queries, lane = self.split(loop, [None, *self.of_block, self.group])
        self.sch.bind(self.fuse(queries), "threadIdx.y")
        self.sch.bind(lane, "threadIdx.x")
        return each

    def queries_in_shared(self, bytes_of_key: int) -> int:
        """How many queries a block has at most by default, where each has a few keys in shared memory."""
        enough = min(_FEWEST_KEYS, self.problem.window)
        return max(1, min(THREADS // self.group, _SHARED_BYTES // (enough * bytes_of_key)))

    def keys_in_shared(self, bytes_of_key: int) -> int:
        """How many keys of a window at once, a divisor of it, shared memory has room for, of all queries of a block."""
        return largest_divisor(self.problem.window, _SHARED_BYTES // (self.queries * bytes_of_key))

    def rows_of(self, keys: Any) -> list[Any]:
        """Split a loop over some keys of a window into rows and their keys; into one row, if they are no whole rows."""
        columns, extent = self.forward.kernel_size[-1], int(self.sch.get(keys).extent)
        return self.split(keys, [None, columns] if extent % columns == 0 else [1, None])


class ScoresSchedule(_Schedule):
    """``qk`` and ``dots``: parts of products meet in shared memory, then all threads write scores in one piece."""

    def build(self) -> None:
        sch, p = self.sch, self.forward
        of_key = self.tile.parts * ITEM_BYTES[p.accum_dtype]  # bytes in shared memory
        *positions, window = self.loops("out")
        blocks, inside = self.place(positions, p.heads, self.queries_in_shared(of_key))
        default = self.keys_in_shared(of_key)
        some_keys, keys = self.tune.split("keys at once", window, self.problem.window, default)
        sch.reorder(*blocks, some_keys, *inside, keys)
        self.bind_block(blocks)
        sch.compute_at(self.block("dots"), keys, preserve_unit_loops=True)
        sch.compute_at(self.block("partial"), some_keys, preserve_unit_loops=True)
        written = sch.cache_write(self.block("partial"), 0, "local")
        self.products(written)
        scores = self.bind_all(self.fuse([*inside, keys]))
        self.unroll_steps(scores, "output unrolling")
        sch.set_scope(self.block("dots"), 0, "local")
        # Last, since what is shared is computed for all threads at once wherever it is moved.
        sch.set_scope(written, 0, "shared")

    def products(self, written: Any) -> None:
        """Each thread of a group has a part of the query in registers, and multiplies its part of some keys."""
        sch, parts = self.sch, self.tile.parts
        *queries, w, part = list(sch.get_loops(written))[2:]
        sch.bind(self.fuse(queries), "threadIdx.y")
        each, of_group = self.split(w, [None, self.group // parts])
        rows, each = self.rows_of(each) if parts == self.group else (None, each)
        sch.reorder(of_group, part, *([] if rows is None else [rows]), each)
        lane = self.fuse([of_group, part])
        sch.bind(lane, "threadIdx.x")
        self.unroll_steps(each, "product unrolling")
        sch.compute_at(self.block("partial"), each, preserve_unit_loops=True)
        width = load_width(self.forward, self.forward.head_dim // parts)
        for index, loop in ((0, lane), (1, each)):
            self.copy("partial", index, loop, width)


class SumsSchedule(_Schedule):
    """``av``: all threads read weights in one piece; then each thread of a query has some channels of its values."""

    def build(self) -> None:
        sch, p = self.sch, self.forward
        of_key = ITEM_BYTES[p.accum_dtype]  # bytes in shared memory
        stored = sch.cache_write(self.block("out"), 0, "local")
        *positions, _ = sch.get_loops(stored)
        blocks, inside = self.place(list(positions), p.heads, self.queries_in_shared(of_key))
        sch.reorder(*blocks, *inside)
        query = self.fuse(inside)
        self.bind_block(blocks)
        sch.bind(query, "threadIdx.y")
        sch.compute_at(self.block("out"), query, preserve_unit_loops=True)
        sch.compute_at(self.block("sums"), query, preserve_unit_loops=True)
        sch.set_scope(self.block("sums"), 0, "local")
        x, window = self.loops("sums")[-2:]
        default = self.keys_in_shared(of_key)
        some_keys, keys = self.tune.split("keys at once", window, self.problem.window, default)
        lane, outer, inner = self.channels(x)
        rows, keys = self.rows_of(keys)
        sch.reorder(some_keys, lane, rows, keys, outer, inner)
        self.copy("sums", 1, keys, self.width)
        self.unroll_steps(keys, "value unrolling")
        # Shared before it is moved: for all queries of a block at once.
        sch.set_scope(self.block("weights"), 0, "shared")
        sch.compute_at(self.block("weights"), some_keys, preserve_unit_loops=True)
        self.bind_all(self.fuse(self.loops("weights")[-self.rank - 3 :]))
        sch.decompose_reduction(self.block("sums"), some_keys)
        self.write_channels(stored)


class TransposedSchedule(_Schedule):
    """``av_transposed``: a key is a group of threads, each of which has some of its channels."""

    def build(self) -> None:
        sch, p = self.sch, self.forward
        threads = self.problem.channels // self.tile.width
        *positions, channels = self.loops("out")
        rounds = -(-threads // _WARP)
        self.group = max(2, -(-threads // rounds))  # a block of one thread has no size that TVM tells
        blocks, inside = self.place(positions, p.heads_kv, max(1, THREADS // self.group))
        rounds, lane = self.split(channels, [None, self.group])
        sch.reorder(*blocks, rounds, *inside, lane)
        self.bind_block([*blocks, rounds])
        sch.bind(self.fuse(inside), "threadIdx.y")
        sch.bind(lane, "threadIdx.x")


class PartsSchedule(_Schedule):
    """``bias_parts``: a thread has an index of the bias, and goes through the queries of a part."""

    def build(self) -> None:
        sch, p = self.sch, self.forward
        batch, part, head, index = self.loops("out")
        indices = prod(2 * k - 1 for k in p.kernel_size)
        most = -(-indices // _WARP) * _WARP  # in whole warps
        options = [n for n in _INDICES if n <= most]
        wasted = {n: -indices % n for n in options}  # threads of the last block
        lanes = self.tune.one_of("indices at once", options, default=min(options, key=lambda n: (wasted[n], -n)))
        of_block, lane = self.split(index, [None, lanes])
        threads = int(sch.get(lanes))
        limit = min(MAX_HEADS, MAX_THREADS // threads)
        default = largest_divisor(p.heads, min(limit, max(1, THREADS // threads)))
        heads, head = self.tune.split("heads at once", head, p.heads, default, limit=limit)
        sch.reorder(batch, part, heads, of_block, head, lane)
        self.unroll_steps(sch.add_unit_loop(self.block("out")), "query unrolling")
        self.bind_block([batch, part, heads, of_block])
        sch.bind(head, "threadIdx.y")
        sch.bind(lane, "threadIdx.x")


_SCHEDULES: dict[str, type[GroupSchedule]] = {
    "qk": ScoresSchedule,
    "dots": ScoresSchedule,
    "av": SumsSchedule,
    "av_transposed": TransposedSchedule,
    "bias_parts": PartsSchedule,
}


def tiles(problem: UnfusedProblem) -> list[UnfusedTile]:
    """The forms of the expression that are worth scheduling, the default first."""
    if problem.kind in ("qk", "dots"):
        group = group_threads(problem.forward)
        parts = [d for d in reversed(divisors(problem.channels)) if group % d == 0]
        return [UnfusedTile(parts=n) for n in parts[:2]]
    if problem.kind == "av_transposed":
        width = load_width(problem.forward, problem.channels)
        return [UnfusedTile(width=n) for n in dict.fromkeys((width, max(1, width // 2)))]
    return [UnfusedTile()]


class CudaUnfused(SearchSpace):
    """The unfused operators on GPUs, on every architecture, in every dtype."""

    name = "cuda-unfused"
    problems = UnfusedProblem
    tile_types = (UnfusedTile,)
    all_sketches = ("through the cache",)

    def serves(self, problem: UnfusedProblem, target: NATarget) -> bool:
        """On a GPU all but whole sums for a bias."""
        return target.kind == "cuda" and problem.kind in _SCHEDULES

    def schedule_for(self, problem: UnfusedProblem, tile: UnfusedTile) -> type[GroupSchedule]:
        """One for each kind."""
        return _SCHEDULES[problem.kind]

    def formulations(self, problem: UnfusedProblem, target: NATarget, batch: int | None = None) -> Formulations:
        """One for each of :func:`tiles`."""
        from tvm_na.te.unfused.gather import gathered

        return Formulations(lambda tile: gathered(problem, tile, batch), tiles(problem))


SPACE = CudaUnfused()
