"""CPUs (LLVM): the gradients of every problem, through the lanes formulation.

A task is a chunk of rows of one head of keys. In it, tile after tile goes through all stages: two register-blocked
products give scores and the gradients of weights, vectors of lanes those of scores, and three more products what a tile
adds to the gradients of queries, keys and values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.base import HALVES
from tvm_na.schedules.base import Formulations, SearchSpace, largest_divisor
from tvm_na.schedules.cpu import attention
from tvm_na.schedules.cpu.box import BoxSchedule
from tvm_na.schedules.cpu.vectors import channel_vector
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.lanes_tile import Geometry, LanesTile, dots_blocks
from tvm_na.te.backward.lanes_tile import BackwardTile, Chunks
from tvm_na.te.common.rows import Rows

#: What is outside where both gradients and sums of keys are computed: the tiles of a row, each with all rows of its
#: window, or the rows, each with all tiles.
SKETCHES = ("tiles outside", "rows outside")

# How many sizes of a tile are worth the tuner's time.
_TILES = 2
# The most chunks that are joined.
_CHUNKS = 8
# A chunk has at least so many times the rows by which the windows of its own reach beyond it.
_OWN_ROWS = 2
# The sums of all chunks have at most so many times the elements of the gradients of keys and values.
_MAX_SUMS = 2
# Elements of the boxes of the tiles that pass through a stage together, of which there are some in the first cache.
_BOX_ELEMENTS = 4096


def chunks_of(problem: BackwardProblem) -> int:
    """Into how many chunks the rows are cut by default: enough tasks for many cores, few rows that two share."""
    rows = Rows(problem.forward)
    for count in range(min(_CHUNKS, rows.count), 1, -1):
        chunks = Chunks.of(rows, count)
        if chunks.count == count and chunks.rows >= _OWN_ROWS * (chunks.reach - chunks.rows):
            return count
    return 1


def tiles(problem: BackwardProblem, target: NATarget) -> list[BackwardTile]:
    """Tiles that are worth the tuner's time, the one expected to be the fastest first."""
    forward, chunks = problem.forward, chunks_of(problem)
    far = forward.dilation[-1] * forward.heads_kv * forward.head_dim >= attention.PACK_VALUES_FROM
    pack = far or forward.dtype in HALVES  # packed, each is converted once
    sizes = [(tile.queries, tile.vector) for tile in attention.tiles(forward, target)[:_TILES]]

    def tile(queries: int, vector: int, elements: int = _BOX_ELEMENTS) -> BackwardTile:
        geo = Geometry(forward, LanesTile(queries, vector))
        at_once = elements // (queries * geo.rows.keys * geo.lanes)
        return BackwardTile(queries, vector, chunks, largest_divisor(geo.tiles, at_once), pack)

    first, *others = (tile(*size) for size in sizes)
    fewer = tile(first.queries, first.vector, _BOX_ELEMENTS // 4)
    found = [first, *others, fewer, replace(first, pack_keys=not pack)]
    for count in (1, min(_CHUNKS, 2 * chunks)):
        cut = Chunks.of(Rows(forward), count)
        if cut.count * cut.reach <= _MAX_SUMS * cut.map_rows:
            found.append(replace(first, chunks=cut.count))
    return list(dict.fromkeys(found))


class BackwardSchedule(BoxSchedule):
    """Schedules one PrimFunc; see the module."""

    def __post_init__(self) -> None:
        self.rows_outside = self.sketch == "rows outside"
        self.pack_keys = self.tile.pack_keys
        self.problem, self.tile = self.problem.forward, self.tile.lanes()
        super().__post_init__()

    def build(self) -> None:
        problem = self.problem
        self.pack()
        self.tasks()
        self.box_products({**dots_blocks(problem), "d_weights": problem.head_dim_v})
        self.scores()
        self.window_products("query_sums", problem.head_dim, self.rows_outside)
        self.vectorize_channels("d_query", problem.head_dim)
        self.scatter("add_value", problem.head_dim_v)
        self.scatter("add_key", problem.head_dim)
        self.join()

    def pack(self) -> None:
        """Copies of keys and values, in one parallel loop over samples, heads and rows."""
        sch = self.sch
        rows = []
        for name in ("packed_key", "packed_value"):
            *_, row, group, d, x = self.loops(name)
            tiles, lane = self.lanes_of(x)
            sch.reorder(group, tiles, d, lane)
            sch.vectorize(lane)
            rows.append(row)
        if self.pack_keys:
            rows.append(self.loops("key_rows")[2])
            self.vectorize_channels("key_rows", self.problem.head_dim)
        sch.merge(*rows)
        sch.parallel(sch.fuse(*self.loops("packed_key")[:3]))
        if self.problem.bias:
            sch.vectorize(self.loops("padded_bias")[-1])

    def tasks(self) -> None:
        """The parallel loop, what a tile converts, and the zeros that a task's sums start from."""
        sch, problem = self.sch, self.problem
        sch.parallel(sch.fuse(*self.loops("task")))
        if problem.dtype in HALVES:
            self.vectorize_channels("tile_query", problem.head_dim)
            self.vectorize_channels("tile_d_out", problem.head_dim_v)
        self.vectorize_channels("sum_key_zero", problem.head_dim)
        self.vectorize_channels("sum_value_zero", problem.head_dim_v)
        if problem.bias:
            sch.vectorize(self.loops("sum_bias_zero")[-1])

    def scores(self) -> None:
        """Weights and the gradients of scores: vectors of lanes, as many rows at once as are unrolled."""
        factors = self.softmax_row_factors("scores")
        for name, folded in (("scores", "maximum"), ("powers", "total"), ("weights", "mean")):
            self.elementwise_and_fold(name, f"{folded}_lanes", factors)
            self.sch.vectorize(self.loops(f"{folded}_half")[-1])
        self.elementwise("d_scores", factors)
        if self.problem.bias:
            l = self.inner_loops("add_bias", 1)[0]
            v, lane = self.lanes_of(l)
            self.unroll(v)
            self.sch.vectorize(lane)

    def elementwise_and_fold(self, name: str, folded: str, factors: list[Any]) -> None:
        """A stage over the box, each vector of which is folded as soon as it is there."""
        sch = self.sch
        a, l = self.inner_loops(name, 2)
        self.split(a, factors)
        sch.vectorize(self.lanes_of(l)[1])
        tile, _, lane, a, v = self.inner_loops(folded, 5)
        sch.reorder(a, v, lane)
        self.split(a, factors)
        sch.vectorize(lane)
        sch.vectorize(self.split_off_init(folded, tile, unrolled=0))
        sch.merge(self.inner_loops(name, 2)[0], self.inner_loops(f"{folded}_update", 2)[0])
        *_, inner, v, _ = self.loops(name)
        self.unroll(inner)
        if self.vectors <= 4:
            self.unroll(v)

    def scatter(self, name: str, dim: int) -> None:
        """Rows of keys, keys, and as many vectors of channels at once as there are registers for."""
        sch = self.sch
        n, a, l, x = self.inner_loops(name, 4)
        x, lane = self.vector_of(x, dim)
        vectors = dim // channel_vector(dim, self.tile.vector)
        at_once = largest_divisor(vectors, max(1, self.registers * 3 // 4 // (self.tile.queries + 1)))
        x_outer, x_inner = self.tune.split(f"{name} vectors at once", x, vectors, at_once)
        sch.reorder(x_outer, *((a, n) if self.rows_outside else (n, a)), l, x_inner, lane)
        self.unroll(x_inner)
        sch.vectorize(lane)

    def join(self) -> None:
        """The sums of the chunks, a row of keys in a task."""
        sch, problem = self.sch, self.problem
        rows = []
        for name, dim in (("d_key", problem.head_dim), ("d_value", problem.head_dim_v)):
            rows.append(self.loops(name)[1])
            self.vectorize_channels(name, dim)
        sch.merge(*rows)
        sch.parallel(sch.fuse(*self.loops("d_key")[:2]))
        if problem.bias:
            h, y, e, b, c = self.loops("bias_sums")
            sch.reorder(h, y, b, c, e)
            sch.vectorize(e)
            sch.vectorize(self.split_off_init("bias_sums", b, unrolled=0))


class CpuBackward(SearchSpace):
    """Gradients on CPUs."""

    name = "cpu-backward"
    problems = BackwardProblem
    tile_types = (BackwardTile,)
    schedule = BackwardSchedule
    note_at = "d_query"
    all_sketches = SKETCHES

    def serves(self, problem: BackwardProblem, target: NATarget) -> bool:
        """What the attention is served for."""
        return attention.SPACE.serves(problem.forward, target)

    def formulations(self, problem: BackwardProblem, target: NATarget, batch: int | None = None) -> Formulations:
        """One for each of :func:`tiles`."""
        from tvm_na.te.backward.lanes import backward

        halves = target.converts_float16
        return Formulations(lambda tile: backward(problem, tile, batch, halves), tiles(problem, target))


SPACE = CpuBackward()
