"""Measuring a package on a pretended GPU: records like the tuner's, without TVM, whatever interrupts it."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CACHE
from tests.cuda.fake_driver import fake_driver
from tests.helpers import ROOT, run_python
from tests.packages.made_up import SMALL, TARGET, small_package
from tests.tune.runs import FakeDevice
from tvm_na.compilers import cxx
from tvm_na.cuda import toolchain
from tvm_na.jit import build, cache
from tvm_na.measure.local import Kernel, Measured
from tvm_na.measure.worker_pool import Outcome
from tvm_na.packages.__main__ import main
from tvm_na.packages.measure import MeasureOptions, measure_package
from tvm_na.packages.package import Package
from tvm_na.packages.prebuild import prebuild
from tvm_na.packages.records import digest_of, install, write_records
from tvm_na.packages.runtime import add_runtime
from tvm_na.problems.attention import NAProblem
from tvm_na.records.maintain import merge
from tvm_na.records.meta import read_meta
from tvm_na.records.read import records_in
from tvm_na.records.record import Machine, Record
from tvm_na.records.replay import at_point, change_since, point_of, replayed
from tvm_na.records.select import select
from tvm_na.records.write import TuningDatabase
from tvm_na.schedules.base import Plan
from tvm_na.targets.target import detect_target, parse_target
from tvm_na.tune.state import TuneState
from tvm_na.tune.tasks import formulations_of
from tvm_na.tune.trial_log import trials_in

DEFAULT, ALONE = 2e-3, 3e-3  # seconds of the default kernel: in turns; when it is measured first


class Gpu(FakeDevice):
    """A GPU that invents times of its own: those in turns are not those beside the default kernel.

    Attributes:
        alone: Milliseconds of a kernel beside the default, by the beginning of its file's name; 5 for others.
        turns: The same in turns.
        asked: How many kernels were measured in turns, each time.
        fails: What becomes of a kernel instead, by its file; of those in turns, of the first.
    """

    def __init__(self, package: Package, default_fails: bool = False) -> None:
        super().__init__(self.time)
        self.names = {kernel.sha256[:32]: number for number, kernel in enumerate(package.kernels)}
        self.alone = {0: 3.0, 1: 1.0, 2: 1.1}
        self.turns = {0: 2.0, 1: 1.0, 2: 0.8}
        self.asked: list[int] = []
        self.default_fails = default_fails
        self.turns_fail = False

    def time(self, kernel: Kernel) -> Measured:
        number = self.names[kernel.file.stem]
        if self.default_fails and number == 0:
            return Measured((), "crash", "illegal memory access")
        seconds = 1e-3 * self.alone[number]
        return Measured((seconds,) * 3, reference_secs=(3e-3,) * 3 if kernel.reference else ())

    def in_turns(self, kernels: Sequence[Kernel], rounds: int, stopped: Callable[[], bool]) -> Any:
        if stopped():
            return Outcome(None, "stopped")
        if self.turns_fail:
            return Outcome(None, "crash", "SIGSEGV")
        self.asked.append(len(kernels))
        return [(1e-3 * self.turns[self.names[kernel.file.stem]],) * rounds for kernel in kernels]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return small_package(tmp_path_factory)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(tmp_path))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / TARGET.name


def number_of(package: Package, record: Record) -> int:
    """Which kernel of a package a record is of."""
    (found,) = [n for n, kernel in enumerate(package.kernels) if digest_of(package, kernel) == record.digest]
    return found


def test_the_best_are_measured_in_turns_and_recorded(package: Package, output: Path) -> None:
    gpu = Gpu(package)
    state = measure_package(package, output, MeasureOptions(best=2, rounds=5), device=gpu)
    assert state.ending == "all kernels are measured" and state.measured == 3
    # The default alone, then every kernel beside it, itself first.
    default = gpu.kernels[0].file
    assert [k.reference for k in gpu.kernels] == [None, default, default, default] and gpu.kernels[1].file == default
    assert {k.batch for k in gpu.kernels} == {128} and gpu.asked == [3]
    trials = trials_in(output)
    assert sorted(t.failure or "" for t in trials) == ["", "", "", "spills", "too many registers"]
    assert {t.seconds: t.reference for t in trials if t.seconds} == dict.fromkeys((0.003, 0.001, 0.0011), 0.003)
    assert all(bool(t.reason) == (t.failure is not None) for t in trials)
    # Times in turns are those of a machine on which the default takes its first time.
    records = records_in(output)
    assert [(number_of(package, r), r.seconds) for r in records] == [
        (2, pytest.approx(1.2e-3)),
        (1, pytest.approx(1.5e-3)),
    ]
    assert {(r.target, r.threads, r.batch, r.problem, len(r.run_secs)) for r in records} == {
        ("cuda-sm_90", 1, 128, SMALL, 5)
    }
    meta = read_meta(output)
    assert meta is not None and (meta.sessions[0]["gpu"], meta.sessions[0]["ending"]) == (
        "NVIDIA Pretended",
        state.ending,
    )
    (row,) = state.problems
    assert (row.default, row.best, row.trials, row.failures.total()) == (3e-3, 1e-3, 5, 2)


def test_records_are_those_that_the_tuner_writes(package: Package, output: Path, tmp_path: Path) -> None:
    import tvm

    measure_package(package, output, device=Gpu(package))
    formulations = {f.text: f for f in formulations_of(SMALL, TARGET)}
    for record in records_in(output):
        point = package.kernels[number_of(package, record)].point
        assert point_of(record, TARGET) == point and change_since(record) is None
        assert replayed(record, SMALL, TARGET).script() == at_point(point, SMALL, TARGET).script()
        formulation = formulations[point.formulation]
        with TuningDatabase(tmp_path / "tuned", TARGET) as database:
            scheduled = formulation.space.apply(formulation.func, TARGET, Plan(point.sketch, exact=point.parameters))
            workload = database.register(tvm.IRModule({"main": formulation.func}))
            database.commit(workload, scheduled.schedule.trace, record.run_secs, 1, batch=128)
    merge([tmp_path / "tuned"], tmp_path / "compact")
    by_name = [
        {r.digest: dataclasses.replace(r, file=Path(), line=0, date="", machine=Machine()) for r in records_in(folder)}
        for folder in (output, tmp_path / "compact")
    ]
    assert by_name[0] == by_name[1] and len(by_name[0]) == 3


def test_times_that_were_measured_elsewhere_become_records(package: Package, output: Path) -> None:
    first, second, _ = package.kernels
    write_records(package, output, 64, [(first, [2e-3])])
    write_records(package, output, 64, [(second, [1e-3, 3e-3])], {"gpu": "NVIDIA Pretended", "driver": "580"})
    write_records(package, output, 32, [(first, [4e-3])])
    assert [(number_of(package, r), r.batch, r.run_secs) for r in records_in(output)] == [
        (1, 64, (1e-3, 3e-3)),
        (0, 32, (4e-3,)),
    ]
    meta = read_meta(output)
    assert meta is not None and [(s["driver"], s["measured"]) for s in meta.sessions] == [("580", 1)]
    with pytest.raises(ValueError, match="run_secs: required seconds > 0"):
        write_records(package, output, 64, [(first, [])])


def test_the_fastest_is_found_where_nothing_can_be_built(
    package: Package, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_package(package, output, device=Gpu(package))

    def missing(*_: Any) -> Any:
        pytest.fail("looked for a compiler")

    monkeypatch.setattr(toolchain, "find_compiler", missing)
    monkeypatch.setattr(cxx, "command", missing)
    selection = select(SMALL, TARGET, mode="all")
    assert selection.record is not None and selection.record.digest == digest_of(package, package.kernels[2])
    assert build.is_cached(SMALL, TARGET, "all") and not build.is_cached(SMALL, TARGET, "off")
    assert hashlib.sha256(build.compile_for(SMALL, TARGET, "all").read_bytes()).hexdigest() == package.kernels[2].sha256
    default = package.default_of(SMALL)
    assert default is not None and len(install(package, [default])) == 2
    assert hashlib.sha256(build.compile_for(SMALL, TARGET, "off").read_bytes()).hexdigest() == default.sha256
    assert {entry.target for entry in cache.entries()} == {TARGET.name}


def test_what_was_measured_is_not_measured_again(package: Package, output: Path) -> None:
    measure_package(package, output, device=Gpu(package))
    records, trials = records_in(output), trials_in(output)
    gpu = Gpu(package)
    state = measure_package(package, output, device=gpu)
    assert (gpu.kernels, gpu.asked, state.measured, state.problems[0].trials) == ([], [], 0, 5)
    assert (records_in(output), trials_in(output)) == (records, trials)
    measure_package(package, output, MeasureOptions(batch=2), device=gpu)  # but with another batch it is
    assert {k.batch for k in gpu.kernels} == {2} and gpu.asked == [3]
    assert [r.batch for r in records_in(output)] == [128] * 3 + [2] * 3


def test_what_was_interrupted_is_continued(package: Package, output: Path) -> None:
    def interrupt(state: TuneState) -> None:
        if state.measured == 2:
            state.interrupted()

    class Stopping(Gpu):
        def measure(self, kernels: Sequence[Kernel], done: Any, stopped: Any = lambda: False) -> None:
            for number, kernel in enumerate(kernels):
                self.kernels.append(kernel)
                done(number, Measured((), "stopped") if stopped() else self.time(kernel))

    state = measure_package(package, output, device=Stopping(package), observer=interrupt)
    assert state.ending == "interrupted" and len(trials_in(output)) == 4
    before = records_in(output)
    assert [len(r.run_secs) for r in before] == [1, 1]  # the best guess, should it not be continued
    gpu = Gpu(package)
    measure_package(package, output, device=gpu)
    assert len(gpu.kernels) == 1 and gpu.asked == [3]  # the time of the default is known
    records = records_in(output)
    assert [number_of(package, r) for r in records] == [2, 1, 0] and {len(r.run_secs) for r in records} == {5}


def test_time_that_is_up_ends_it(package: Package, output: Path) -> None:
    state = measure_package(package, output, MeasureOptions(time_limit=1e-9), device=Gpu(package))
    assert (state.ending, state.measured, records_in(output)) == ("the time is up", 0, [])


def test_kernels_are_measured_alone_where_the_default_fails(package: Package, output: Path) -> None:
    gpu = Gpu(package, default_fails=True)
    state = measure_package(package, output, device=gpu)
    assert {k.reference for k in gpu.kernels} == {None} and gpu.asked == [2]
    assert state.problems[0].failures["crash"] == 1
    assert [(number_of(package, r), r.seconds) for r in records_in(output)] == [(2, 0.8e-3), (1, 1e-3)]
    assert "illegal memory access" in (output / "tune.log").read_text()


def test_a_crash_in_turns_leaves_the_times_of_before(package: Package, output: Path) -> None:
    gpu = Gpu(package)
    gpu.turns_fail = True
    measure_package(package, output, device=gpu)
    assert [(number_of(package, r), r.run_secs) for r in records_in(output)] == [
        (1, (1e-3,)),
        (2, (1.1e-3,)),
        (0, (3e-3,)),
    ]
    assert "not measured in turns: crash SIGSEGV" in (output / "tune.log").read_text()


@pytest.mark.parametrize(
    ("change", "devices", "says"),
    [
        ({"machine": "riscv64"}, [], "package: required one for .* machines, got one for riscv64"),
        (
            {"context": "another"},
            [],
            "package: required one that was built with the versions, .*PYTHONPATH=.*/runtime$",
        ),
        ({}, [(8, 0), (10, 3)], "package: required a GPU of compute capability 9.0 to 9.9, .* got 8.0, 10.3"),
    ],
)
def test_a_package_that_is_of_no_use_here_is_refused(
    package: Package,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    devices: list[tuple[int, int]],
    says: str,
) -> None:
    monkeypatch.setattr("tvm_na.targets.cuda_arch.devices", lambda: devices)
    other = dataclasses.replace(package, **change)
    with pytest.raises(ValueError, match=f"^{says}"):
        measure_package(other, output, device=Gpu(package))
    with pytest.raises(ValueError, match=f"^{says}"):
        install(other, other.kernels)
    assert not output.exists() and not cache.entries()


def test_without_a_gpu_the_module_ends_with_a_sentence(
    package: Package, output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvm_na.targets.cuda_arch.devices", list)
    assert main([str(package.folder), "--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: target: required a GPU of this machine that runs kernels for cuda-sm_90")
    assert not output.exists()


@pytest.mark.parametrize("options", [{"batch": -1}, {"best": 0}, {"rounds": 1}, {"time_limit": 0.0}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(options))}: required"):
        MeasureOptions(**options)


# --- a machine that has PyTorch, and what the package brings along

#: But for what the package brings along.
MISSING = ("tvm", "platformdirs", "filelock", "typer", "rich", "xgboost", "cloudpickle", "PIL")
#: Runs when any Python starts, those of workers too.
HIDING = f"""
import importlib.machinery, os, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target)
        missing = name in {MISSING} and spec is not None and not spec.origin.startswith(os.environ["RUNTIME"])
        return None if missing else spec

sys.meta_path[:] = [Finder if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
"""
BEGINNING = """
    import importlib.util, os, sys
    from pathlib import Path

    package_folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    import tvm_na
    assert importlib.util.find_spec("tvm") is None
    assert Path(tvm_na.__file__).is_relative_to(package_folder), tvm_na.__file__

    from tvm_na.packages.package import Package

    package = Package.open(package_folder)
"""

MEASURED = """
    sys.path.append(sys.argv[3])
    from tests.packages.invented import Invented
    from tvm_na.measure.devices import LocalDevice
    from tvm_na.packages.__main__ import main

    LocalDevice.of = lambda target: Invented()
    assert main([str(package_folder), "--output", str(output)]) == 0
    print("psutil" in sys.modules)
"""

LAUNCHED = """
    sys.path.append(sys.argv[3])
    from tests.ops.fake_tensor import cuda_tensor
    from tvm_na.jit import runtime
    from tvm_na.te import ENTRY

    problem = package.problems[0]
    kernel = runtime.load(package.library(package.default_of(problem), output), ENTRY, "cuda")
    kernel(*(cuda_tensor(a.shape_for(3), 0, int(a.dtype[-2:])) for a in problem.arguments()))
    print([line for line in Path(os.environ["FAKE_CUDA_LOG"]).read_text().splitlines() if "Launch" in line])
"""


#: A kernel for CPUs stands for one for GPUs.
IN_PROCESSES = """
    from tvm_na.measure.local import Conditions, Kernel, LocalMeasurer
    from tvm_na.problems.registry import problem_from_json

    kernel = Kernel(Path(os.environ["KERNEL"]), problem_from_json(os.environ["PROBLEM"]))
    measurer, found = LocalMeasurer(Conditions(1, repeats=3, budget=0.05), output / "workers.log"), []
    measurer.measure([kernel], lambda _, measured: found.append(measured))
    print([found[0].failure, len(found[0].run_secs) >= 3, [len(s) for s in measurer.in_turns([kernel, kernel], 4)]])
    broken = measurer.in_turns([kernel, Kernel(output / "none.so", kernel.problem)], 4)
    print([broken.failure, broken.value])
    measurer.close()
"""


@pytest.fixture(scope="module")
def travelling(package: Package) -> Package:
    """A package with its runtime."""
    add_runtime(package.folder)
    return package


def elsewhere(package: Package, code: str, output: Path, **environment: str) -> str:
    """What a fresh Python prints that has PyTorch, NumPy and the package's runtime."""
    hiding = output.parent / "hiding"
    for folder in (output, hiding):
        folder.mkdir(exist_ok=True)
    (hiding / "sitecustomize.py").write_text(HIDING, encoding="utf-8")
    paths = os.pathsep.join((str(hiding), str(package.folder / "runtime")))
    variables = {**os.environ, "PYTHONPATH": paths, "PATH": "/nonexistent", "XDG_CACHE_HOME": str(output.parent)}
    environment["RUNTIME"] = str(package.folder / "runtime")
    variables = {name: value for name, value in variables.items() if name != "TVM_NA_CACHE_DIR"} | environment
    return run_python(BEGINNING + code, str(package.folder), str(output), str(ROOT), cwd=output, env=variables)


def test_a_package_is_measured_where_pytorch_is_and_little_else(
    travelling: Package, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(output.parent / "tvm_na"))  # the user's own cache, there
    said = elsewhere(travelling, MEASURED, output)
    of_problem, ending, has_psutil = said.splitlines()
    assert of_problem.startswith(f"{SMALL}, batch 128, 5 points, best ") and "1 spills" in of_problem
    assert ending.startswith("3 kernels measured in ") and ending.endswith(" s: all kernels are measured")
    assert has_psutil == "False"
    assert len(records_in(output)) == 3
    assert select(SMALL, TARGET, mode="all").kind == "record" and build.is_cached(SMALL, TARGET, "all")


def test_a_kernel_is_launched_with_the_runtime_of_its_package(
    travelling: Package, output: Path, tmp_path: Path
) -> None:
    driver = {"LD_LIBRARY_PATH": fake_driver(), "FAKE_CUDA_LOG": str(tmp_path / "log")}
    (launch,) = ast.literal_eval(elsewhere(travelling, LAUNCHED, output, **driver))
    assert "grid 3 1 1 block 32 " in launch


def test_processes_measure_there_too(
    travelling: Package, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(CACHE))
    problem = NAProblem.make((6, 6), 3, 1, 8)
    kernel = build.compile_for(problem, detect_target())
    said = elsewhere(travelling, IN_PROCESSES, output, KERNEL=str(kernel), PROBLEM=problem.to_json())
    assert [ast.literal_eval(line) for line in said.splitlines()] == [[None, True, [4, 4]], ["crash", None]]
    assert "none.so" in (output / "workers.log").read_text()


def test_of_a_wheel_what_is_needed_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, other = tmp_path / "apache_tvm_ffi.whl", "3.10" if sys.version_info[:2] != (3, 10) else "3.11"
    needed = ("tvm_ffi/__init__.py", "tvm_ffi/cpp/__init__.py", "tvm_ffi/lib/libtvm_ffi.so", "ffi.dist-info/METADATA")
    with zipfile.ZipFile(wheel, "w") as file:
        for name in (
            *needed,
            "tvm_ffi/",
            "tvm_ffi/include/tvm/ffi.h",
            "tvm_ffi/3rdparty/tool.py",
            "ffi.dist-info/RECORD",
        ):
            file.writestr(name, "")
    monkeypatch.setattr("tvm_na.packages.runtime._download", lambda into, python: wheel)
    runtime = add_runtime(tmp_path / "package", other)
    found = {p.relative_to(runtime).as_posix() for p in runtime.rglob("*") if p.is_file()}
    assert {name for name in found if "ffi" in name.partition("/")[0]} == set(needed)
    assert {"libtvm_runtime.so", "tvm_na/te/__init__.py", "tvm_na/schedules/base.py", "tvm_na/jit/parallel.cc"} <= found
    assert not [name for name in found if "__pycache__" in name]


def test_another_python_gets_its_own_tvm_ffi_or_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^python: required a version such as 3.12, got 'three'"):
        add_runtime(tmp_path, "three")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/none")
    monkeypatch.setenv("PIP_RETRIES", "0")
    other = "3.10" if sys.version_info[:2] != (3, 10) else "3.11"
    with pytest.raises(
        RuntimeError, match=rf"python: required apache-tvm-ffi==.* for Python {other} from a package index"
    ):
        add_runtime(tmp_path, other)
    assert not list(tmp_path.iterdir())


def test_a_machine_that_does_not_know_its_versions_is_told_where_they_are(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TVM is not installed, and the package's runtime is not on PYTHONPATH."""

    def unknown() -> dict[str, str]:
        raise metadata.PackageNotFoundError("apache-tvm")

    monkeypatch.setattr("tvm_na.fingerprint.versions", unknown)
    with pytest.raises(ValueError, match=r"at hand \(No package metadata .*apache-tvm\), got .*PYTHONPATH=.*/runtime"):
        install(package, [])


@pytest.mark.gpu
def test_gpu_measures_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = parse_target("cuda")
    package, _ = prebuild([SMALL], target, tmp_path / "package")
    state = measure_package(package, tmp_path / target.name, MeasureOptions(best=2, rounds=5))
    assert state.measured == len(package.kernels) and not state.problems[0].failures
    records = records_in(tmp_path / target.name)
    assert len(records) == 2 and all(0 < seconds < 1e-2 for record in records for seconds in record.run_secs)
    assert select(SMALL, target, mode="all").kind == "record" and build.is_cached(SMALL, target, "all")
