"""Whether a kernel is right."""

from __future__ import annotations

from typing import Any

from tests.conftest import TOLERANCE
from tvm_na.problems.registry import Problem
from tvm_na.reference.cases import make_case


def check(problem: Problem, kernel: Any, batch: int) -> None:
    """Run a kernel, whose results must be the reference's; outputs are NaN before."""
    case = make_case(problem, batch, "cpu")
    outputs = case.outputs()
    kernel(*case.inputs, *outputs)
    case.check(outputs, TOLERANCE[problem.dtype])
