"""Records for GPUs: which counts, and what the commands that show or measure them say of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import tvm

from tests.cli.invoking import invoke
from tvm_na.jit import build
from tvm_na.measure import local as measure
from tvm_na.measure.devices import LocalDevice
from tvm_na.measure.local import Conditions, Measured
from tvm_na.measure.worker_pool import Last
from tvm_na.problems.attention import NAProblem
from tvm_na.records import select
from tvm_na.records.read import batch_of, records_in
from tvm_na.records.record import best_of
from tvm_na.records.write import TuningDatabase
from tvm_na.targets.target import parse_target
from tvm_na.tune import remeasure, verify
from tvm_na.tune.tasks import formulations_of

PROBLEM = NAProblem.make((8, 8), 3, 2, 16)
SM_80 = parse_target("cuda-sm_80")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two records: 3 ms with a batch of 1, 64 ms with one of 64."""
    found = tmp_path_factory.mktemp("records") / SM_80.name
    first, second = formulations_of(PROBLEM, SM_80)[:2]
    with TuningDatabase(found, SM_80) as database:
        database.begin_session(gpu="NVIDIA Pretended", threads=1)
        for formulation, seconds, batch in ((first, 3e-3, 1), (second, 64e-3, 64)):
            workload = database.register(tvm.IRModule({"main": formulation.func}))
            database.commit(workload, formulation.default.schedule.trace, [seconds] * 3, 1, batch=batch)
        database.end_session(ending="all trials are done")
    return found


@pytest.fixture(autouse=True)
def _as_the_users(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(folder.parent))
    monkeypatch.setenv("TVM_NA_TARGET", SM_80.name)
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path))


def run(*arguments: object, code: int = 0) -> str:
    return " ".join(invoke(*arguments, code=code).output.split())


def test_the_shortest_time_per_sample_counts(folder: Path) -> None:
    one, many = records_in(folder)
    assert [(r.batch, r.seconds, r.seconds_per_sample) for r in (one, many)] == [(1, 3e-3, 3e-3), (64, 64e-3, 1e-3)]
    assert best_of([one, many]) == [many]
    selection = select.select(PROBLEM, SM_80)
    assert selection.record is not None and selection.record.digest == many.digest
    assert (selection.record.batch, selection.record.seconds_per_sample) == (64, 1e-3)
    assert "64 ms with a batch of 64" in selection.reason


def test_a_record_without_shapes_is_of_one_sample() -> None:
    assert [batch_of(a) for a in (None, [["TENSOR", "float16", [7, 8]]])] == [1, 7]
    for arguments in ([], [["TENSOR", "float16", []]], [["TENSOR", "float16", [0]]], [["TENSOR", "float16", ["n"]]]):
        with pytest.raises(ValueError, match="required"):
            batch_of(arguments)


def test_a_record_of_another_space_than_the_first_is_what_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = dataclasses.replace(PROBLEM, dtype="float16")
    band = next(f for f in formulations_of(problem, SM_80) if f.space.name == "cuda-band")
    with TuningDatabase(tmp_path / SM_80.name, SM_80) as database:
        database.begin_session(gpu="NVIDIA Pretended", threads=1)
        workload = database.register(tvm.IRModule({"main": band.func}))
        database.commit(workload, band.default.schedule.trace, [1e-3] * 3, 1)
        database.end_session(ending="all trials are done")
    assert build.explain(problem, SM_80).startswith("cuda-strip, default")
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(tmp_path))
    assert build.explain(problem, SM_80).startswith("cuda-band, user's record")
    module, space = build.scheduled_module(problem, SM_80, select.select(problem, SM_80))
    assert space.name == "cuda-band" and str(module["main"].attrs["tvm_na.formulation"]) == band.text


def test_what_commands_show(folder: Path) -> None:
    listed = run("records", "ls")
    assert "batch" in listed and "64.0 ms" in listed
    best = run("records", "best")
    assert f"{PROBLEM}, a batch of 64: 64.0 ms" in best and f"{PROBLEM}, a batch of 1: 3.00 ms" in best
    shown = run("tune", "--size", 8, 8, "--head-dim", 16, "--kernel-size", 3, "--target", SM_80.name, "--dry-run")
    assert "1.00 ms" in shown and "shares by recorded times" in shown


def test_a_report_has_a_task_for_each_batch_and_no_bounds_of_a_cpu(folder: Path, tmp_path: Path) -> None:
    run("report", "-o", tmp_path / "report")
    page = " ".join((tmp_path / "report" / "report.html").read_text(encoding="utf-8").split())
    assert "No bounds: records were measured on a GPU" in page
    assert f"{PROBLEM}, batch 64</td>" in page and f"{PROBLEM}</td>" in page
    assert "NVIDIA Pretended</td>" in page
    assert not (tmp_path / "report" / "rates.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [["verify"], ["remeasure", "--yes"]])
def test_measuring_again_takes_a_gpu(command: list[str]) -> None:
    says = "target: required a GPU of this machine that runs kernels for cuda-sm_80"
    assert says in run("records", *command, code=2)


def test_records_are_verified_with_their_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, str]] = []

    def run_kernel(kernel: measure.Kernel, conditions: Conditions) -> Any:
        asked.append((kernel.batch, conditions.device))
        return Measured((2e-3,)) if kernel.batch == 1 else Last(Measured((), "crash", "CUDA error"))

    monkeypatch.setattr(measure, "run_kernel", run_kernel)
    monkeypatch.setattr(LocalDevice, "of", classmethod(lambda cls, target: cls("cuda:0")))
    monkeypatch.setattr("tvm_na.jit.build.kernel_with", lambda *_: type("Kernel", (), {"file": Path("kernel")}))
    one, many = (verify.verify(record) for record in records_in(folder))
    assert asked == [(1, "cuda:0"), (64, "cuda:0")]
    assert (one.seconds, many.seconds, many.failure) == (2e-3, None, "crash: CUDA error")


def test_measuring_again_is_of_one_batch_and_interleaved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    class Clock:
        def seconds(self, call: Any, count: int) -> float:
            return float(call())

    def checked(file: Path, kernel: measure.Kernel, conditions: Conditions) -> Any:
        assert (kernel.batch, conditions.device) == (64, "cuda:0")
        name = str(file)
        return lambda: called.append(name) or (2e-3 if name == "default" else 1e-3)

    def kernel(name: str) -> Any:
        return type("Kernel", (), {"file": Path(name), "problem": PROBLEM})

    monkeypatch.setattr(LocalDevice, "of", classmethod(lambda cls, target: cls("cuda:0")))
    monkeypatch.setattr(remeasure, "checked_call", checked)
    monkeypatch.setattr(remeasure, "clock_of", lambda device: Clock())
    monkeypatch.setattr("tvm_na.jit.build.kernel_for", lambda *_, records: kernel("default"))
    monkeypatch.setattr("tvm_na.jit.build.kernel_with", lambda *_: kernel("record"))
    (outcome,) = remeasure.remeasure(folder, count=2, rounds=4)
    assert (outcome.batch, outcome.gain, len(outcome.records)) == (64, 2.0, 2)  # one record, and the default
    # Warmed up for 10 ms; then each round one call that is not timed and one that is, another candidate first.
    rounds = ["default", "default", "record", "record", "record", "record", "default", "default"]
    assert called == ["default"] * 6 + ["record"] * 11 + rounds * 2
