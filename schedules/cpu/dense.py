"""CPUs (LLVM): linear layers and convolutions, every one of them.

A task is some tiles of rows of some blocks of weights. In it each tile's sums stay in registers through the whole
reduction, then bias, activation and residual are applied and the output is written, a register at a time.
"""

from __future__ import annotations

import json
from math import gcd, prod
from typing import Any

from tvm_na.problems.dense import DenseProblem
from tvm_na.schedules.base import Opened, Plan, Scheduled, divisors, largest_divisor, open_func
from tvm_na.targets.target import NATarget
from tvm_na.te.dense.product import FORMULATION, DenseTile, positions_of, tiles_of

#: Of the loops over tiles of rows and blocks of weights, which one is outside; the default for many rows first.
STRUCTURES = ("rows outside", "weights outside")

# How many tiles are worth the tuner's time.
_TILES = 5
# Multiply-adds that must be under way at once, since each waits for the one before it: two pipes, four cycles.
_IN_FLIGHT = 8
# From so many bytes on TVM takes a tile's sums from a pool of memory, not from the stack, and they are in no register.
_STACK_BYTES = 1024
# Where the tuner starts from: multiply-adds of vectors in a task, to be shared evenly and not cost more to hand out.
_WORK_PER_TASK = 60_000
# Steps along a window's last axis, channels included, that are written out: few channels alone are a short loop.
_SHORT = 32


def serves(problem: DenseProblem, target: NATarget) -> bool:
    """Whether this space has a kernel for ``problem`` on ``target``."""
    return target.kind == "llvm"


def tiles(problem: DenseProblem, target: NATarget) -> list[DenseTile]:
    """Tiles whose sums fit into the registers beside the operands, the one expected to be the fastest first."""
    vector = target.vector_bytes // (8 if problem.dtype == "float64" else 4)
    positions = positions_of(problem)

    def cost(tile: DenseTile) -> tuple[float, int]:
        # Cycles of a step: two multiply-adds or two loads in each; what loads cost beside them, of weights the more
        # since they come from further away.
        products, loads = tile.rows * tile.vectors, tile.rows + tile.vectors
        step = max(products, loads, _IN_FLIGHT) / 2 + 0.1 * tile.rows + 0.2 * tile.vectors
        count = -(-positions // tile.rows) * -(-problem.out_channels // tile.block)
        return count * step, -products

    def fits(tile: DenseTile) -> bool:
        sums = tile.rows * tile.vectors
        weights = tile.vectors if tile.rows > 1 else 1  # one row reads each weight once, as an operand in memory
        return sums + weights + 1 <= target.vector_registers and sums * target.vector_bytes < _STACK_BYTES

    every = (DenseTile(r, v, vector) for r in range(1, min(positions, 16) + 1) for v in range(1, 9))
    return sorted(filter(fits, every), key=cost)


def formulations(problem: DenseProblem, target: NATarget, batch: int | None = None) -> list[Any]:
    """The PrimFuncs of ``problem`` that are worth scheduling, the default first."""
    from tvm_na.te.dense.product import forward

    return [forward(problem, tile, batch) for tile in tiles(problem, target)[:_TILES]]


def _problem_of(func: Any) -> DenseProblem | None:
    """What a PrimFunc computes; None if it is not in this formulation."""
    if not func.attrs or "tvm_na.formulation" not in func.attrs:
        return None
    named = json.loads(str(func.attrs["tvm_na.formulation"]))["formulation"]
    return DenseProblem.from_json(str(func.attrs["tvm_na.problem"])) if named == FORMULATION else None


def structures(func: Any, target: NATarget) -> tuple[str, ...]:
    """The structures for a dense PrimFunc, the default first: what is larger is read once, the rest stays near."""
    problem = _problem_of(func)
    assert problem is not None
    window = problem.useful_flops // (2 * positions_of(problem))  # numbers in the weights
    return STRUCTURES if positions_of(problem) * problem.in_channels >= window else STRUCTURES[::-1]


def apply(func: Any, target: NATarget, plan: Plan = Plan()) -> Scheduled | None:  # noqa: B008
    """The schedule of a dense PrimFunc; None for any other function or target.

    Args:
        func: An unscheduled PrimFunc of :func:`tvm_na.te.dense.product.forward`.
        target: The machine.
        plan: Which point of the space is wanted.

    Raises:
        ValueError: if there is no such structure.
    """
    problem = _problem_of(func)
    if problem is None or not serves(problem, target):
        return None
    opened = open_func(func, plan, structures(func, target))
    DenseSchedule(opened, problem, DenseTile(**opened.formulation)).build()
    return opened.scheduled()


def _nearest_divisor(n: int, wanted: float) -> int:
    """The divisor of ``n`` with the smallest ratio to ``wanted``."""
    return min(divisors(n), key=lambda d: max(d / wanted, wanted / d))


class DenseSchedule:
    """Schedules one PrimFunc; see the module."""

    def __init__(self, opened: Opened, problem: DenseProblem, tile: DenseTile) -> None:
        self.sch, self.decide, self.structure = opened.schedule, opened.decide, opened.structure
        self.problem, self.tile = problem, tile
        self.blocks = -(-problem.out_channels // tile.block)
        # Elements of a vector of the output; they never cross the end of a block or of the channels.
        self.lanes = gcd(problem.out_channels, tile.vector)

    def build(self) -> None:
        """Apply every transformation."""
        if any(self.problem.padding):
            self.pad()
        self.place_in_tasks()
        self.multiply()

    def pad(self) -> None:
        """The copy with zeros around it, before all tasks."""
        sch = self.sch
        batch, row, *_, channel = sch.get_loops(sch.get_sblock("padded"))
        lanes = gcd(self.problem.in_channels, self.tile.vector)
        if lanes > 1:
            sch.vectorize(sch.split(channel, [None, lanes], preserve_unit_iters=True)[1])
        if self.problem.rank > 1:
            sch.parallel(sch.fuse(batch, row))
        else:
            sch.parallel(batch)

    def task_factors(self) -> tuple[list[Any], list[Any]]:
        """Tiles and blocks of a task, each as (tasks, those in one)."""
        _, tiles, blocks, *_ = self.sch.get_loops(self.sch.get_sblock("sums"))
        count = tiles_of(self.problem, self.tile)
        # Of a row, or of a block of weights, as much as a task can take; of the other what is left.
        at_once = _WORK_PER_TASK / (self.tile.rows * self.tile.vectors * prod(self.problem.weight_shape[1:]))
        if self.structure == "rows outside":
            block_count = _nearest_divisor(self.blocks, at_once)
            tile_count = _nearest_divisor(count, at_once / block_count)
        else:
            tile_count = _nearest_divisor(count, at_once)
            block_count = _nearest_divisor(self.blocks, at_once / tile_count)
        row_factors = self.decide.factors("row tiles per task", tiles, count, tile_count)
        block_factors = self.decide.factors("weight blocks per task", blocks, self.blocks, block_count)
        return row_factors, block_factors

    def place_in_tasks(self) -> None:
        """Loops of the output: batch, tasks (parallel), tiles of a task, each with its sums; then rows and vectors."""
        sch, tile = self.sch, self.tile
        (_, tiles_in_task), (_, blocks_in_task) = self.task_factors()
        batch, position, channel = sch.get_loops(sch.get_sblock("out"))
        row_task, row_tile, row = sch.split(position, [None, tiles_in_task, tile.rows], preserve_unit_iters=True)
        vectors, lane = sch.split(channel, [None, self.lanes], preserve_unit_iters=True)
        per_block = tile.block // self.lanes
        block_task, block, vector = sch.split(vectors, [None, blocks_in_task, per_block], preserve_unit_iters=True)
        if self.structure == "rows outside":
            tasks, inside = (row_task, block_task), (row_tile, block)
        else:
            tasks, inside = (block_task, row_task), (block, row_tile)
        sch.reorder(batch, *tasks, *inside, row, vector, lane)
        sch.compute_at(sch.get_sblock("sums"), inside[1], preserve_unit_loops=True)
        sch.parallel(sch.fuse(batch, *tasks))
        if self.lanes > 1:
            sch.vectorize(lane)
        if self.lanes == tile.vector:
            sch.unroll(row)
            sch.unroll(vector)

    def multiply(self) -> None:
        """rows x vectors sums, with the reduction outside of them."""
        sch, problem = self.sch, self.problem
        block = sch.get_sblock("sums")
        row, channel_of_block, *window, channel = sch.get_loops(block)[-problem.rank - 3 :]
        vector, lane = sch.split(channel_of_block, [None, self.tile.vector], preserve_unit_iters=True)
        at_once = largest_divisor(problem.in_channels, 4)
        outer, inner = self.decide.split("channels at once", channel, problem.in_channels, at_once, limit=16)
        sch.reorder(*window, outer, inner, row, vector, lane)
        for loop in (inner, row, vector):
            sch.unroll(loop)
        if problem.in_channels * problem.kernel_size[-1] <= _SHORT:
            sch.unroll(outer)
            sch.unroll(window[-1])
        sch.vectorize(lane)
        zeros = sch.get_loops(sch.decompose_reduction(block, window[0]))
        for loop in zeros[-3:-1]:
            sch.unroll(loop)
        sch.vectorize(zeros[-1])
