"""Schedules for people."""

from __future__ import annotations

import json

import pytest

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.dense import DenseProblem
from tvm_na.problems.registry import Problem
from tvm_na.problems.unfused import KINDS, UnfusedProblem
from tvm_na.schedules import spaces_for
from tvm_na.schedules.describe import describe
from tvm_na.targets.target import parse_target

LANES = json.dumps({"formulation": "lanes", "queries": 2, "exact_values": False, "pack_values": True})


def test_every_part_is_told_by_name() -> None:
    assert describe(LANES, "pack in task", {"rows per task": 14}) == [
        *("formulation: lanes", "queries: 2", "exact values: no", "pack values: yes"),
        *("sketch: pack in task", "rows per task: 14"),
    ]
    assert describe('{"rows": 2}') == ["formulation: unnamed", "rows: 2"]


@pytest.mark.parametrize("text", ["", "3", "not JSON", "[" * 100_000])
def test_a_formulation_is_a_json_object(text: str) -> None:
    with pytest.raises(ValueError, match="formulation_json: required a JSON object"):
        describe(text, "pack first")


ATTENTION = NAProblem.make((16, 16), 7, 2, 32, dtype="float16")
PROBLEMS: list[Problem] = [
    *(NAProblem.make((9, 9), 3, 2, 8), ATTENTION, BackwardProblem.make((9, 9), 3, 2, 8, bias=True)),
    DenseProblem.make(49, 32, 64),
    *(UnfusedProblem.make(kind, (9, 9), 3, 2, 1 if kind.startswith("bias") else 8) for kind in KINDS),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_no_two_parts_of_a_schedule_have_one_name(problem: Problem) -> None:
    for target in (parse_target("llvm-x86-avx2"), parse_target("cuda-sm_90")):
        for space in spaces_for(problem, target):
            func = space.formulations(problem, target, 1)[-1]
            scheduled = space.apply(func, target)
            assert scheduled is not None
            formulation = str(func.attrs["tvm_na.formulation"])
            told = describe(formulation, scheduled.sketch, scheduled.values)
            assert len(told) == len(json.loads(formulation)) + 1 + len(scheduled.parameters)
