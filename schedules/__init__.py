"""Search spaces: which serve a problem on a target, in order of preference.

Importing this imports no TVM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.dense import DenseProblem
from tvm_na.problems.registry import Problem
from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.schedules.base import Plan, Scheduled
from tvm_na.schedules.cpu import attention as cpu
from tvm_na.schedules.cpu import backward as cpu_backward
from tvm_na.schedules.cpu import dense as cpu_dense
from tvm_na.schedules.cpu import unfused as cpu_unfused
from tvm_na.schedules.cuda import backward as cuda_backward
from tvm_na.schedules.cuda import gather_space as cuda
from tvm_na.schedules.cuda import tensor_core_space as cuda_mma
from tvm_na.schedules.cuda import unfused_space as cuda_unfused
from tvm_na.targets.target import NATarget

__all__ = ["SearchSpace", "spaces_for"]


class Formulations(Protocol):
    """See :attr:`SearchSpace.formulations`."""

    def __call__(self, problem: Any, target: NATarget, batch: int | None = None) -> list[Any]: ...


@dataclass(frozen=True)
class SearchSpace:
    """A search space and the formulations it schedules.

    Attributes:
        name: For records and display.
        serves: Whether there is a kernel for (problem, target).
        formulations: ``formulations(problem, target, batch=None)``: the PrimFuncs of a problem that are worth
            scheduling, the default first; with a symbolic batch, or (for the tuner) the one given.
        structures: The names of the structures for one of them, the default first.
        apply: Schedules one of them (see :mod:`tvm_na.schedules.base`).
    """

    name: str
    serves: Callable[[Any, NATarget], bool]
    formulations: Formulations
    structures: Callable[[Any, NATarget], tuple[str, ...]]
    apply: Callable[[Any, NATarget, Plan], Scheduled | None]


# By the class of the problem.
_SPACES: dict[type, tuple[SearchSpace, ...]] = {
    NAProblem: (
        SearchSpace("cpu-lanes", cpu.serves, cpu.formulations, cpu.structures, cpu.apply),
        SearchSpace("cuda-band", cuda_mma.serves, cuda_mma.formulations, cuda_mma.structures, cuda_mma.apply),
        SearchSpace("cuda-gather", cuda.serves, cuda.formulations, cuda.structures, cuda.apply),
    ),
    BackwardProblem: (
        SearchSpace(
            "cpu-backward",
            cpu_backward.serves,
            cpu_backward.formulations,
            cpu_backward.structures,
            cpu_backward.apply,
        ),
        SearchSpace(
            "cuda-backward",
            cuda_backward.serves,
            cuda_backward.formulations,
            cuda_backward.structures,
            cuda_backward.apply,
        ),
    ),
    DenseProblem: (
        SearchSpace("cpu-dense", cpu_dense.serves, cpu_dense.formulations, cpu_dense.structures, cpu_dense.apply),
    ),
    UnfusedProblem: (
        SearchSpace(
            "cpu-unfused", cpu_unfused.serves, cpu_unfused.formulations, cpu_unfused.structures, cpu_unfused.apply
        ),
        SearchSpace(
            "cuda-unfused", cuda_unfused.serves, cuda_unfused.formulations, cuda_unfused.structures, cuda_unfused.apply
        ),
    ),
}


def spaces_for(problem: Problem, target: NATarget) -> list[SearchSpace]:
    """The spaces that serve ``problem`` on ``target``, the preferred first; empty if none does."""
    return [space for space in _SPACES[type(problem)] if space.serves(problem, target)]
