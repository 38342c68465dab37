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
from tvm_na.schedules.base import Decisions, Opened, Plan, Scheduled, backward_of, open_func
from tvm_na.schedules.cuda.backward_sizes import THREADS, block_shape, nearest, options, tiles
from tvm_na.targets.target import NATarget
from tvm_na.te.backward.gather_tile import FORMULATION, BackwardGatherTile

STRUCTURES = ("keys and queries in turn",)

_ENTRIES = (8, 16, 32, 64, 128, 256)  # of the bias, in a block
_UNROLLED = (0, 128, 512)  # steps, at most, that the loop over a row of the window may have
_JOINED = 8  # entries of the bias in a block, each with a warp


def serves(problem: BackwardProblem, target: NATarget) -> bool:
    """Whether this space has a kernel for ``problem`` on ``target``: always, on a GPU, but in TF32."""
    return target.kind == "cuda" and problem.dtype in DTYPES


def formulations(problem: BackwardProblem, target: NATarget, batch: int | None = None) -> list[Any]:
    """The PrimFuncs of ``problem`` that are worth scheduling, the default first."""
    from tvm_na.te.backward.gather import backward

    return [backward(problem, tile, batch) for tile in tiles(problem)]


def structures(func: Any, target: NATarget) -> tuple[str, ...]:
    """The only structure."""
    return STRUCTURES


def apply(func: Any, target: NATarget, plan: Plan = Plan()) -> Scheduled | None:  # noqa: B008
    """The schedule of a PrimFunc of gradients; None for any other function or target.

    Args:
        func: An unscheduled PrimFunc of :func:`tvm_na.te.backward.gather.backward`.
        target: The machine.
        plan: Which point of the space is wanted.

    Raises:
        ValueError: if there is no such structure.
    """
    problem = backward_of(func, FORMULATION)
    if problem is None or not serves(problem, target):
        return None
    opened = open_func(func, plan, STRUCTURES)
    _Schedule(opened, problem, BackwardGatherTile(**opened.formulation)).build()
    return opened.scheduled("d_query")


class _Schedule:
    """Schedules one PrimFunc; decisions are made in the order of the calls."""

    def __init__(self, opened: Opened, problem: BackwardProblem, tile: BackwardGatherTile) -> None:
        self.sch, self.problem, self.tile, self.lanes = opened.schedule, problem.forward, tile, tile.lanes
        self.decide: Decisions = opened.decide

    def build(self) -> None:
        """Apply every transformation."""
        self.positions("d_query", "query", self.problem.heads)
        self.unroll(self.sch.get_loops(self.sch.get_sblock("window"))[-1], "window unrolling")
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
        batch, *outer, column, head, lane = sch.get_loops(sch.get_sblock(name))
        y, x, h = block_shape(p, self.lanes, heads)
        wanted = [("rows", p.spatial[-2] if p.rank > 1 else 1, y), ("columns", p.spatial[-1], x), ("heads", heads, h)]
        axes = [*outer[-1:], column, head]
        split = [
            self.split(f"{what} {kind} at once", axis, options(extent, kind), default)
            for axis, (kind, extent, default) in zip(axes, wanted[-len(axes) :], strict=True)
        ]
        blocks, groups = (list(part) for part in zip(*split, strict=True))
        sch.reorder(batch, *outer[:-1], *blocks, *groups, lane)
        self.bind([batch, *outer[:-1], *blocks], groups, lane)

    def bias(self) -> None:
        """Blocks of some entries of the bias, of one chunk."""
        sch = self.sch
        batch, chunk, head, *entry, lane = sch.get_loops(sch.get_sblock("bias_sums"))
        default = nearest(THREADS // self.lanes, _ENTRIES)
        most = [n for n in _ENTRIES if n * self.lanes <= 1024]
        outer, inner = self.split("bias entries at once", self.fused(entry), most, default)
        self.bind([batch, chunk, head, outer], [inner], lane)

    def chunks(self) -> None:
        """Blocks of keys as the expression has them, since their sums for the bias are in shared memory."""
        *groups, lane = self.sch.get_loops(self.sch.get_sblock("d_key_value"))
        self.bind(list(self.sch.get_loops(self.sch.get_sblock("chunk"))), groups, lane)

    def join(self) -> None:
        """A warp for each entry of the bias."""
        sch = self.sch
        *entry, lane = sch.get_loops(sch.get_sblock("d_rpb"))
        outer, inner = sch.split(self.fused(entry), [None, _JOINED], preserve_unit_iters=True)
        self.bind([outer], [inner], lane)

    def split(self, name: str, loop: Any, among: list[int], default: int) -> list[Any]:
        """Split a loop by a decision; what is beyond its end is left out by a condition."""
        size = self.decide.one_of(name, among, default)
        return list(self.sch.split(loop, [None, size], preserve_unit_iters=True))

    def unroll(self, loop: Any, name: str) -> None:
        """Let the compiler unroll a loop, if it is short enough."""
        steps = self.decide.one_of(name, _UNROLLED, default=_UNROLLED[-1])
        self.sch.annotate(loop, "pragma_auto_unroll_max_step", steps)
        self.sch.annotate(loop, "pragma_unroll_explicit", 0)

    def fused(self, loops: list[Any]) -> Any:
        return self.sch.fuse(*loops, preserve_unit_iters=True) if len(loops) > 1 else loops[0]

    def bind(self, blocks: list[Any], groups: list[Any], lane: Any) -> None:
        """Loops over blocks, over the groups of a block, and over the threads of a group."""
        self.sch.bind(self.fused(blocks), "blockIdx.x")
        self.sch.bind(self.fused(groups), "threadIdx.y")
        self.sch.bind(lane, "threadIdx.x")
