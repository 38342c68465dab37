"""``tvm-na tune --prebuild`` and ``--from``: what they take, and what they say."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.cli.invoking import error_of, invoke
from tests.cuda.test_limits import needs_compiler
from tests.helpers import ROOT
from tests.packages.made_up import made_up
from tvm_na.cli.tune_package import building
from tvm_na.packages.measure import MeasureOptions
from tvm_na.packages.package import Package
from tvm_na.packages.prebuild import PrebuildState
from tvm_na.problems.attention import NAProblem
from tvm_na.records.files import user_folder
from tvm_na.tune.state import FormulationState, ProblemState, TuneState

PROBLEM = NAProblem.make((8, 8), 3, 2, 16, dtype="float16")
SPELLED_OUT = ["--size", 8, 8, "--head-dim", 16, "--kernel-size", 3, "--dtype", "float16", "--target", "cuda-sm_90"]


class Asked:
    """What the command asks of :func:`tvm_na.packages.prebuild.prebuild`, and the state in which that ends."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = (
            folder,
            PrebuildState(1, 2, Counter(spills=1), points=3, ending="all points are built"),
        )
        self.options: dict[str, Any] = {}
        self.python: list[str] = []

    def prebuild(self, problems: Any, target: Any, folder: Path, **options: Any) -> Any:
        self.options = {"problems": problems, "target": target.name, "folder": folder, **options}
        options["observer"](self.state)
        return made_up(folder, *problems), self.state

    def add_runtime(self, folder: Path, python: str) -> None:
        self.python.append(python)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    found = Asked(tmp_path / "package")
    monkeypatch.setattr("tvm_na.packages.prebuild.prebuild", found.prebuild)
    monkeypatch.setattr("tvm_na.packages.runtime.add_runtime", found.add_runtime)
    monkeypatch.setattr("tvm_na.measure.worker_pool.start_server", lambda: None)
    return found


def test_a_package_is_built(asked: Asked) -> None:
    said = invoke("tune", *SPELLED_OUT, "--prebuild", asked.folder, "--jobs", 3, "--python", "3.12").output
    wanted = {"problems": [PROBLEM], "target": "cuda-sm_90", "folder": asked.folder, "jobs": 3, "which": "all"}
    assert {name: asked.options[name] for name in wanted} == wanted and asked.python == ["3.12"]
    assert (
        "all points are built: " in said and " s, 2 built, 1 spills\n" in said and "2 kernels of 1 problems in" in said
    )
    invoke("tune", *SPELLED_OUT, "--prebuild", asked.folder, "--only-defaults")
    assert asked.options["which"] == "defaults"


def test_what_may_be_tried_again_is_told_and_an_interrupted_build_too(asked: Asked) -> None:
    asked.state.failed["build crash"] += 1
    asked.state.messages.append("the point: SIGSEGV")
    result = invoke("tune", *SPELLED_OUT, "--prebuild", asked.folder, code=1)
    assert "1 build crash" in result.output and "warning: the point: SIGSEGV" in result.stderr
    asked.state.ending = "interrupted"
    said = invoke("tune", *SPELLED_OUT, "--prebuild", asked.folder, code=130).output
    assert "interrupted: " in said and len(asked.python) == 1


def test_a_package_for_a_cpu_is_refused(tmp_path: Path) -> None:
    said = error_of("tune", "--size", 8, 8, "--target", "llvm-x86-avx2", "--prebuild", tmp_path / "package")
    assert said.startswith("target: required a GPU's to build a package for")


@pytest.mark.parametrize("terminal", [False, True])
def test_progress(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with building(console) as show:
        show(PrebuildState(problems=2))
        for built in range(21):
            show(PrebuildState(2, built, points=20))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    if terminal:
        assert "20/20" in said and "20 built" in said
    else:
        assert len(said.splitlines()) == 10 and said.splitlines()[-1].startswith("20 of 20 points, ")


@pytest.mark.slow
@needs_compiler
def test_ctrl_c_loses_no_kernel_and_the_same_command_continues(tmp_path: Path) -> None:
    spelled_out = ["--size", "2", "2", "--heads", "1", "--head-dim", "16", "--kernel-size", "2", "--dtype", "tf32"]
    words = ["tune", *spelled_out, "--target", "cuda-sm_90", "--prebuild", str(tmp_path), "--jobs", "1"]
    command = [sys.executable, "-m", "tvm_na", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as building:
        assert building.stdout is not None and building.stdout.readline().startswith("1 of ")
        building.send_signal(signal.SIGINT)
        assert "interrupted: " in building.stdout.read()
    assert building.returncode == 130
    before = Package.open(tmp_path).kernels
    assert 1 <= len(before) < 5 and not (tmp_path / "runtime").exists()
    assert "all points are built: " in invoke(*words).output
    package = Package.open(tmp_path)
    assert package.kernels[: len(before)] == before and len(package.kernels) + len(package.refused) == 5
    assert (tmp_path / "runtime" / "libtvm_runtime.so").is_file()


# --- measuring


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks of :func:`tvm_na.packages.measure.measure_package`."""
    found: dict[str, Any] = {"ending": "all kernels are measured"}

    def measure_package(package: Any, output: Path, options: Any, observer: Any) -> TuneState:
        state = TuneState([ProblemState(PROBLEM, 1.0, [FormulationState("{}", "band", 2, 2e-3, 1e-3)])], 2, measured=2)
        state.ending = found["ending"]
        found.update(package=package, output=output, options=options)
        observer(state)
        return state

    monkeypatch.setattr("tvm_na.packages.measure.measure_package", measure_package)
    return found


def test_a_package_is_measured(measured: dict[str, Any], tmp_path: Path) -> None:
    package = made_up(tmp_path / "package", PROBLEM)
    options = [
        "--from",
        package.folder,
        "--time-limit",
        "90s",
        "--batch",
        4,
        "--output",
        tmp_path / "records",
        "--seed",
        3,
    ]
    said = invoke("tune", *options).output
    assert (measured["package"], measured["output"]) == (package, tmp_path / "records")
    assert measured["options"] == MeasureOptions(4, 90.0, seed=3)
    assert "2.00x" in said and str(tmp_path / "records") in said
    measured["ending"] = "interrupted"
    invoke("tune", "--from", package.folder, code=130)
    assert measured["output"] == user_folder("cuda-sm_90")


def test_what_is_no_package_or_not_to_be_measured_here_is_told(tmp_path: Path) -> None:
    assert error_of("tune", "--from", tmp_path).startswith("package: required a manifest.json of format 2, got ")
    said = error_of("tune", "nat_mini", "--from", tmp_path)
    assert said == "problems: required one of MODEL, --problems, --size and --from, got MODEL and --from"
