"""What the schedules without tensor cores share: blocks of queries, each of which is a group of neighboring threads.

Queries are counted by ``threadIdx.y``, the threads of a group by ``threadIdx.x``. Keys and values come through the
first cache, which the queries of a block share.
"""

from __future__ import annotations

from typing import Any

from tvm_na.problems.attention import NAProblem
from tvm_na.schedules.cuda.gather_sizes import MAX_HEADS, MAX_ROWS, MAX_THREADS, group_threads, load_width
from tvm_na.schedules.helpers import FuncSchedule

_UNROLLED = (0, 16, 64, 512)


class GroupSchedule(FuncSchedule):
    """Schedules a PrimFunc whose positions are groups of threads.

    Attributes:
        forward: The attention that is computed, or that the function is a part of.
        group: Threads of a group.
        queries: Of a block, in the point that is drawn; others may come of it when its trace is mutated.
        of_block: Rows, columns and heads of a block, as variables of the trace.
    """

    def __post_init__(self) -> None:
        problem = self.problem
        self.forward: NAProblem = problem if isinstance(problem, NAProblem) else problem.forward
        self.group = group_threads(self.forward)
        self.queries = 1
        self.of_block: list[Any] = []

    def block_factors(self, axes: list[Any], heads: int, default: tuple[int, int, int]) -> list[list[Any]]:
        """How the loops over rows (if there are rows), columns and heads are cut into blocks and what is in one.

        One parameter for each axis, rather than for all together: only so does TVM find the shared memory of a block.

        Args:
            axes: The loops.
            heads: Of all.
            default: Rows, columns and heads of a block; each a divisor of all.
        """
        rows, columns = (1, *self.forward.spatial)[-2:]
        wanted = (("rows", rows, MAX_ROWS), ("columns", columns, MAX_THREADS), ("heads", heads, MAX_HEADS))
        found = []
        for loop, (axis, extent, most), inner in zip(axes, wanted[-len(axes) :], default[-len(axes) :], strict=True):
            limit = min(most, MAX_THREADS // self.group)
            found.append(self.tune.factors(f"{axis} at once", loop, extent, inner, limit=limit))
        self.of_block = [factors[1] for factors in found]
        for factor in self.of_block:
            self.queries *= int(self.sch.get(factor))
        return found

    def bind_block(self, loops: list[Any]) -> None:
        """Loops over the blocks of a grid."""
        self.sch.bind(self.fuse(loops), "blockIdx.x")

    def copy(self, name: str, index: int, loop: Any, width: int) -> None:
        """Read what a stage reads through registers, ``width`` elements at once."""
        block = self.block(name)
        copied = self.sch.cache_read(block, index, "local", consumer_blocks=[block])
        self.sch.compute_at(copied, loop, preserve_unit_loops=True)
        self.sch.vectorize(self.split(self.sch.get_loops(copied)[-1], [None, width])[1])

    def unroll_steps(self, loop: Any, name: str) -> None:
        """Let the compiler unroll a loop, if it is short enough."""
        self.unroll_by_compiler(loop, name, _UNROLLED, default=_UNROLLED[2])

    @property
    def width(self) -> int:
        """Channels that a thread reads at once: of the widest loads, unless that leaves threads without work."""
        each = -(-self.forward.head_dim_v // self.group)
        return min(load_width(self.forward, self.forward.head_dim_v), 1 << (each.bit_length() - 1))

    def channels(self, loop: Any) -> list[Any]:
        """Split a loop over channels: threads of a group (bound), rounds, a load's width."""
        rounds = -(-self.forward.head_dim_v // (self.group * self.width))
        loops = self.split(loop, [self.group, rounds, self.width])
        self.sch.bind(loops[0], "threadIdx.x")
        self.sch.unroll(loops[1])
        return loops

    def write_channels(self, stored: Any) -> None:
        """Each thread writes its channels, as many at once as it reads, after what else there is to do for them."""
        lane, _, inner = self.channels(self.sch.get_loops(stored)[-1])
        self.sch.vectorize(inner)
        self.sch.compute_at(self.block("out"), lane, preserve_unit_loops=True)
        self.sch.unroll(self.loops("out")[-1])
