"""GPUs (CUDA): every problem, on every architecture, in every dtype, without tensor cores.

Which formulations there are; ``cuda_gather.py`` schedules them. See ``docs/DESIGN.md``.
"""

from __future__ import annotations

import json
from typing import Any

from tvm_na.problem import NAProblem
from tvm_na.schedules.base import STRUCTURE, Decisions, Plan, Scheduled
from tvm_na.schedules.cuda_gather import GatherSchedule, OnlineGatherSchedule
from tvm_na.schedules.cuda_sizes import tiles
from tvm_na.target import NATarget
from tvm_na.te.gather import GatherTile

_STRUCTURE = "through the cache"


def serves(problem: NAProblem, target: NATarget) -> bool:
    """Whether this space has a kernel for ``problem`` on ``target``: always, on a GPU."""
    return target.kind == "cuda"


def formulations(problem: NAProblem, target: NATarget, batch: int | None = None) -> list[Any]:
    """The PrimFuncs of ``problem`` that are worth scheduling, the default first."""
    from tvm_na.te.gather import forward

    return [forward(problem, tile, batch) for tile in tiles(problem)]


def structures(func: Any, target: NATarget) -> tuple[str, ...]:
    """The structures for a gather PrimFunc."""
    return (_STRUCTURE,)


def apply(func: Any, target: NATarget, plan: Plan = Plan()) -> Scheduled | None:  # noqa: B008
    """The schedule of a gather PrimFunc; None for any other function or target.

    Args:
        func: An unscheduled PrimFunc of :func:`tvm_na.te.gather.forward`.
        target: The machine.
        plan: Which point of the space is wanted.

    Raises:
        ValueError: if there is no such structure.
    """
    import tvm
    from tvm import s_tir

    if not func.attrs or "tvm_na.formulation" not in func.attrs:
        return None
    formulation = json.loads(str(func.attrs["tvm_na.formulation"]))
    problem = NAProblem.from_json(str(func.attrs["tvm_na.problem"]))
    if formulation.pop("formulation") != "gather" or not serves(problem, target):
        return None
    if plan.structure not in (None, _STRUCTURE):
        raise ValueError(f"structure: required {_STRUCTURE}, got {plan.structure}")
    sch = s_tir.Schedule(tvm.IRModule({"main": func}), seed=plan.seed)
    decide = Decisions(sch, plan)
    tile = GatherTile(**formulation)
    (OnlineGatherSchedule if tile.lanes else GatherSchedule)(sch, problem, tile, decide).build()
    sch.annotate(sch.get_sblock("out"), STRUCTURE, _STRUCTURE)
    return Scheduled(sch, _STRUCTURE, tuple(decide.made))
