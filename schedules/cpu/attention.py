"""CPUs (LLVM): every float32 and float64 problem, through the lanes formulation.

Which formulations and structures there are; ``cpu_lanes.py`` schedules them. See ``docs/design/cpu.md`` for what was
measured.
"""

from __future__ import annotations

from typing import Any

from tvm_na.problems.attention import NAProblem
from tvm_na.schedules.base import Plan, Scheduled, open_func, problem_of
from tvm_na.schedules.cpu.lanes import STRUCTURES, LanesSchedule
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.lanes import LanesTile, lanes_of

#: The elements between neighboring values of one head from which on values are packed: further apart than
#: this, the values of a window fall into few sets of the first cache.
PACK_VALUES_FROM = 256

# How many sizes of a tile are worth the tuner's time.
_TILES = 2


def serves(problem: NAProblem, target: NATarget) -> bool:
    """Whether this space has a kernel for ``problem`` on ``target``."""
    return target.kind == "llvm" and problem.dtype in ("float32", "float64")


def vector_length(problem: NAProblem, target: NATarget) -> int:
    """Elements of the problem's dtype in one vector register."""
    return target.vector_bytes // (8 if problem.accum_dtype == "float64" else 4)


def tiles(problem: NAProblem, target: NATarget, vector: int | None = None) -> list[LanesTile]:
    """Tiles of the lanes formulation, the one expected to be the fastest first.

    Args:
        problem: The problem.
        target: The machine.
        vector: Lanes per vector, by default those of a register.
    """
    vector = vector or vector_length(problem, target)
    columns = -(-problem.spatial[-1] // problem.dilation[-1])
    pack = problem.dilation[-1] * problem.heads_kv * problem.head_dim_v >= PACK_VALUES_FROM

    def cost(tile: LanesTile) -> tuple[float, int]:
        # Vector operations: products, and what loading keys and queries costs beside them.
        vectors = lanes_of(problem, tile) // tile.vector
        count = -(-columns // tile.queries)
        return count * (vectors * tile.queries + 0.5 * vectors + 0.3 * tile.queries), -tile.queries

    limit = min(columns, target.vector_registers // 2)
    return sorted((LanesTile(q, vector, pack_values=pack) for q in range(1, limit + 1)), key=cost)


def formulations(problem: NAProblem, target: NATarget, batch: int | None = None) -> list[Any]:
    """The PrimFuncs of ``problem`` that are worth scheduling, the default first.

    Some sizes of the tile, with long vectors also one of vectors half as long; values of each query's window or of
    the whole box; for the first of them, also with values packed where they are not by default, or the other way
    round.
    """
    from tvm_na.te.attention.lanes import forward

    vector = vector_length(problem, target)
    chosen = tiles(problem, target)[:_TILES]
    if vector >= 16:
        chosen += tiles(problem, target, vector // 2)[:1]
    found = [LanesTile(t.queries, t.vector, exact, t.pack_values) for t in chosen for exact in (True, False)]
    first = found[0]
    found += [LanesTile(first.queries, vector, exact, not first.pack_values) for exact in (True, False)]
    return [forward(problem, tile, batch) for tile in found]


def structures(func: Any, target: NATarget) -> tuple[str, ...]:
    """The structures for a lanes PrimFunc, the default first."""
    return tuple(STRUCTURES)


def apply(func: Any, target: NATarget, plan: Plan = Plan()) -> Scheduled | None:  # noqa: B008
    """The schedule of a lanes PrimFunc; None for any other function or target.

    Args:
        func: An unscheduled PrimFunc of :func:`tvm_na.te.attention.lanes.forward`.
        target: The machine.
        plan: Which point of the space is wanted.

    Raises:
        ValueError: if there is no such structure.
    """
    problem = problem_of(func, "lanes")
    if problem is None or not serves(problem, target):
        return None
    opened = open_func(func, plan, structures(func, target))
    tile, structure = LanesTile(**opened.formulation), STRUCTURES[opened.structure]
    LanesSchedule(opened.schedule, problem, tile, target, structure, opened.decide).build()
    return opened.scheduled()
