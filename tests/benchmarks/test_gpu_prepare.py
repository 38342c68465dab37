"""The folder of the nine-minute run: what is in it, and that it needs nothing where it runs but PyTorch and NumPy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.gpu import estimated, prepare
from benchmarks.gpu.device import Cuda
from benchmarks.gpu.folder import KERNELS, RunFolder
from benchmarks.gpu.plan import full_plan
from benchmarks.gpu.schedule import STEPS
from tests.cuda.static.test_bounds import FACTS
from tests.helpers import run_python
from tests.packages.made_up import made_up
from tvm_na.cuda.static.facts import Facts
from tvm_na.jit import estimates
from tvm_na.models import create_model
from tvm_na.models.problems import problems_of, training_problems_of
from tvm_na.packages.prebuild import PrebuildState
from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.schedules import spaces_for
from tvm_na.targets.target import parse_target

SM_90 = parse_target("cuda-sm_90")
#: What a bare machine with PyTorch lacks.
LACKED = ("tvm", "typer", "rich", "platformdirs", "filelock", "pytest", "matplotlib", "psutil")


def test_everything_that_is_to_be_learnt_is_in_the_plan() -> None:
    plan = full_plan()
    problems = (*plan.searched, *plan.defaults())
    assert all(spaces_for(problem, SM_90) for problem in problems)
    assert [(p.spatial, p.dtype, p.bias) for p in plan.searched] == [((n, n), "float16", True) for n in (56, 28, 14, 7)]
    attention = [p for p in problems if isinstance(p, NAProblem)]
    assert {p.dtype for p in attention} == {"float16", "bfloat16", TF32, "float32", "float64"}
    assert {p.rank for p in attention} == {1, 2, 3}
    for has in (
        lambda p: max(p.dilation) > 1,
        lambda p: any(p.is_causal),
        lambda p: p.heads_kv < p.heads,
        lambda p: max(p.stride) > 1,
        lambda p: p.spatial == (256, 256) and p.head_dim == 128,
        lambda p: p.spatial == (30, 48, 80),
        lambda p: p.kernel_size == (1024,),
    ):
        assert any(map(has, attention))
    assert {BackwardProblem(p) for p in plan.searched} < set(plan.timed) <= {*problems}
    assert {p.kind for p in problems if isinstance(p, UnfusedProblem)} >= {"qk", "av", "av_transposed", "dots"}
    assert sum(step.seconds for step in STEPS) <= 540
    large = [p for p in problems if p.reference_elements(1) > Cuda.gathered]
    assert all(isinstance(p, NAProblem) and not p.bias for p in large) and len(large) == 3


def test_the_model_finds_its_kernels() -> None:
    plan = full_plan()
    name, size, _ = plan.model
    model = create_model(name).half()
    posed = {*problems_of(model, size), *training_problems_of(model, size)}
    assert posed <= {*plan.searched, *plan.defaults()}


def test_the_run_imports_nothing_that_is_lacked() -> None:
    run_python(f"""
        import sys

        class Lacked:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {LACKED}:
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, Lacked())
        import benchmarks.gpu.__main__
        import benchmarks.gpu.launch
        import benchmarks.gpu.runner
        import benchmarks.gpu.schedule
        import tvm_na.ops.launch_cuda
    """)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small folder, with kernels that were never compiled."""

    def prebuild(problems: Any, target: Any, folder: Path, which: str, **_: Any) -> Any:
        asked.append((which, target.name, problems))
        return made_up(folder, *(problem for _, _, some in asked for problem in some)), PrebuildState(ending="all")

    def facts_for(problem: Any, target: Any, batch: int, records: str) -> list[Facts]:
        if batch == 1:
            raise RuntimeError("not understood")
        assert records == "off"
        return [FACTS]

    asked: list[Any] = []
    monkeypatch.setattr(prepare, "prebuild", prebuild)
    monkeypatch.setattr(estimates, "facts_for", facts_for)
    prepare.prepare(tmp_path / "folder", "small", "cuda-sm_90", "", 0, Console(quiet=True))
    plan = RunFolder(tmp_path / "folder").plan
    assert asked == [("defaults", "cuda-sm_90", plan.defaults()), ("all", "cuda-sm_90", plan.searched)]
    return tmp_path / "folder"


def test_the_command_runs_with_what_is_in_the_folder(prepared: Path, tmp_path: Path) -> None:
    runtime = prepared / KERNELS / "runtime"
    assert (runtime / "benchmarks" / "gpu" / "runner.py").is_file() and not list(runtime.rglob("__pycache__"))
    for package in ("benchmarks", "tvm_na"):  # such as a checkout has, that has nothing else
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise AssertionError('these are other sources')")
    command = ["sh", str(prepared / "run.sh"), "out", "--seconds", "30"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stdout + done.stderr  # for there is no GPU
    assert (
        (tmp_path / "out").is_dir()
        and "kernels for cuda-sm_90" in done.stdout
        and "worker process could not start" in done.stdout
    )


def test_estimates_are_in_the_folder(prepared: Path) -> None:
    """Of what was understood, for GPUs that rates are known of."""
    folder = RunFolder(prepared)
    nat, large = folder.plan.timed
    assert [batch for _, batch in estimated.wanted(folder.plan)] == [128, 128, 1]
    for problem in (nat, large):
        found = estimated.estimated(folder, problem, 128, "NVIDIA H200")
        assert found is not None and found["gpu"] == "H200" and found["seconds"] > 0
    assert estimated.estimated(folder, nat, 1, "NVIDIA H200") is None
    assert estimated.estimated(folder, nat, 128, "NVIDIA A10") is None
    assert {batch for _, batch in estimated.wanted(full_plan())} == {1, 128}


def test_a_missing_default_is_told(prepared: Path) -> None:
    folder = RunFolder(prepared)
    problem = folder.plan.defaults()[0]
    made_up(prepared / KERNELS, *(p for p in (*folder.plan.searched, *folder.plan.defaults()) if p != problem))
    with pytest.raises(ValueError, match="required the default kernel of .*, got none"):
        prepare.check_defaults(RunFolder(prepared))


def test_too_large_a_folder_is_refused(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "MOST_BYTES", 2**20)
    with pytest.raises(RuntimeError, match="folder: required at most 1 MiB, got "):
        prepare.prepare(prepared, "small", "cuda-sm_90", "", 0, Console(quiet=True))
