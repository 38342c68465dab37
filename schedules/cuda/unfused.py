"""The schedules of the unfused operators on a GPU, one kernel each, without tensor cores.

A block has some queries (of sums over queries, some keys) of a sample: of some rows, columns and heads. Each is a group
of neighboring threads, ``threadIdx.x``, which read a key or a query together. What of a block lies in one piece in
memory, scores and weights, all its threads write or read in one piece, whatever the window.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.schedules.base import Decisions, largest_divisor
from tvm_na.schedules.cuda.gather_sizes import SIZES, THREADS, group_threads, load_width
from tvm_na.te.unfused.gather import UnfusedTile

_UNROLLED = (0, 16, 64, 512)
_MAX_THREADS, _MAX_ROWS, _MAX_HEADS = 1024, 4, 8  # of a block
_SHARED_BYTES = 32 * 1024  # of a block by default: of the smallest multiprocessors, two blocks
_LINE_BYTES = 128  # of the caches: shorter keys of neighboring heads share one
_FEWEST_KEYS = 8  # of a window at once, before a block has fewer queries
_WARP = 32
_INDICES = (32, 64, 96, 128, 192, 256, 384, 512)  # of a bias, a thread each


class _Schedule:
    """What the schedules share; decisions are made in the order of the calls."""

    def __init__(self, sch: Any, problem: UnfusedProblem, tile: UnfusedTile, decide: Decisions) -> None:
        self.sch, self.problem, self.tile, self.decide = sch, problem, tile, decide
        self.forward, self.rank = problem.forward, problem.rank
        self.group = group_threads(self.forward)
        self.queries = 1  # of a block, in the point that is drawn; others may come of it when its trace is mutated
        self.of_block: list[Any] = []  # rows, columns and heads of a block, as variables of the trace

    def block(self, name: str) -> Any:
        return self.sch.get_sblock(name)

    def loops(self, name: str) -> list[Any]:
        return list(self.sch.get_loops(self.block(name)))

    def split(self, loop: Any, factors: list[Any]) -> list[Any]:
        return list(self.sch.split(loop, factors, preserve_unit_iters=True))

    def bind_blocks(self, loops: list[Any]) -> None:
        self.sch.bind(self.sch.fuse(*loops, preserve_unit_iters=True), "blockIdx.x")

    def place(self, loops: list[Any], heads: int, most: int) -> tuple[list[Any], list[Any]]:
        """Split loops over samples, positions and heads into blocks and what is in a block.

        Each axis has a factor of its own: only so does TVM find the shared memory of a block.

        Args:
            loops: The loops, the last over so many heads.
            heads: Of them.
            most: How many queries a block has at most by default.
        """
        batch, *outer, last, head = loops
        rows, columns = (1, *self.problem.spatial)[-2:]
        line = _LINE_BYTES // (self.forward.head_dim * SIZES[self.problem.dtype])
        own_heads = largest_divisor(heads, min(line, most, _MAX_HEADS))
        own_columns = largest_divisor(columns, most // own_heads)
        own_rows = largest_divisor(rows, min(most // (own_heads * own_columns), _MAX_ROWS))
        wanted = [
            ("rows at once", rows, own_rows, _MAX_ROWS),
            ("columns at once", columns, own_columns, _MAX_THREADS),
            ("heads at once", heads, own_heads, _MAX_HEADS),
        ][-len([*outer[-1:], last, head]) :]
        blocks: list[Any] = [batch, *outer[:-1]]
        inside: list[Any] = []
        for loop, (name, extent, default, limit) in zip([*outer[-1:], last, head], wanted, strict=True):
            limit = min(limit, _MAX_THREADS // self.group)
            factors = self.decide.factors(name, loop, extent, default, limit=limit)
            a, b = self.split(loop, factors)
            blocks, inside = [*blocks, a], [*inside, b]
            self.of_block.append(factors[1])
            self.queries *= int(self.sch.get(factors[1]))
        return blocks, inside

    def bind_all(self, loop: Any) -> Any:
        """Deal a loop out to all threads of a block, neighbors to neighbors; returns what each thread goes through."""
        each, *queries, lane = self.split(loop, [None, *self.of_block, self.group])
        self.sch.bind(self.sch.fuse(*queries, preserve_unit_iters=True), "threadIdx.y")
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

    def copy(self, name: str, index: int, loop: Any, width: int) -> None:
        """Read what a stage reads through registers, ``width`` elements at once."""
        block = self.block(name)
        copied = self.sch.cache_read(block, index, "local", consumer_blocks=[block])
        self.sch.compute_at(copied, loop, preserve_unit_loops=True)
        self.sch.vectorize(self.split(self.sch.get_loops(copied)[-1], [None, width])[1])

    def unroll(self, loop: Any, name: str) -> None:
        """Let the compiler unroll a loop, if it is short enough."""
        steps = self.decide.one_of(name, _UNROLLED, default=_UNROLLED[2])
        self.sch.annotate(loop, "pragma_auto_unroll_max_step", steps)
        self.sch.annotate(loop, "pragma_unroll_explicit", 0)


class ScoresSchedule(_Schedule):
    """``qk`` and ``dots``: parts of products meet in shared memory, then all threads write scores in one piece."""

    def build(self) -> None:
        """Apply every transformation."""
        sch, p = self.sch, self.forward
        of_key = self.tile.parts * SIZES[p.accum_dtype]  # bytes in shared memory
        *positions, window = self.loops("out")
        blocks, inside = self.place(positions, p.heads, self.queries_in_shared(of_key))
        default = self.keys_in_shared(of_key)
        some_keys, keys = self.decide.split("keys at once", window, self.problem.window, default)
        sch.reorder(*blocks, some_keys, *inside, keys)
        self.bind_blocks(blocks)
        sch.compute_at(self.block("dots"), keys, preserve_unit_loops=True)
        sch.compute_at(self.block("partial"), some_keys, preserve_unit_loops=True)
        written = sch.cache_write(self.block("partial"), 0, "local")
        self.products(written)
        scores = self.bind_all(sch.fuse(*inside, keys, preserve_unit_iters=True))
        self.unroll(scores, "output unrolling")
        sch.set_scope(self.block("dots"), 0, "local")
        # Last, since what is shared is computed for all threads at once wherever it is moved.
        sch.set_scope(written, 0, "shared")

    def products(self, written: Any) -> None:
        """Each thread of a group has a part of the query in registers, and multiplies its part of some keys."""
        sch, parts = self.sch, self.tile.parts
        *queries, w, part = list(sch.get_loops(written))[2:]
        sch.bind(sch.fuse(*queries, preserve_unit_iters=True), "threadIdx.y")
        each, of_group = self.split(w, [None, self.group // parts])
        rows, each = self.rows_of(each) if parts == self.group else (None, each)
        sch.reorder(of_group, part, *([] if rows is None else [rows]), each)
        lane = sch.fuse(of_group, part, preserve_unit_iters=True)
        sch.bind(lane, "threadIdx.x")
        self.unroll(each, "product unrolling")
        sch.compute_at(self.block("partial"), each, preserve_unit_loops=True)
        width = load_width(self.forward, self.forward.head_dim // parts)
        for index, loop in ((0, lane), (1, each)):
            self.copy("partial", index, loop, width)


class SumsSchedule(_Schedule):
    """``av``: all threads read weights in one piece; then each thread of a query has some channels of its values."""

    def build(self) -> None:
        """Apply every transformation."""
        sch, p = self.sch, self.forward
        of_key = SIZES[p.accum_dtype]  # bytes in shared memory
        stored = sch.cache_write(self.block("out"), 0, "local")
        *positions, _ = sch.get_loops(stored)
        blocks, inside = self.place(list(positions), p.heads, self.queries_in_shared(of_key))
        sch.reorder(*blocks, *inside)
        query = sch.fuse(*inside, preserve_unit_iters=True)
        self.bind_blocks(blocks)
        sch.bind(query, "threadIdx.y")
        sch.compute_at(self.block("out"), query, preserve_unit_loops=True)
        sch.compute_at(self.block("sums"), query, preserve_unit_loops=True)
        sch.set_scope(self.block("sums"), 0, "local")
        x, window = self.loops("sums")[-2:]
        default = self.keys_in_shared(of_key)
        some_keys, keys = self.decide.split("keys at once", window, self.problem.window, default)
        lane, outer, inner = self.channels(x)
        rows, keys = self.rows_of(keys)
        sch.reorder(some_keys, lane, rows, keys, outer, inner)
        self.copy("sums", 1, keys, self.width)
        self.unroll(keys, "value unrolling")
        # Shared before it is moved: for all queries of a block at once.
        sch.set_scope(self.block("weights"), 0, "shared")
        sch.compute_at(self.block("weights"), some_keys, preserve_unit_loops=True)
        self.bind_all(sch.fuse(*self.loops("weights")[-self.rank - 3 :], preserve_unit_iters=True))
        sch.decompose_reduction(self.block("sums"), some_keys)
        lane, _, inner = self.channels(sch.get_loops(stored)[-1])
        sch.vectorize(inner)
        sch.compute_at(self.block("out"), lane, preserve_unit_loops=True)
        sch.unroll(self.loops("out")[-1])

    @property
    def width(self) -> int:
        """Channels that a thread reads at once: of the widest loads, unless that leaves threads without work."""
        each = -(-self.problem.channels // self.group)
        return min(load_width(self.forward, self.problem.channels), 1 << (each.bit_length() - 1))

    def channels(self, loop: Any) -> list[Any]:
        """Split a loop over channels: threads of a group (bound), rounds, a load's width."""
        rounds = -(-self.problem.channels // (self.group * self.width))
        loops = self.split(loop, [self.group, rounds, self.width])
        self.sch.bind(loops[0], "threadIdx.x")
        self.sch.unroll(loops[1])
        return loops


class TransposedSchedule(_Schedule):
    """``av_transposed``: a key is a group of threads, each of which has some of its channels."""

    def build(self) -> None:
        """Apply every transformation."""
        sch, p = self.sch, self.forward
        threads = self.problem.channels // self.tile.width
        *positions, channels = self.loops("out")
        rounds = -(-threads // _WARP)
        self.group = max(2, -(-threads // rounds))  # a block of one thread has no size that TVM tells
        blocks, inside = self.place(positions, p.heads_kv, max(1, THREADS // self.group))
        rounds, lane = self.split(channels, [None, self.group])
        sch.reorder(*blocks, rounds, *inside, lane)
        self.bind_blocks([*blocks, rounds])
        sch.bind(sch.fuse(*inside, preserve_unit_iters=True), "threadIdx.y")
        sch.bind(lane, "threadIdx.x")


class PartsSchedule(_Schedule):
    """``bias_parts``: a thread has an index of the bias, and goes through the queries of a part."""

    def build(self) -> None:
        """Apply every transformation."""
        sch, p = self.sch, self.forward
        batch, part, head, index = self.loops("out")
        indices = prod(2 * k - 1 for k in p.kernel_size)
        most = -(-indices // _WARP) * _WARP  # in whole warps
        options = [n for n in _INDICES if n <= most]
        wasted = {n: -indices % n for n in options}  # threads of the last block
        lanes = self.decide.one_of("indices at once", options, default=min(options, key=lambda n: (wasted[n], -n)))
        of_block, lane = self.split(index, [None, lanes])
        threads = int(sch.get(lanes))
        limit = min(_MAX_HEADS, _MAX_THREADS // threads)
        default = largest_divisor(p.heads, min(limit, max(1, THREADS // threads)))
        heads, head = self.decide.split("heads at once", head, p.heads, default, limit=limit)
        sch.reorder(batch, part, heads, of_block, head, lane)
        self.unroll(sch.add_unit_loop(self.block("out")), "query unrolling")
        self.bind_blocks([batch, part, heads, of_block])
        sch.bind(head, "threadIdx.y")
        sch.bind(lane, "threadIdx.x")
