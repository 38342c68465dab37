"""The problems that a model poses in training: found, asked for on the command line, shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.invoking import error_of, invoke
from tests.records.tuned import commit_drawn
from tests.tune.runs import asked_of_tune
from tvm_na.jit import build
from tvm_na.models import NAT, problems_of, registry, training_problems_of
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.records.files import user_folder
from tvm_na.targets.target import detect_target
from tvm_na.tune.run import TuneResult
from tvm_na.tune.state import TuneState
from tvm_na.tune.tasks import TuneTask

TARGET = detect_target()
TINY = registry.ModelSpec("tiny_for_training", 8, (2, 1), (1, 2), 2.0, 0.0, parameters=0, kernel_size=3)
SPELLED_OUT = ["--size", "9", "9", "--heads", "1", "--head-dim", "8", "--kernel-size", "3"]
FIRST = NAProblem.make((9, 9), 3, 1, 8, bias=True)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.SPECS, TINY.name, TINY)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    return asked_of_tune(monkeypatch, lambda: TuneResult(TuneState([], 1, ending="all trials are done"), tmp_path))


# --- found


def test_each_attention_is_a_forward_and_a_backward_problem() -> None:
    model = registry.create_model(TINY.name)
    forward, found = problems_of(model, 36), training_problems_of(model, 36)
    assert list(forward.values()) == [2, 1] and next(iter(forward)) == FIRST
    assert list(found.items()) == [
        pair
        for problem, layers in forward.items()
        for pair in ((dataclasses.replace(problem, return_lse=True), layers), (BackwardProblem(problem), layers))
    ]
    with pytest.raises(TypeError, match=r"model: required a torch\.nn\.Module, got str"):
        training_problems_of("nat_mini", 224)  # type: ignore[arg-type]


def test_a_training_step_poses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = NAT(embed_dim=8, depths=(1,), num_heads=(2,), kernel_size=3, num_classes=3, backend="compiled")
    posed, kernel_for = set(), build.kernel_for

    def note(problem: Any, *arguments: Any, **options: Any) -> build.Kernel:
        posed.add(problem)
        return kernel_for(problem, *arguments, **options)

    monkeypatch.setattr(build, "kernel_for", note)
    # A size of no other test: what was called before in this process has its kernel.
    model.train()(torch.randn(1, 3, 44, 52)).sum().backward()
    assert posed == training_problems_of(model, (44, 52)).keys()


# --- asked for


def test_tuning_for_training(asked: dict[str, Any]) -> None:
    invoke("tune", TINY.name, "--training", "--input-size", 36)
    found = training_problems_of(registry.create_model(TINY.name), 36)
    assert asked["tasks"] == [TuneTask(problem, float(layers)) for problem, layers in found.items()]
    invoke("tune", TINY.name, "--training", "--input-size", 36, "--dtype", "float64")
    assert [type(t.problem) for t in asked["tasks"]] == [NAProblem, BackwardProblem] * 2
    assert {t.problem.dtype for t in asked["tasks"]} == {"float64"}


def test_gradients_of_a_problem_spelled_out(asked: dict[str, Any]) -> None:
    invoke("tune", *SPELLED_OUT, "--rpb", "--backward")
    assert asked["tasks"] == [TuneTask(BackwardProblem(FIRST))]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*SPELLED_OUT, "--training"], "training: required a MODEL with it, got none"),
        ([TINY.name, "--backward"], "backward: required --size with it"),
        ([TINY.name, "--training", "--whole-model"], "training: required without --whole-model"),
        ([TINY.name, "--weights-dtype", "int8"], "weights_dtype: required --whole-model with it, got int8 alone"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], says: str) -> None:
    assert says in error_of("tune", *arguments, "--dry-run")


def test_a_dry_run_lists_forward_and_backward() -> None:
    out = invoke("tune", *SPELLED_OUT, "--backward", "--dry-run").output
    assert "backward of 9x9 heads 1 dim 8 k 3 float32" in out and "1 tasks, " in out
    on_gpu = ("--training", "--input-size", 36, "--dry-run", "--target", "cuda-sm_90")
    assert f"backward of {FIRST}" in invoke("tune", TINY.name, *on_gpu).output


# --- shown


def test_info_says_which_schedule_each_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(tmp_path))
    monkeypatch.setenv("TVM_NA_NUM_THREADS", "1")
    commit_drawn(user_folder(TARGET.name), BackwardProblem(FIRST), (4.0,))
    out = invoke("info", "--model", TINY.name, "--input-size", 36, "--training").output
    assert f"{TINY.name}, 36x36, training" in out
    lines = {line.split("  ")[1].strip(): line for line in out.splitlines() if " layer" in line}
    assert list(lines) == [str(p) for p in training_problems_of(registry.create_model(TINY.name), 36)]
    assert "2 layers" in lines[f"{FIRST} lse"] and "cpu-lanes, default schedule" in lines[f"{FIRST} lse"]
    assert "cpu-backward, user's record" in lines[f"backward of {FIRST}"] and "4 ms" in lines[f"backward of {FIRST}"]
    alone = invoke("info", "--model", TINY.name, "--input-size", 36).output
    assert "backward" not in alone and "training" not in alone.replace(TINY.name, "")
    assert "training: required --model with it, got none" in error_of("info", "--training")
