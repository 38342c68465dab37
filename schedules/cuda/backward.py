"""GPUs (CUDA): the gradients of every problem, on every architecture, in every dtype, without tensor cores.

A kernel each for queries, for keys, and for the end of the bias's sums, which are added up beside the keys', or by one
of their own. A block has the groups of threads of some neighboring queries (keys, entries of the bias): what they read
of each other's neighbors comes through the first cache. Where a kernel has no barrier, a block may have groups beyond
the end of the map, which do nothing.
"""

from __future__ import annotations

from typing import Any

from tvm_na.problems.attention import DTYPES
from tvm_na.problems.backward import BackwardProblem
from tvm_na.schedules.base import Formulations, SearchSpace
from tvm_na.schedules.cuda.backward_sizes import THREADS, block_shape, nearest, options, tiles
from tvm_na.schedules.helpers import FuncSchedule
from tvm_na.targets.target import NATarget
from tvm_na.te.backward.gather_tile import BackwardGatherTile

_ENTRIES = (8, 16, 32, 64, 128, 256)  # of the bias, in a block
_UNROLLED = (0, 128, 512)  # steps, at most, that the loop over a row of the window may have
_JOINED = 8  # entries of the bias in a block, each with a warp


class _Schedule(FuncSchedule):
    """Schedules one PrimFunc."""

    def __post_init__(self) -> None:
        self.problem, self.lanes = self.problem.forward, self.tile.lanes

    def build(self) -> None:
        self.positions("d_query", "query", self.problem.heads)
        self.unroll_by_compiler(self.loops("window")[-1], "window unrolling", _UNROLLED, default=_UNROLLED[-1])
        if self.tile.rows:
            self.chunks()
        else:
            self.positions("d_key_value", "key", self.problem.heads_kv)
            if self.problem.bias:
                self.bias()
        if self.problem.bias:
            self.join()

    def positions(self, name: str, what: str, heads: int) -> None:
        """Blocks of some rows, columns and heads of positions."""
        sch, p = self.sch, self.problem
        batch, *outer, column, head, lane = self.loops(name)
        y, x, h = block_shape(p, self.lanes, heads)
        wanted = [("rows", p.spatial[-2] if p.rank > 1 else 1, y), ("columns", p.spatial[-1], x), ("heads", heads, h)]
        axes = [*outer[-1:], column, head]
        split = [
            self.cut(f"{what} {kind} at once", axis, options(extent, kind), default)
            for axis, (kind, extent, default) in zip(axes, wanted[-len(axes) :], strict=True)
        ]
        blocks, groups = (list(part) for part in zip(*split, strict=True))
        sch.reorder(batch, *outer[:-1], *blocks, *groups, lane)
        self.bind([batch, *outer[:-1], *blocks], groups, lane)

    def bias(self) -> None:
        """Blocks of some entries of the bias, of one chunk."""
        batch, chunk, head, *entry, lane = self.loops("bias_sums")
        default = nearest(THREADS // self.lanes, _ENTRIES)
        most = [n for n in _ENTRIES if n * self.lanes <= 1024]
        outer, inner = self.cut("bias entries at once", self.fuse(entry), most, default)
        self.bind([batch, chunk, head, outer], [inner], lane)

    def chunks(self) -> None:
        """Blocks of keys as the expression has them, since their sums for the bias are in shared memory."""
        *groups, lane = self.loops("d_key_value")
        self.bind(self.loops("chunk"), groups, lane)

    def join(self) -> None:
        """A warp for each entry of the bias."""
        *entry, lane = self.loops("d_rpb")
        outer, inner = self.split(self.fuse(entry), [None, _JOINED])
        self.bind([outer], [inner], lane)

    def cut(self, name: str, loop: Any, among: list[int], default: int) -> list[Any]:
        """Split a loop by a parameter; what is beyond its end is left out by a condition."""
        size = self.tune.one_of(name, among, default)
        return self.split(loop, [None, size])

    def bind(self, blocks: list[Any], groups: list[Any], lane: Any) -> None:
        """Loops over blocks, over the groups of a block, and over the threads of a group."""
        self.sch.bind(self.fuse(blocks), "blockIdx.x")
        self.sch.bind(self.fuse(groups), "threadIdx.y")
        self.sch.bind(lane, "threadIdx.x")


class CudaBackward(SearchSpace):
    """Gradients on GPUs."""

    name = "cuda-backward"
    problems = BackwardProblem
    tile_types = (BackwardGatherTile,)
    schedule = _Schedule
    note_at = "d_query"
    all_sketches = ("keys and queries in turn",)

    def serves(self, problem: BackwardProblem, target: NATarget) -> bool:
        """Always, on a GPU, but in TF32."""
        return target.kind == "cuda" and problem.dtype in DTYPES

    def rank(self, problem: BackwardProblem, target: NATarget) -> int:
        """The last: for what tensor cores do not serve."""
        return 1

    def formulations(self, problem: BackwardProblem, target: NATarget, batch: int | None = None) -> Formulations:
        """One for each of :func:`tiles`."""
        from tvm_na.te.backward.gather import backward

        return Formulations(lambda tile: backward(problem, tile, batch), tiles(problem))


SPACE = CudaBackward()
