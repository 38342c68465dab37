"""Names of device functions: what a profile shows."""

from __future__ import annotations

import random
import re
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers import random_problem
from tests.schedules.cuda_kernels import TARGET, scheduled
from tvm_na.cuda.library import generated
from tvm_na.cuda.names import name_of
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.registry import Problem
from tvm_na.problems.unfused import KINDS, UnfusedProblem

NAT = NAProblem.make((14, 14), 7, 2, 32, bias=True, dtype="float16")


def function(problem: Problem, formulation: str = "gather") -> Any:
    """What of a PrimFunc a name is made of."""
    marks = {"tvm_na.problem": problem.to_json(), "tvm_na.formulation": f'{{"formulation": "{formulation}"}}'}
    return SimpleNamespace(attrs=marks)


def test_a_name_says_what_is_computed() -> None:
    assert name_of(function(NAT, "band")) == "na2d_14x14_heads_2_dim_32_k_7_float16_rpb_band"
    assert name_of(SimpleNamespace(attrs=None)) == name_of(SimpleNamespace(attrs={})) == "main"


def test_names_are_identifiers_and_each_has_one_problem() -> None:
    rng = random.Random(0)
    forward = {random_problem(rng, rank=rng.choice([1, 2, 3]), sizes=(4, 9)) for _ in range(200)}
    unfused = {UnfusedProblem.make(kind, (8, 9), 3, 2, 1 if "bias" in kind else 16) for kind in KINDS}
    problems: set[Problem] = forward | {BackwardProblem(problem) for problem in forward} | unfused
    names = [name_of(function(problem, formulation)) for problem in problems for formulation in ("gather", "band")]
    assert len(set(names)) == len(names) == 2 * len(problems)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name, re.ASCII) for name in names)


@pytest.mark.parametrize(("problem", "functions"), [(NAT, 1), (BackwardProblem(NAT), 3)], ids=["forward", "backward"])
def test_device_functions_have_the_name_of_their_problem(problem: Problem, functions: int) -> None:
    module = scheduled(problem).schedule.mod
    name, (source, _) = name_of(module["main"]), generated(module, TARGET)
    found = re.findall(r"__launch_bounds__\(\d+\) (\w+)\([^;]*\{", source)
    assert name != "main" and found == [f"{name}_kernel{n}" for n in ("", "_1", "_2")[:functions]]
