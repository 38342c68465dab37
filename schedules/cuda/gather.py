"""The schedule of the gather formulation on a GPU: one kernel, no tensor cores, for every problem and dtype.

A block has some queries, and each query a group of neighboring threads. They read a key of its window together, each
the part that meets its part of the query; parts of scores, and weights, meet in shared memory; then they read values
together, each some channels of the output. Keys and values come through the first cache, which the queries of a block
share.
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.problems.base import ITEM_BYTES
from tvm_na.schedules.base import Formulations, SearchSpace, largest_divisor
from tvm_na.schedules.cuda.gather_sizes import (
    LINE_BYTES,
    THREADS,
    keys_in_shared,
    load_width,
    padded_parts,
    queries_in_shared,
    tiles,
)
from tvm_na.schedules.cuda.groups import GroupSchedule
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.gather_tile import GatherTile


class GatherSchedule(GroupSchedule):
    """Schedules a PrimFunc that keeps the scores of a window; see the module."""

    #: The stages of a query, the last first; which of them are kept in registers, and which in shared memory.
    stages: ClassVar[tuple[str, ...]] = ("attended", "total", "weights", "maximum", "scores", "dots", "partial")
    local: ClassVar[tuple[str, ...]] = ("attended", "total", "maximum", "dots")
    shared: ClassVar[tuple[str, ...]] = ("scores", "weights")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.window = prod(self.problem.kernel_size)
        self.factors: list[list[Any]] | None = None
        self.parts: list[Any] = []  # the stages that write parts to shared memory

    def build(self) -> None:
        self.place()
        self.scores_and_sums()
        self.attended()
        self.outputs()
        # Last, since what is shared is computed for all threads at once wherever it is moved.
        for block, own in [*((self.block(name), 1) for name in self.shared), *((part, 2) for part in self.parts)]:
            self.sch.set_scope(block, 0, "shared")
            self.spread(block, own)

    def spread(self, block: Any, own: int) -> None:
        """Pad what a query has in shared memory, in so many axes of its own: a warp's threads meet different banks."""
        if own == 2 and self.tile.parts > 1:
            self.sch.storage_align(block, 0, -2, self.tile.parts, padded_parts(self.tile) - self.tile.parts)
        self.sch.storage_align(block, 0, -1 - own, 2 * self.group, self.group)

    # --- queries

    def place(self) -> None:
        """Blocks of queries, queries of a block, and inside of those every stage."""
        sch = self.sch
        self.stored = sch.cache_write(self.block("out"), 0, "local")
        nests = [self.nest(self.stored)] + ([self.nest(self.block("lse"))] if self.problem.return_lse else [])
        query = self.merge(nests)
        for name in ("out", *self.stages):
            sch.compute_at(self.block(name), query, preserve_unit_loops=True, index=-2)
        *blocks, query, _ = sch.get_loops(self.stored)
        self.bind_block(blocks)
        sch.bind(query, "threadIdx.y")
        for name in self.local:
            sch.set_scope(self.block(name), 0, "local")

    def nest(self, block: Any) -> Any:
        """Split the loops of an output into blocks and the queries of a block; returns the loop over the latter."""
        sch, rank = self.sch, self.problem.rank
        loops = list(sch.get_loops(block))
        (batch, *outer, last, head), channels = loops[: rank + 2], loops[rank + 2 :]
        axes = [*outer[-1:], last, head]
        if self.factors is None:
            self.factors = self.block_shape(axes)
        split = [self.split(loop, two) for loop, two in zip(axes, self.factors, strict=True)]
        blocks, queries = (list(part) for part in zip(*split, strict=True))
        sch.reorder(batch, *outer[:-1], *blocks, *queries, *channels)
        return self.fuse(queries)

    def block_shape(self, axes: list[Any]) -> list[list[Any]]:
        """The queries of a block: of some columns and heads, as many as have room in shared memory."""
        p = self.problem
        line = LINE_BYTES // (p.head_dim * ITEM_BYTES[p.dtype])
        heads = largest_divisor(p.heads, line)
        columns = largest_divisor(p.spatial[-1], queries_in_shared(p, self.tile, THREADS // self.group) // heads)
        return self.block_factors(axes, p.heads, (1, columns, heads))

    def inner_loops(self, name: str) -> list[Any]:
        """The loops of a stage inside of a query."""
        return self.loops(name)[2:]

    # --- scores

    def scores_and_sums(self) -> None:
        """Scores, some keys at once; then their maximum, the weights and their sum, each thread some keys."""
        loop = self.inner_loops("scores")[-1]
        default = largest_divisor(self.window, keys_in_shared(self.problem, self.tile, self.queries))
        some_keys, _ = self.tune.split("keys at once", loop, self.window, default)
        self.score("partial", "dots", "scores", some_keys)
        for name in ("maximum", "weights", "total"):
            self.deal_out(name)

    def score(self, partial: str, dots: str, scores: str, at: Any) -> None:
        """Each thread of a group multiplies its part of each key, then sums the parts of some keys.

        Args:
            partial: The stage with the parts.
            dots: The stage with their sums.
            scores: The stage that has the sums inside.
            at: The loop in which some keys are computed at once.
        """
        sch = self.sch
        self.deal_out(scores)
        sch.compute_at(self.block(dots), self.loops(scores)[-1], preserve_unit_loops=True)
        sch.compute_at(self.block(partial), at, preserve_unit_loops=True)
        written = sch.cache_write(self.block(partial), 0, "local")
        self.parts.append(written)
        w, p = list(sch.get_loops(written))[-2:]
        w_outer, w_inner = self.split(w, [None, self.group // self.tile.parts])
        sch.reorder(w_inner, p, w_outer)
        lane = self.fuse([w_inner, p])
        sch.bind(lane, "threadIdx.x")
        self.unroll_steps(w_outer, f"{scores} unrolling")
        sch.compute_at(self.block(partial), w_outer, preserve_unit_loops=True)
        width = load_width(self.problem, self.problem.head_dim // self.tile.parts)
        for index, loop in ((0, lane), (1, w_outer)):
            self.copy(partial, index, loop, width)

    def deal_out(self, name: str) -> None:
        """Deal the window out to the threads of a group."""
        _, lane = self.split(self.inner_loops(name)[-1], [None, self.group])
        self.sch.bind(lane, "threadIdx.x")

    # --- output

    def attended(self) -> None:
        """Each thread has some channels, and goes through the window."""
        x, window = self.inner_loops("attended")[-2:]
        lane, outer, inner = self.channels(x)
        rows, keys = self.rows_of(window)
        self.sch.reorder(lane, rows, keys, outer, inner)
        self.copy("attended", 1, keys, self.width)
        self.unroll_steps(keys, "value unrolling")
        self.sch.decompose_reduction(self.block("attended"), rows)

    def outputs(self) -> None:
        """What each thread writes."""
        sch = self.sch
        self.write_channels(self.stored)
        if self.problem.return_lse:
            _, lane = self.split(sch.add_unit_loop(self.block("lse")), [1, self.group])
            sch.bind(lane, "threadIdx.x")

    def rows_of(self, window: Any) -> list[Any]:
        """Split a loop over the window into rows and their keys."""
        return self.split(window, [None, self.problem.kernel_size[-1]])


class OnlineGatherSchedule(GatherSchedule):
    """Schedules a PrimFunc that computes scores twice, since shared memory cannot hold those of a window."""

    stages = (
        *("attended", "weights", "dots_again", "partial_again"),
        *("total", "maximum", "lane_sums", "scores", "dots", "partial"),
    )
    local = ("attended", "dots_again", "total", "maximum", "lane_sums", "dots")

    def scores_and_sums(self) -> None:
        """Each thread of a group has a lane, with a maximum and a sum of its own; then all have those of all."""
        sch = self.sch
        sch.set_scope(self.block("lane_sums"), 1, "local")
        lane, keys = self.inner_loops("lane_sums")[-2:]
        each = -(-self.window // self.tile.lanes)
        limit = keys_in_shared(self.problem, self.tile, self.queries) // self.tile.lanes
        self.keys = self.tune.factors("keys at once", keys, each, largest_divisor(each, limit))
        some_keys, keys = self.split(keys, self.keys)
        sch.reorder(some_keys, lane, keys)
        sch.bind(lane, "threadIdx.x")
        sch.compute_at(self.block("scores"), some_keys, preserve_unit_loops=True)
        self.score("partial", "dots", "scores", some_keys)
        sch.decompose_reduction(self.block("lane_sums"), some_keys)
        for name in ("maximum", "total"):
            sch.bind(self.inner_loops(name)[-1], "threadIdx.x")

    def attended(self) -> None:
        """As many keys at once as before: their weights, then each thread's channels of their values."""
        sch = self.sch
        x, window = self.inner_loops("attended")[-2:]
        some_keys, keys = self.split(window, [self.keys[0], None])
        lane, outer, inner = self.channels(x)
        sch.reorder(some_keys, lane, keys, outer, inner)
        self.copy("attended", 1, keys, self.width)
        self.unroll_steps(keys, "value unrolling")
        sch.compute_at(self.block("weights"), some_keys, preserve_unit_loops=True)
        self.score("partial_again", "dots_again", "weights", some_keys)
        sch.decompose_reduction(self.block("attended"), some_keys)


class CudaGather(SearchSpace):
    """Attention on GPUs, on every architecture."""

    name = "cuda-gather"
    problems = NAProblem
    tile_types = (GatherTile,)
    all_sketches = ("through the cache",)

    def serves(self, problem: NAProblem, target: NATarget) -> bool:
        """Always, on a GPU, but in TF32."""
        return target.kind == "cuda" and problem.dtype != TF32

    def rank(self, problem: NAProblem, target: NATarget) -> int:
        """The last: for what no other space serves."""
        return 2

    def schedule_for(self, problem: NAProblem, tile: GatherTile) -> type[GatherSchedule]:
        """By whether scores are kept or computed twice."""
        return OnlineGatherSchedule if tile.lanes else GatherSchedule

    def formulations(self, problem: NAProblem, target: NATarget, batch: int | None = None) -> Formulations:
        """One for each of :func:`tiles`."""
        from tvm_na.te.attention.gather import forward

        return Formulations(lambda tile: forward(problem, tile, batch), tiles(problem))


SPACE = CudaGather()
