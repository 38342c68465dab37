"""GPUs (CUDA): every problem, on every architecture, in every dtype, without tensor cores.

Which formulations there are; ``cuda_gather.py`` schedules them. See ``docs/design/cuda.md``.
"""

from __future__ import annotations

from typing import Any

from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.schedules.base import Plan, Scheduled, open_func, problem_of
from tvm_na.schedules.cuda.gather import GatherSchedule, OnlineGatherSchedule
from tvm_na.schedules.cuda.gather_sizes import tiles
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.gather import GatherTile

_STRUCTURE = "through the cache"


def serves(problem: NAProblem, target: NATarget) -> bool:
    """Whether this space has a kernel for ``problem`` on ``target``: on a GPU always, but in TF32."""
    return target.kind == "cuda" and problem.dtype != TF32


def formulations(problem: NAProblem, target: NATarget, batch: int | None = None) -> list[Any]:
    """The PrimFuncs of ``problem`` that are worth scheduling, the default first."""
    from tvm_na.te.attention.gather import forward

    return [forward(problem, tile, batch) for tile in tiles(problem)]


def structures(func: Any, target: NATarget) -> tuple[str, ...]:
    """The structures for a gather PrimFunc."""
    return (_STRUCTURE,)


def apply(func: Any, target: NATarget, plan: Plan = Plan()) -> Scheduled | None:  # noqa: B008
    """The schedule of a gather PrimFunc; None for any other function or target.

    Args:
        func: An unscheduled PrimFunc of :func:`tvm_na.te.attention.gather.forward`.
        target: The machine.
        plan: Which point of the space is wanted.

    Raises:
        ValueError: if there is no such structure.
    """
    problem = problem_of(func, "gather")
    if problem is None or not serves(problem, target):
        return None
    opened = open_func(func, plan, structures(func, target))
    tile = GatherTile(**opened.formulation)
    schedule = OnlineGatherSchedule if tile.lanes else GatherSchedule
    schedule(opened.schedule, problem, tile, opened.decide).build()
    return opened.scheduled()
