"""CPUs (LLVM): linear layers and convolutions, every one of them.

A task is some tiles of rows of some blocks of weights. In it each tile's sums stay in registers through the whole
reduction, then bias, activation and residual are applied and the output is written, a register at a time.
"""

from __future__ import annotations

from math import gcd, prod
from typing import Any

from tvm_na.problems.dense import DenseProblem
from tvm_na.schedules.base import Formulations, SearchSpace, divisors, largest_divisor
from tvm_na.schedules.cpu.vectors import NEAR, STACK_BYTES, WIDENED, step_cycles, vector_length
from tvm_na.schedules.helpers import FuncSchedule
from tvm_na.targets.target import NATarget
from tvm_na.te.dense.product import DenseTile, channels_of, copied_input, has_pairs, positions_of, tiles_of

#: Of the loops over tiles of rows and blocks of weights, which one is outside; the default for many rows first.
SKETCHES = ("rows outside", "weights outside")

# How many tiles are worth the tuner's time.
_TILES = 5
# Where the tuner starts from: multiply-adds of vectors in a task, to be shared evenly and not cost more to hand out.
_WORK_PER_TASK = 60_000
# Steps along a window's last axis, channels included, that are written out: few channels alone are a short loop.
_SHORT = 32


def tiles(problem: DenseProblem, target: NATarget) -> list[DenseTile]:
    """Tiles whose sums fit into the registers beside the operands, the one expected to be the fastest first."""
    vector = vector_length(problem.dtype, target)
    positions = positions_of(problem)
    load = NEAR if problem.weight_dtype is None else WIDENED

    def cost(tile: DenseTile) -> tuple[float, int]:
        products = tile.rows * tile.vectors
        count = -(-positions // tile.rows) * -(-problem.out_channels // tile.block)
        return count * step_cycles(products, tile.rows, tile.vectors, load), -products

    def fits(tile: DenseTile) -> bool:
        sums = tile.rows * tile.vectors
        weights = tile.vectors if tile.rows > 1 else 1  # one row reads each weight once, as an operand in memory
        if has_pairs(problem):
            weights = 2 * tile.vectors + 1  # words, what is made of them, and a mask
        return sums + weights + 1 <= target.vector_registers and sums * target.vector_bytes < STACK_BYTES

    every = (DenseTile(r, v, vector) for r in range(1, min(positions, 16) + 1) for v in range(1, 9))
    return sorted(filter(fits, every), key=cost)


def _nearest_divisor(n: int, wanted: float) -> int:
    """The divisor of ``n`` with the smallest ratio to ``wanted``."""
    return min(divisors(n), key=lambda d: max(d / wanted, wanted / d))


class DenseSchedule(FuncSchedule):
    """Schedules one PrimFunc; see the module."""

    def __post_init__(self) -> None:
        self.blocks = -(-self.problem.out_channels // self.tile.block)
        # Elements of a vector of the output; they never cross the end of a block or of the channels.
        self.lanes = gcd(self.problem.out_channels, self.tile.vector)

    def build(self) -> None:
        copy = copied_input(self.problem)
        if copy == "padded":
            self.pad()
        tile = self.place_in_tasks()
        if copy == "wide_rows":
            self.widen(tile)
        self.multiply()

    def pad(self) -> None:
        """The copy with zeros around it, before all tasks."""
        sch = self.sch
        batch, row, *_, channel = self.loops("padded")
        lanes = gcd(channels_of(self.problem), self.tile.vector)
        if lanes > 1:
            sch.vectorize(self.split(channel, [None, lanes])[1])
        sch.parallel(sch.fuse(batch, row) if self.problem.rank > 1 else batch)

    def task_factors(self) -> tuple[list[Any], list[Any]]:
        """Tiles and blocks of a task, each as (tasks, those in one)."""
        _, tiles, blocks, *_ = self.loops("sums")
        count = tiles_of(self.problem, self.tile)
        # Of a row, or of a block of weights, as much as a task can take; of the other what is left.
        at_once = _WORK_PER_TASK / (self.tile.rows * self.tile.vectors * prod(self.problem.weight_shape[1:]))
        if self.sketch == "rows outside":
            block_count = _nearest_divisor(self.blocks, at_once)
            tile_count = _nearest_divisor(count, at_once / block_count)
        else:
            tile_count = _nearest_divisor(count, at_once)
            block_count = _nearest_divisor(self.blocks, at_once / tile_count)
        row_factors = self.tune.factors("row tiles per task", tiles, count, tile_count)
        block_factors = self.tune.factors("weight blocks per task", blocks, self.blocks, block_count)
        return row_factors, block_factors

    def widen(self, loop: Any) -> None:
        """The rows in float32: those of a tile for all blocks of weights in a loop, or all of them before all tasks.

        Where blocks are outside, each task would convert all rows again.
        """
        sch = self.sch
        if self.sketch == "rows outside":
            sch.compute_at(self.block("wide_rows"), loop, preserve_unit_loops=True)
        else:
            sch.parallel(sch.fuse(*self.loops("wide_rows")[:2]))
        lanes = gcd(channels_of(self.problem), self.tile.vector)
        if lanes > 1:
            sch.vectorize(self.split(self.loops("wide_rows")[-1], [None, lanes])[1])

    def place_in_tasks(self) -> Any:
        """Loops of the output: batch, tasks (parallel), tiles of a task, each with its sums; then rows and vectors.

        Returns:
            The first loop in a task: over tiles of rows, or over blocks of weights.
        """
        sch, tile = self.sch, self.tile
        (_, tiles_in_task), (_, blocks_in_task) = self.task_factors()
        batch, position, channel = self.loops("out")
        row_task, row_tile, row = self.split(position, [None, tiles_in_task, tile.rows])
        vectors, lane = self.split(channel, [None, self.lanes])
        per_block = tile.block // self.lanes
        block_task, block, vector = self.split(vectors, [None, blocks_in_task, per_block])
        if self.sketch == "rows outside":
            tasks, inside = (row_task, block_task), (row_tile, block)
        else:
            tasks, inside = (block_task, row_task), (block, row_tile)
        sch.reorder(batch, *tasks, *inside, row, vector, lane)
        sch.compute_at(self.block("sums"), inside[1], preserve_unit_loops=True)
        sch.parallel(sch.fuse(batch, *tasks))
        if self.lanes > 1:
            sch.vectorize(lane)
        if self.lanes == tile.vector:
            self.unroll(row, vector)
        return inside[0]

    def multiply(self) -> None:
        """rows x vectors sums, with the reduction outside of them."""
        sch, problem = self.sch, self.problem
        row, channel_of_block, *window, channel = self.loops("sums")[-problem.rank - 3 :]
        vector, lane = self.split(channel_of_block, [None, self.tile.vector])
        extent, halves = channels_of(problem), []
        if has_pairs(problem):
            channel, half = self.split(channel, [None, 2])
            extent, halves = extent // 2, [half]
        at_once = largest_divisor(extent, 2 if halves else 4)
        outer, inner = self.tune.split("channels at once", channel, extent, at_once, limit=16)
        sch.reorder(*window, outer, inner, *halves, row, vector, lane)
        self.unroll(inner, *halves, row, vector)
        if problem.in_channels * problem.kernel_size[-1] <= _SHORT:
            self.unroll(outer, window[-1])
        sch.vectorize(lane)
        sch.vectorize(self.split_off_init("sums", window[0], unrolled=2))


class CpuDense(SearchSpace):
    """Linear layers and convolutions on CPUs."""

    name = "cpu-dense"
    problems = DenseProblem
    tile_types = (DenseTile,)
    schedule = DenseSchedule

    def serves(self, problem: DenseProblem, target: NATarget) -> bool:
        """Always, on a CPU."""
        return target.kind == "llvm"

    def formulations(self, problem: DenseProblem, target: NATarget, batch: int | None = None) -> Formulations:
        """One for each of the first of :func:`tiles`."""
        from tvm_na.te.dense.product import forward

        return Formulations(
            lambda tile: forward(problem, tile, batch, target.converts_float16), tiles(problem, target)[:_TILES]
        )

    def sketches(self, func: Any, target: NATarget) -> tuple[str, ...]:
        """The default first: what is larger is read once, the rest stays near."""
        problem = DenseProblem.from_json(str(func.attrs["tvm_na.problem"]))
        window = problem.useful_flops // (2 * positions_of(problem))  # numbers in the weights
        return SKETCHES if positions_of(problem) * problem.in_channels >= window else SKETCHES[::-1]


SPACE = CpuDense()
