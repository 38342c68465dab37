"""Dense problems in the tuner and among its records, together with attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.records.tuned import commit_drawn
from tests.te.dense_kernels import compile_all, error_of, scheduled
from tvm_na.cli import app
from tvm_na.jit import build
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.dense import DenseProblem
from tvm_na.problems.registry import bytes_of
from tvm_na.records import select as choose
from tvm_na.records.index import ref_of
from tvm_na.records.read import records_in
from tvm_na.records.replay import point_of, workloads_of
from tvm_na.records.select import Chosen
from tvm_na.reference.case import WrongNumbers
from tvm_na.reference.cases import case_of
from tvm_na.report.data import load
from tvm_na.targets.target import detect_target, parse_target
from tvm_na.te.dense.product import tile_of
from tvm_na.tune.options import batch_for
from tvm_na.tune.remeasure import contest
from tvm_na.tune.run import TuneResult, tune
from tvm_na.tune.tasks import TuneTask, formulations_of, tasks_from_file
from tvm_na.tune.trial_log import trials_in
from tvm_na.tune.verify import verify

TARGET = detect_target()
LINEAR = DenseProblem.make(49, 32, 48, activation="gelu")
CONV = DenseProblem.make((10, 10), 8, 16, kernel_size=3, stride=2, padding=1, bias=False)
ATTENTION = NAProblem.make((9, 9), 3, 1, 8)
_TRIALS = 14


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    """A linear layer that was tuned, in a folder with a few records of other problems."""
    folder = tmp_path_factory.mktemp("tuned")
    result = tune([TuneTask(LINEAR)], TARGET, trials=_TRIALS, output=folder, threads=1, candidates=3)
    tune([TuneTask(CONV)], TARGET, trials=2, output=folder, threads=1, candidates=1, only_default_formulation=True)
    commit_drawn(folder, ATTENTION)
    return result


def test_the_tuner_measures_them(tuned: TuneResult) -> None:
    records, trials = records_in(tuned.folder), trials_in(tuned.folder)
    assert {record.problem for record in records} == {LINEAR, CONV, ATTENTION}
    assert not any(problem.failures for problem in tuned.state.problems)
    assert [trial.problem for trial in trials] == [LINEAR.to_json()] * _TRIALS + [CONV.to_json()] * 2
    assert trials[_TRIALS - 1].predicted is not None
    for record in records:
        sketch, parameters = point_of(record, TARGET)
        assert sketch and parameters
        assert record.workload in workloads_of(record.problem, TARGET)


def test_a_run_that_is_repeated_knows_what_was_measured(tuned: TuneResult) -> None:
    again = tune([TuneTask(LINEAR)], TARGET, trials=1, output=tuned.folder, threads=1, candidates=3)
    assert again.state.measured == 0
    assert again.state.trials == tuned.state.problems[0].trials
    assert again.state.problems[0].best == tuned.state.problems[0].best


def test_the_best_record_is_built_and_right(tuned: TuneResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "user_folder", lambda name: tuned.folder)
    for problem in (LINEAR, CONV):
        chosen = choose.choose(problem, TARGET, threads=1)
        assert chosen.kind == "record" and chosen.record is not None
        module = build.scheduled_module(problem, TARGET, chosen)[0]
        tile = tile_of(module["main"])
        assert tile.to_json() == chosen.record.formulation
        kernel = compile_all([_Module(module)])[0]  # type: ignore[list-item]
        assert error_of(problem, tile, kernel, 2) <= 2e-6


class _Module:
    """A module where a point is wanted."""

    def __init__(self, mod: Any) -> None:
        self.schedule = self
        self.mod = mod


def test_the_nearest_is_of_the_same_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "user_folder", lambda name: tmp_path)
    near = DenseProblem.make(49, 32, 96, activation="gelu")
    assert choose.choose(near, TARGET, threads=1).kind == "default"
    commit_drawn(tmp_path, ATTENTION)
    assert choose.choose(near, TARGET, threads=1).kind == "default"
    offered = {f.text for f in formulations_of(near, TARGET)}
    number = next(n for n, f in enumerate(formulations_of(LINEAR, TARGET)) if f.text in offered)
    commit_drawn(tmp_path, LINEAR, formulation=number)  # type: ignore[arg-type]
    chosen = choose.choose(near, TARGET, threads=1)
    assert chosen.kind == "nearest" and chosen.record is not None and chosen.record.problem == LINEAR
    module = build.scheduled_module(near, TARGET, chosen)[0]
    assert tile_of(module["main"]).to_json() == chosen.record.formulation
    other = NAProblem.make((9, 9), 3, 1, 16)
    found = choose.choose(other, TARGET, threads=1)
    assert found.record is not None and found.record.problem == ATTENTION


def test_records_are_verified_and_compared(tuned: TuneResult) -> None:
    for problem in (LINEAR, CONV):
        record = next(r for r in records_in(tuned.folder) if r.problem == problem)
        assert verify(record).failure == ""
    outcomes = list(contest(tuned.folder, 1, 3))
    assert {outcome.problem for outcome in outcomes} == {LINEAR, CONV, ATTENTION}
    assert all(outcome.records and not outcome.failures for outcome in outcomes)


def test_commands_show_them(tuned: TuneResult) -> None:
    for command in (["ls"], ["best"]):
        result = CliRunner().invoke(app, ["records", *command, str(tuned.folder)], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        assert str(CONV) in result.output
    data = load(tuned.folder)
    assert {task.problem for task in data.tasks} == {LINEAR, CONV, ATTENTION}
    assert "49, channels 32->48, bias, gelu" in [task.name for task in data.tasks]
    assert all(task.default for task in data.tasks if task.problem != ATTENTION)
    assert bytes_of(LINEAR) == 4 * (49 * 32 + 32 * 48 + 48 + 49 * 48)


def test_a_case_has_weights_as_the_kernel_wants_them() -> None:
    for problem in (LINEAR, CONV):
        tile, point = scheduled(problem)
        case = case_of(problem, 2, tile.to_json())
        (kernel,) = compile_all([point])
        outputs = case.outputs()
        kernel(*case.inputs, *outputs)
        case.check(outputs, 2e-6)
        outputs[0][-1, -1, ..., -1] += 1
        with pytest.raises(WrongNumbers, match="out: required a relative error"):
            case.check(outputs, 2e-6)
        assert torch.equal(case_of(problem, 2, tile.to_json()).inputs[0], case.inputs[0])


def test_files_may_mix_operators(tmp_path: Path) -> None:
    file = tmp_path / "problems.json"
    file.write_text(
        json.dumps(
            [
                {"operator": "dense", "spatial": 49, "in_channels": 32, "out_channels": 48, "activation": "gelu"},
                {**json.loads(CONV.to_json()), "weight": 3},
                json.loads(ATTENTION.to_json()),
            ]
        ),
        encoding="utf-8",
    )
    assert tasks_from_file(file) == [TuneTask(LINEAR), TuneTask(CONV, 3.0), TuneTask(ATTENTION)]
    result = CliRunner().invoke(app, ["tune", "--problems", str(file), "--dry-run"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert str(CONV) in result.output
    for wrong, says in (
        ({"operator": "conv"}, "operator: required one of backward, dense, unfused, or none for attention, got 'conv'"),
        ({"operator": "dense", "spatial": 49, "in_channels": 0, "out_channels": 1}, "in_channels: required"),
    ):
        file.write_text(json.dumps([wrong]), encoding="utf-8")
        with pytest.raises(ValueError, match=rf"problems: {says}.*entry 0"):
            tasks_from_file(file)


def test_the_batch_must_fit() -> None:
    large = DenseProblem.make(2**20, 64, 64)
    assert batch_for(large, TARGET, 0, None, None) == 1
    with pytest.raises(ValueError, match="batch: required at most 15"):
        batch_for(large, TARGET, 16, None, None)


def test_a_record_keeps_its_batch(tmp_path: Path) -> None:
    result = tune([TuneTask(LINEAR)], TARGET, trials=2, output=tmp_path, threads=1, candidates=2, batch=3)
    record = records_in(result.folder)[0]
    assert record.batch == 3
    line = json.loads((tmp_path / "database_tuning_record.json").read_text().splitlines()[0])
    assert [shape for _, _, shape in line[1][3]] == [[3, 49, 32], [3, 1, 32, 16], [48], [3, 49, 48]]
    chosen = Chosen("record", ref_of(record, shipped=False), "to be built")
    assert build.kernel_with(chosen, LINEAR, TARGET).problem == LINEAR


def test_other_targets_have_their_own_tiles() -> None:
    for name, vector in (("llvm-x86-avx512", 16), ("llvm-x86-sse4", 4), ("llvm-aarch64-neon", 4)):
        found = formulations_of(CONV, parse_target(name))
        assert {json.loads(f.text)["vector"] for f in found} == {vector}
