"""GPUs (CUDA): the unfused operators, on every architecture, in every dtype, without tensor cores.

Which formulations there are; ``cuda_unfused_loops.py`` schedules them. See ``docs/design/cuda.md``.
"""

from __future__ import annotations

from typing import Any

from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.schedules.base import Plan, Scheduled, divisors, open_func, unfused_of
from tvm_na.schedules.cuda.gather_sizes import group_threads, load_width
from tvm_na.targets.target import NATarget

STRUCTURES = ("through the cache",)


def serves(problem: UnfusedProblem, target: NATarget) -> bool:
    """Whether this space has a kernel for ``problem`` on ``target``: on a GPU all but whole sums for a bias."""
    return target.kind == "cuda" and problem.kind != "bias_sums"


def _tiles(problem: UnfusedProblem) -> list[Any]:
    from tvm_na.te.unfused.gather import UnfusedTile

    if problem.kind in ("qk", "dots"):
        group = group_threads(problem.forward)
        parts = [d for d in reversed(divisors(problem.channels)) if group % d == 0]
        return [UnfusedTile(parts=n) for n in parts[:2]]
    if problem.kind == "av_transposed":
        width = load_width(problem.forward, problem.channels)
        return [UnfusedTile(width=n) for n in dict.fromkeys((width, max(1, width // 2)))]
    return [UnfusedTile()]


def formulations(problem: UnfusedProblem, target: NATarget, batch: int | None = None) -> list[Any]:
    """The PrimFuncs of ``problem`` that are worth scheduling, the default first."""
    from tvm_na.te.unfused.gather import gathered

    return [gathered(problem, tile, batch) for tile in _tiles(problem)]


def structures(func: Any, target: NATarget) -> tuple[str, ...]:
    """The only structure."""
    return STRUCTURES


def apply(func: Any, target: NATarget, plan: Plan = Plan()) -> Scheduled | None:  # noqa: B008
    """The schedule of an unfused PrimFunc; None for any other function or target.

    Args:
        func: An unscheduled PrimFunc of :func:`tvm_na.te.unfused.gather.gathered`.
        target: The machine.
        plan: Which point of the space is wanted.

    Raises:
        ValueError: if there is no such structure.
    """
    problem = unfused_of(func, "unfused gather")
    if problem is None or not serves(problem, target):
        return None
    from tvm_na.schedules.cuda import unfused as loops
    from tvm_na.te.unfused.gather import UnfusedTile

    opened = open_func(func, plan, STRUCTURES)
    schedules: dict[str, Any] = {
        "qk": loops.ScoresSchedule,
        "dots": loops.ScoresSchedule,
        "av": loops.SumsSchedule,
        "av_transposed": loops.TransposedSchedule,
        "bias_parts": loops.PartsSchedule,
    }
    tile = UnfusedTile(**opened.formulation)
    schedules[problem.kind](opened.schedule, problem, tile, opened.decide).build()
    return opened.scheduled()
