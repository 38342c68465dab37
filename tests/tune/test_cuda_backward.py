"""Tuning gradients for a GPU: candidates are built for real; where there is no GPU, times are invented."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.cuda.test_limits import needs_compiler
from tests.tune.test_cuda import FATBIN, Elsewhere
from tvm_na.jit import build
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem, scratch_shapes
from tvm_na.records import replay
from tvm_na.records import select as choose
from tvm_na.records.read import records_in
from tvm_na.schedules.describe import describe
from tvm_na.targets.target import parse_target
from tvm_na.tune.options import GPU_BATCH, batch_for, bytes_needed
from tvm_na.tune.run import TuneResult, tune
from tvm_na.tune.tasks import TuneTask, formulations_of
from tvm_na.tune.trial_log import trials_in

PROBLEM = BackwardProblem(NAProblem.make((8, 8), 3, 2, 16, bias=True, return_lse=True, dtype="float16"))
SM_80 = parse_target("cuda-sm_80")
_TRIALS = 4

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def place() -> Elsewhere:
    return Elsewhere()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, place: Elsewhere) -> TuneResult:
    folder = tmp_path_factory.mktemp("records") / SM_80.name
    return tune([TuneTask(PROBLEM)], SM_80, trials=_TRIALS, output=folder, farm=place, candidates=2)


def test_every_candidate_is_measured(tuned: TuneResult, place: Elsewhere) -> None:
    trials = trials_in(tuned.folder)
    assert len(trials) == tuned.state.measured == _TRIALS
    assert {t.failure for t in trials} == {None}
    assert {(t.threads, t.batch) for t in trials} == {(1, GPU_BATCH)}
    assert {kernel.problem for kernel in place.kernels} == {PROBLEM}
    forms = {f.text for f in formulations_of(PROBLEM, SM_80)}
    assert len(forms) > 2 and len({t.formulation for t in trials}) > 1


def test_records_have_the_batch_in_all_arguments(tuned: TuneResult) -> None:
    records = records_in(tuned.folder)
    assert {(r.problem, r.batch) for r in records} == {(PROBLEM, GPU_BATCH)}
    line = json.loads((tuned.folder / "database_tuning_record.json").read_text().splitlines()[0])
    shapes = [shape for _, _, shape in line[1][3]]
    wanted = [list(shape) for shape in scratch_shapes(PROBLEM, GPU_BATCH)]
    assert shapes[-len(wanted) :] == wanted
    assert shapes[:3] == [[GPU_BATCH, 8, 8, 2, 16]] * 3 and shapes[3] == [1]


def test_the_best_record_is_what_is_built(tuned: TuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(tuned.folder.parent))
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path))
    best = min(records_in(tuned.folder), key=lambda r: r.seconds)
    chosen = choose.choose(PROBLEM, SM_80)
    assert chosen.kind == "record" and chosen.record is not None and chosen.record.digest == best.digest
    data = build.compile_for(PROBLEM, SM_80).read_bytes()
    assert FATBIN in data or b"\x7fELF" in data[4:]
    assert "cuda-backward, user's record" in build.explain(PROBLEM, SM_80)
    near = BackwardProblem(dataclasses.replace(PROBLEM.forward, heads=4, heads_kv=4))
    assert choose.choose(near, SM_80).kind == "nearest"
    assert build.compile_for(near, SM_80).is_file()


def test_records_are_told(tuned: TuneResult) -> None:
    for record in records_in(tuned.folder):
        sketch, parameters = replay.point_of(record, SM_80)
        assert describe(record.formulation, sketch, parameters)[0] == "formulation: backward gather"


def test_the_batch_leaves_room() -> None:
    assert batch_for(PROBLEM, SM_80, 0, None, None) == GPU_BATCH
    assert batch_for(PROBLEM, SM_80, 0, None, 4 * bytes_needed(PROBLEM, 8)) == 8
