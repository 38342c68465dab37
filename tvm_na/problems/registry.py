"""The problems of all operators, by the key ``operator`` of their JSON."""

from __future__ import annotations

import functools
import json

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.base import Problem
from tvm_na.problems.dense import DenseProblem
from tvm_na.problems.unfused import UnfusedProblem

__all__ = ["PROBLEMS", "Problem", "problem_from_json"]

PROBLEMS: dict[str | None, type[Problem]] = {
    kind.operator: kind for kind in (NAProblem, BackwardProblem, DenseProblem, UnfusedProblem)
}


@functools.lru_cache(maxsize=4096)
def problem_from_json(text: str) -> Problem:
    """The problem, of whichever operator, that ``to_json`` wrote.

    Raises:
        ValueError: it is of an operator that this version does not know.
    """
    fields = json.loads(text)
    operator = fields.get("operator") if isinstance(fields, dict) else None
    if operator not in PROBLEMS:
        raise ValueError(f"operator: required one of {', '.join(filter(None, PROBLEMS))}, or none, got {operator!r}")
    return PROBLEMS[operator].from_json(text)
