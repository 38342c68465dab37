"""Tuning the unfused operators for a GPU without one: candidates are built for real, times are invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cuda.test_limits import needs_compiler
from tests.tune.runs import run
from tests.tune.test_cuda import FATBIN, SM_90, pretended
from tvm_na.jit import build
from tvm_na.measure.cuda import Sets
from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.records import replay
from tvm_na.records import select as choose
from tvm_na.records.read import records_in
from tvm_na.reference.cases import make_case
from tvm_na.tune.run import TuneResult
from tvm_na.tune.tasks import formulations_of, tasks_from_file
from tvm_na.tune.trial_log import trials_in

KINDS = ("qk", "bias_parts")
_TRIALS = 2


def problem_of(kind: str, heads: int = 2) -> UnfusedProblem:
    return UnfusedProblem.make(kind, (8, 9), 3, heads, 16, bias=kind == "qk", dtype="float16")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    folder = tmp_path_factory.mktemp("records") / SM_90.name
    problems = [problem_of(kind) for kind in KINDS]
    how: dict[str, Any] = {"candidates": 2, "only_default_formulation": True, "jobs": 2}
    return run(problems, SM_90, trials=_TRIALS * len(KINDS), output=folder, devices=pretended(), **how)


@needs_compiler
def test_the_tuner_builds_and_measures_them(tuned: TuneResult) -> None:
    trials = trials_in(tuned.folder)
    assert len(trials) == tuned.state.measured == _TRIALS * len(KINDS)
    assert {trial.problem for trial in trials} == {problem_of(kind).to_json() for kind in KINDS}
    assert not [trial for trial in trials if trial.failure is not None]
    assert len({(trial.problem, trial.point) for trial in trials}) == len(trials)


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
def test_the_best_record_is_what_is_built(
    kind: str, tuned: TuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(tuned.folder.parent))
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path))
    problem = problem_of(kind)
    best = min((r for r in records_in(tuned.folder) if r.problem == problem), key=lambda r: r.seconds)
    chosen = choose.choose(problem, SM_90)
    assert chosen.kind == "record" and chosen.record is not None and chosen.record.digest == best.digest
    assert FATBIN in build.compile_for(problem, SM_90).read_bytes()
    # One kernel for every batch, and the schedule that was measured.
    assert "batch" in replay.replayed(best, problem, SM_90).script()
    near = problem_of(kind, heads=4)
    assert choose.choose(near, SM_90).kind == "nearest"
    assert build.scheduled_module(near, SM_90, choose.choose(near, SM_90))[1].name == "cuda-unfused"


@pytest.mark.parametrize("kind", KINDS)
def test_sets_of_arguments_rotate(kind: str) -> None:
    """All but a scale and a bias have a batch, and so copies."""
    problem = problem_of(kind)
    sets = Sets.of(problem, make_case(problem, 2, "cpu"))
    first, second = sets.arguments[:2]
    shared = [a is b for a, b in zip(first, second, strict=True)]
    assert shared == {"qk": [False, False, True, True, False], "bias_parts": [False, False]}[kind]


def test_a_file_names_their_kinds(tmp_path: Path) -> None:
    file = tmp_path / "problems.json"
    file.write_text(json.dumps([json.loads(problem_of(kind).to_json()) for kind in KINDS]), encoding="utf-8")
    assert [task.problem for task in tasks_from_file(file)] == [problem_of(kind) for kind in KINDS]
    with pytest.raises(
        ValueError, match="problem: required one that has a compiled kernel on cuda-sm_90, got bias_sums"
    ):
        formulations_of(UnfusedProblem.make("bias_sums", (8, 9), 3, 2, 16), SM_90)
