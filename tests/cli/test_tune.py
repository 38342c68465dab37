"""``tvm-na tune``: what it takes, what it says, and that nothing measured is lost however it ends."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console

from tests.cli.invoking import error_of, invoke
from tests.helpers import ROOT, wait_until
from tests.records.tuned import commit_drawn
from tests.tune.runs import asked_of_tune
from tvm_na.cli.tune import parse_duration, parse_size
from tvm_na.cli.tune_progress import in_words, observer, print_summary, progress_line
from tvm_na.measure.rpc_devices import RpcDevices
from tvm_na.problems.attention import NAProblem
from tvm_na.records.files import user_folder
from tvm_na.records.read import records_in
from tvm_na.targets.target import detect_target
from tvm_na.tune import tasks
from tvm_na.tune.run import TuneResult
from tvm_na.tune.state import FormulationState, ProblemState, TuneState
from tvm_na.tune.tasks import TuneTask
from tvm_na.tune.trial_log import TRIAL_LOG, trials_in

PROBLEM = NAProblem.make((9, 9), 3, 1, 8)
SPELLED_OUT = ["--size", "9", "9", "--heads", "1", "--head-dim", "8", "--kernel-size", "3"]


def state(ending: str = "all trials are done") -> TuneState:
    """A state with a problem that got 2.0 times faster, and one that could not be measured."""
    forms = [FormulationState("{}", "queries 2", 3, 4e-3, 3e-3), FormulationState("{}", "queries 4", 5, 3.5e-3, 2e-3)]
    good = ProblemState(PROBLEM, 3.0, forms, Counter({"crash": 2, "build": 1}))
    other = NAProblem.make((9, 9), 3, 1, 8, bias=True)
    bad = ProblemState(other, 1.0, [FormulationState("{}", "", 1)], Counter({"timeout": 1}))
    found = TuneState([good, bad], 64, measured=7, first=2.5, ending=ending)
    found.seconds.update({"building": 5.0, "measuring": 2.0})
    found.started -= 10.0
    return found


# --- what it takes


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    return asked_of_tune(monkeypatch, lambda: TuneResult(state(), tmp_path))


def test_problems_of_a_model(asked: dict[str, Any]) -> None:
    invoke("tune", "nat_mini")
    assert {t.problem.spatial[0]: t.weight for t in asked["tasks"]} == {56: 3.0, 28: 4.0, 14: 6.0, 7: 5.0}
    wanted = {"target": detect_target(), "trials": 1000, "seed": 0, "threads": 0, "output": None, "devices": None}
    assert {name: asked[name] for name in wanted} == wanted
    invoke("tune", "nat_mini", "--input-size", "224", "--input-size", "256x192")
    spatial = [t.problem.spatial for t in asked["tasks"]]
    assert spatial[0] == (56, 56) and (64, 48) in spatial
    invoke("tune", "nat_tiny", "--dtype", "float16", "--target", "cuda-sm_90", "--batch", 32)
    assert {(t.problem.dtype, t.problem.bias) for t in asked["tasks"]} == {("float16", True)}
    assert (asked["target"].name, asked["batch"]) == ("cuda-sm_90", 32)


def test_a_problem_spelled_out(asked: dict[str, Any]) -> None:
    options = ["--dilation", "2", "--stride", "3", "--causal", "--rpb", "--dtype", "float64"]
    invoke("tune", *SPELLED_OUT, *options)
    made = NAProblem.make((9, 9), 3, 1, 8, dilation=2, stride=3, is_causal=True, bias=True, dtype="float64")
    assert asked["tasks"] == [TuneTask(made)]


def test_problems_of_a_file_and_all_options(asked: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "problems.json"
    file.write_text(json.dumps([{**json.loads(PROBLEM.to_json()), "weight": 2}]))
    options = "--trials 7 --time-limit 90s --jobs 3 --seed 5 --threads 2 --cold-cache --target llvm-x86-sse4"
    farm = "--rpc somewhere:9190 --rpc-key board"
    output = tmp_path / "out"
    invoke("tune", "--problems", file, "--output", output, *options.split(), *farm.split())
    assert asked["tasks"] == [TuneTask(PROBLEM, 2.0)]
    wanted = {"trials": 7, "time_limit": 90.0, "jobs": 3, "seed": 5, "threads": 2, "cold_cache": True, "output": output}
    assert {name: asked[name] for name in wanted} == wanted
    assert asked["target"].name == "llvm-x86-sse4"
    assert asked["devices"] == RpcDevices("somewhere", 9190, "board")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "problems: required one of MODEL, --problems, --size and --from, got none"),
        (
            ["nat_mini", *SPELLED_OUT],
            "problems: required one of MODEL, --problems, --size and --from, got MODEL and --size",
        ),
        (["nat_minni"], "nat_mini"),
        (["nat_mini", "--input-size", "big"], "input_size: required pixels such as 224 or 224x192, got 'big'"),
        ([*SPELLED_OUT, "--input-size", "224"], "input_size: required a MODEL with it, got none"),
        (
            [*SPELLED_OUT, "--time-limit", "soon"],
            "time_limit: required minutes, or a number with s, m or h, got 'soon'",
        ),
        ([*SPELLED_OUT, "--target", "toaster"], "target: required native or one of"),
        ([*SPELLED_OUT, "--rpc", "nowhere"], "rpc: required HOST:PORT of a tracker, got 'nowhere'"),
        ([*SPELLED_OUT, "--rpc", "a:1"], "rpc_key: required the key of the devices, got none"),
        ([*SPELLED_OUT, "--rpc-key", "k"], "rpc: required HOST:PORT of a tracker with --rpc-key, got none"),
        (["--size", "2", "2"], "kernel_size: required kernel_size * dilation <= size"),
        (["--problems", "missing.json"], "missing.json"),
    ],
)
def test_bad_arguments_are_one_message(arguments: list[str], says: str, asked: dict[str, Any]) -> None:
    assert says in error_of("tune", *arguments)
    assert not asked


@pytest.mark.parametrize(
    "error", [RuntimeError("missing xgboost"), OSError(errno.ENOSPC, "No space left"), NotADirectoryError("a file")]
)
def test_what_is_missing_is_one_message(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def tune(*_: Any, **__: Any) -> TuneResult:
        raise error

    monkeypatch.setattr("tvm_na.tune.tune", tune)
    assert str(error) in error_of("tune", *SPELLED_OUT)


def test_durations_and_sizes() -> None:
    assert [parse_duration(text) for text in ("30", "30m", "1.5h", "90 s")] == [1800.0, 1800.0, 5400.0, 90.0]
    assert [parse_size("224"), parse_size("224x192")] == [(224, 224), (224, 192)]
    for text in ("", "0", "-1", "1d", "m"):
        with pytest.raises(ValueError, match="time_limit: required"):
            parse_duration(text)
    for text in ("", "0", "1x2x3", "axb"):
        with pytest.raises(ValueError, match="input_size: required"):
            parse_size(text)


# --- what it says


def test_a_dry_run_lists_tasks_shares_and_points(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formulations_of = functools.lru_cache(tasks.formulations_of)
    monkeypatch.setattr(tasks, "formulations_of", formulations_of)
    other = NAProblem.make((9, 9), 3, 1, 16)
    file = tmp_path / "problems.json"
    file.write_text(json.dumps([json.loads(p.to_json()) for p in (PROBLEM, other)]))
    dry_run = ("tune", "--problems", file, "--dry-run", "--threads", "1", "--output", tmp_path)
    said = invoke(*dry_run).output
    assert not asked
    spaces = [formulations_of(p, detect_target()) for p in (PROBLEM, other)]
    points = [sum(f.points for f in formulations) for formulations in spaces]
    for problem, share, count in zip((PROBLEM, other), ("33.3%", "66.7%"), points, strict=True):
        row = next(line for line in said.splitlines() if f"{problem} " in line)
        assert share in row and f"{count:,}" in row
    assert f"2 tasks, {sum(points):,} points; shares by useful FLOPs" in said
    commit_drawn(tmp_path, PROBLEM, (3.0,))
    commit_drawn(tmp_path, other, (1.0,))
    said = invoke(*dry_run).output
    assert all(part in said for part in ("75.0%", "3.00 ms", "shares by recorded times"))


def test_the_summary_says_what_was_found_and_where(asked: dict[str, Any], tmp_path: Path) -> None:
    output = invoke("tune", *SPELLED_OUT).output
    assert "2.00 ms" in output and "2.00x" in output and "queries 4" in output
    assert "2 crash, 1 build" in output and "1 timeout" in output
    assert "attention, weighted: 12.0 ms by default, 6.00 ms tuned: 2.00x" in output
    assert "7 trials in 10 s, 9 with those before; all trials are done" in output
    assert "first measurement after 2.5 s; building 50%, measuring 20%, starting and ending 30%" in output
    assert f"records: {tmp_path}" in output.replace("\n", "")
    assert "the same command continues" not in output


def test_an_interrupted_run_exits_with_130(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    result = TuneResult(state("interrupted"), Path("somewhere"))
    monkeypatch.setattr("tvm_na.tune.tune", lambda *_, **__: result)
    assert "nothing measured is lost; the same command continues" in invoke("tune", *SPELLED_OUT, code=130).output

    def too_early(*_: Any, **__: Any) -> TuneResult:
        raise KeyboardInterrupt

    monkeypatch.setattr("tvm_na.tune.tune", too_early)
    invoke("tune", *SPELLED_OUT, code=130)


def test_without_a_terminal_there_is_a_line_for_each_batch() -> None:
    out = io.StringIO()
    shown = state("")
    with observer(Console(file=out, width=200)) as observe:
        shown.phase = "measuring"
        observe(shown)
        assert out.getvalue() == ""
        shown.phase = "searching"
        observe(shown)
        observe(shown)
    lines = out.getvalue().splitlines()
    assert len(lines) == 4  # two problems, once
    assert lines[0].startswith("9 of 64 trials, 10 s, about ")
    assert lines[1] == f"  {PROBLEM}: 8 trials, best 2.00 ms, 2.00x, queries 4, 2 crash, 1 build"


def test_on_a_terminal_a_table_is_kept_up_to_date() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True)
    with observer(console) as observe:
        observe(TuneState([], 64))
        observe(state(""))
    assert "queries 4" in out.getvalue()
    print_summary(console, state(), Path("somewhere"))


def test_progress_and_durations_in_words() -> None:
    said = ["0 s", "59 s", "1 min 01 s", "1 h 01 min", "10 h 00 min"]
    assert [in_words(s) for s in (0.4, 59, 61, 3661, 36000)] == said
    assert progress_line(state()) == "9 of 64 trials, 10 s: all trials are done"


# --- however it ends


@pytest.mark.slow
def test_what_a_killed_tuner_measured_counts_in_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(tmp_path))
    folder = user_folder(detect_target().name)
    command = [*SPELLED_OUT, "--threads", "1", "--trials"]
    tuner = subprocess.Popen([sys.executable, "-m", "tvm_na", "tune", *command, "64"], cwd=ROOT, start_new_session=True)
    try:
        while tuner.poll() is None and len(trials_in(folder)) < 3:
            time.sleep(0.02)
        assert tuner.poll() is None
        tuner.kill()
        tuner.wait()
        before = trials_in(folder)
        wait_until(lambda: _session_of(tuner.pid) == [], "what it started has ended", 10.0)
    finally:
        if tuner.poll() is None:
            os.killpg(tuner.pid, signal.SIGKILL)
    # Each is on disk as soon as it is measured, first as a record.
    records = records_in(folder)
    assert len(before) >= 3
    assert [r.seconds for r in records][: len(before)] == [t.seconds for t in before if t.failure is None]
    assert len(records) - len(before) in (0, 1)
    with (folder / TRIAL_LOG).open("ab") as file:
        file.write(b'{"time": "torn')  # what a line looks like whose writer was killed
    output = invoke("tune", *command, len(before) + 1).output
    assert "1 trials in " in output and f", {len(before) + 1} with those before" in output
    assert len(records_in(folder)) >= len(records) + 1
    assert trials_in(folder)[: len(before)] == before


def _session_of(process: int) -> list[int]:
    """The processes that a tuner started, by their session; not those that have ended."""
    found = []
    for other in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(other.pid) == process != other.pid and other.status() != psutil.STATUS_ZOMBIE:
                found.append(other.pid)
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_required(tmp_path: Path) -> None:
    says = "target: required a GPU of this machine that runs kernels for cuda-sm_90, or RPC devices that do "
    says += "(--rpc HOST:PORT --rpc-key KEY), got no GPU that PyTorch sees"
    assert says in error_of("tune", "nat_mini", "--target", "cuda-sm_90", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_for_a_gpu_needs_none(tmp_path: Path) -> None:
    dry_run = ("tune", *SPELLED_OUT, "--output", tmp_path, "--dry-run")
    said = invoke(*dry_run, "--target", "cuda-sm_90", "--dtype", "float16").output
    assert "points" in said and "float16" in said
    assert "target cuda-sm_90, a batch of 128, or of what fits, records in" in said
    assert "a batch of 64, records in" in invoke(*dry_run, "--target", "cuda-sm_90", "--batch", 64).output
    assert "2 threads and a batch of 4, records in" in invoke(*dry_run, "--threads", 2, "--batch", 4).output


def summary_of(found: TuneState) -> str:
    out = io.StringIO()
    print_summary(Console(file=out, width=200), found, Path("somewhere"))
    return out.getvalue()


def test_times_of_unlike_batches_are_summed_per_sample() -> None:
    shown = state()
    said = summary_of(shown)
    assert "attention, weighted: 12.0 ms by default" in said and "batch" not in said
    shown.problems[1].formulations = [FormulationState("{}", "", 1, 12e-3, 12e-3)]
    for batches, says in (((4, 4), "weighted, batch 4: 24.0 ms"), ((4, 8), "weighted, per sample: 4.50 ms")):
        shown.problems[0].batch, shown.problems[1].batch = batches
        said = summary_of(shown)
        assert says in said
        assert any(f" {batches[0]} " in line for line in said.splitlines())
