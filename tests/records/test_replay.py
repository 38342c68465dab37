"""A record is data: its search space schedules with the values that it says, and nothing of its trace is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tvm
from tvm import s_tir
from tvm.s_tir.schedule import Trace

from tests.records.tuned import commit_drawn
from tvm_na.problems.attention import NAProblem
from tvm_na.records.read import records_in
from tvm_na.records.record import Record
from tvm_na.records.rejections import InapplicableError
from tvm_na.records.replay import at_point, describe_record, point_of, replayed
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Point
from tvm_na.targets.target import detect_target

PROBLEM = NAProblem.make((9, 9), 3, 1, 8)
LLVM = "define i32 @planted() { ret i32 1 }"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("records")
    commit_drawn(found, PROBLEM)
    return found


def instruction(trace: Any, kind: str) -> Any:
    return next(i for i in trace[0] if i[0] == kind)


def annotate(trace: Any) -> None:
    """Native code at the parallel loop, in a trace that MetaSchedule would execute."""
    number = next(n for n, i in enumerate(trace[0]) if i[0] == "Parallel") + 1
    loop = trace[0][number - 1][1][0]
    trace[0].insert(number, ["Annotate", [loop, json.dumps(LLVM)], ["pragma_import_llvm"], []])
    for decision in trace[1]:
        decision[0] += decision[0] >= number


def choose(kind: str, decision: Any) -> Callable[[Any], None]:
    def change(trace: Any) -> None:
        number = next(n for n, i in enumerate(trace[0]) if i[0] == kind)
        next(d for d in trace[1] if d[0] == number)[1] = decision

    return change


TAMPERED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "native code": (annotate, "has Annotate .*pragma_import_llvm"),
    "another block": (lambda t: instruction(t, "GetSBlock").__setitem__(2, ["none", "main"]), "has GetSBlock .*none"),
    "cut short": (lambda t: instruction(t, "Parallel").__setitem__(0, "GetLoops"), "lacks Parallel"),
    "more than the space does": (lambda t: t[0].append(["Parallel", ["l1"], [], []]), "has Parallel"),
    "no divisor": (choose("SamplePerfectTile", [2, 4]), "required one of 1, 3, 9, got 4"),
    "a product of another extent": (choose("SamplePerfectTile", [7, 3]), "lacks SamplePerfectTile"),
    "beyond the options": (choose("SampleCategorical", 99), "IndexError|index out of range"),
    "from the end of the options": (choose("SampleCategorical", -1), "SampleCategorical with -1"),
    "a word for a number": (choose("SamplePerfectTile", [1, "9"]), "SamplePerfectTile of '9'"),
    "a parameter too few": (
        lambda t: instruction(t, "SampleCategorical").__setitem__(0, "GetLoops"),
        "draw nothing",
    ),
    "a decision too many": (lambda t: t[1].append([9999, 1]), "9999"),
    "another draw": (lambda t: t[0].append(["SampleComputeLocation", ["b0"], [], ["l9"]]), "SampleComputeLocation"),
    "an unknown sketch": (
        lambda t: instruction(t, "Annotate")[1].__setitem__(1, '"none"'),
        "sketch: required one of .*, got none",
    ),
    "no sketch": (lambda t: instruction(t, "Annotate")[2].__setitem__(0, "other"), "trace: required"),
    "no trace": (lambda t: t.clear(), "trace: required"),
    "mistyped": (lambda t: t[0].insert(0, 7), "trace: required"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_anything_else_is_refused_with_the_reason(folder: Path, name: str) -> None:
    change, says = TAMPERED[name]
    (record,) = records_in(folder)
    trace = record.trace
    change(trace)
    forged = Record(**{**vars(record), "trace_json": json.dumps(trace)})
    with pytest.raises(InapplicableError, match=says):
        replayed(forged, PROBLEM, detect_target())
    assert "it no longer applies" in describe_record(forged)


def test_such_a_trace_would_have_been_executed(folder: Path) -> None:
    (record,) = records_in(folder)
    trace = record.trace
    annotate(trace)
    (space,) = spaces_for(PROBLEM, detect_target())
    executed = s_tir.Schedule(tvm.IRModule({"main": space.formulations(PROBLEM, detect_target(), 1)[0]}))
    Trace.apply_json_to_schedule(trace, executed)
    assert "pragma_import_llvm" in executed.mod.script()


def test_a_point_is_all_there_is_to_a_record(folder: Path) -> None:
    (record,), target = records_in(folder), detect_target()
    point = point_of(record, target)
    tvm.ir.assert_structural_equal(at_point(point, PROBLEM, target), replayed(record, PROBLEM, target))
    name = next(iter(point.parameters))
    for parameters, says in (
        ({**point.parameters, name: 99}, f"{name}: required one of .*, got 99"),
        ({**point.parameters, "other": 1}, "parameters: required .* values, got"),
        (
            {n: v for n, v in point.parameters.items() if n != name},
            f"parameters: required a value for {name}, got none",
        ),
    ):
        with pytest.raises(InapplicableError, match=says):
            at_point(Point(point.formulation, point.sketch, parameters), PROBLEM, target)
    with pytest.raises(InapplicableError, match="has no formulation"):
        at_point(Point("{}", point.sketch, point.parameters), PROBLEM, target)
