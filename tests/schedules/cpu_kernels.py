"""Kernels of CPU schedules against the reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from torch import Tensor

from tests.conftest import GRADIENT_TOLERANCE, TOLERANCE
from tests.helpers import relative_error
from tests.jit.compiling import compile_all
from tvm_na.jit import build
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.dense import DenseProblem
from tvm_na.problems.registry import Problem
from tvm_na.reference.case import Case, WrongNumbers, outputs_of
from tvm_na.reference.cases import make_case
from tvm_na.targets.target import detect_target


def default(problem: Problem) -> tuple[Problem, Any]:
    """A problem with the module of its default schedule for this machine."""
    return problem, build.scheduled_module(problem, detect_target())[0]


def budget(problem: Problem) -> float:
    """The largest relative error of a right result."""
    of_values = isinstance(problem, (NAProblem, DenseProblem))
    return (TOLERANCE if of_values else GRADIENT_TOLERANCE)[problem.dtype]


def run(problem: Problem, kernel: Any, batch: int, formulation: str = "") -> tuple[Case, list[Tensor]]:
    """Inputs and what is right, and what a kernel writes over NaN."""
    case = make_case(problem, batch, "cpu", formulation)
    outputs = case.outputs()
    kernel(*case.inputs, *outputs)
    return case, outputs


def check(problem: Problem, kernel: Any, batch: int, note: object = "", formulation: str = "") -> None:
    """Run a kernel, whose results must be the reference's."""
    case, outputs = run(problem, kernel, batch, formulation)
    if isinstance(problem, BackwardProblem) and math.prod(problem.forward.kernel_size) == 1:
        # One key has the weight 1 whatever its score: gradients of scores are 0, and what is found a rounding; in the
        # bias it is the sum of as many as there are queries.
        for argument, found, right in zip(outputs_of(problem), outputs, case.expected, strict=True):
            roundings = batch * math.prod(problem.spatial) if argument.name == "d_rpb" else 1
            assert relative_error(found, right) <= roundings * budget(problem), (str(problem), note, argument.name)
        return
    try:
        case.check(outputs, budget(problem))
    except WrongNumbers as error:
        pytest.fail(f"{problem} {note}: {error}")


def check_all(scheduled: Iterable[tuple[Problem, Any]], batches: Sequence[int] = (1, 2), note: object = "") -> None:
    """Compile modules of problems, and check each with one of the batches in turn."""
    problems, modules = zip(*scheduled, strict=True)
    for n, (problem, kernel) in enumerate(zip(problems, compile_all(modules), strict=True)):
        check(problem, kernel, batches[n % len(batches)], note or n)
