"""Where things lie, which way imports run, and what importing costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each module may import of tvm_na; the problems of all operators, target and settings are open to all.
ALLOWED = {
    "problem": set(),
    "target": {"cuda"},
    "cuda": {"build", "cuda", "progress", "runtime", "schedules", "scratch"},
    "scratch": set(),
    "settings": set(),
    "reference": {"problem"},
    "cache": {"cuda", "schedules", "te"},
    "openmp": {"cache"},
    "runtime": {"openmp"},
    "record_files": set(),
    "records": {"record_files"},
    "record_index": {"cache", "record_files", "records"},
    "rejections": {"cache", "record_index"},
    "choose": {"cache", "record_files", "record_index", "rejections"},
    "database": {"cache", "metaschedule", "record_files", "records"},
    "upkeep": {"cache", "database", "record_files", "records"},
    "replay": {"choose", "database", "records", "schedules"},
    "build": {"cache", "choose", "cuda", "openmp", "replay", "runtime", "schedules", "te"},
    "contest": {
        *("benchmark", "build", "case", "choose", "database", "measure", "record_files", "record_index", "records"),
        *("rejections", "runtime", "tasks", "upkeep", "verify"),
    },
    "verify": {"build", "choose", "measure", "places", "record_index", "records", "upkeep", "workers"},
    "machine": {"benchmark"},
    "ranking": set(),
    "report_data": {"choose", "journal", "ranking", "records", "replay", "schedules"},
    "report_plots": {"choose", "machine", "report_data"},
    "report": {"benchmark", "database", "machine", "report_data", "report_plots"},
    "workers": set(),
    "metaschedule": set(),
    "builder": {"build", "cuda", "metaschedule", "replay", "workers"},
    "calm": set(),
    "case": {"backward_case", "benchmark", "dense_case", "reference", "unfused_case"},
    "backward_case": {"case", "reference"},
    "dense_case": {"case", "te"},
    "unfused_case": {"case", "reference", "unfused_reference"},
    "measure_cuda": {"case", "runtime", "scratch", "te"},
    "measure": {"calm", "case", "measure_cuda", "runtime", "te", "workers"},
    "measure_remote": {"case", "measure", "measure_cuda", "runtime", "te"},
    "farm": {"case", "cuda", "measure", "measure_remote", "workers"},
    "places": {"calm", "cuda", "measure"},
    "journal": set(),
    "tasks": {"schedules"},
    "points": {"schedules", "tasks"},
    "tune_state": set(),
    "tune_session": {"builder", "database", "journal", "measure", "metaschedule", "tasks", "tune_state"},
    "search": {"metaschedule", "points", "tune_session"},
    "tune": {
        *("builder", "cuda", "database", "journal", "measure", "metaschedule", "openmp", "places"),
        *("search", "tasks", "tune_guards", "tune_options", "tune_session", "tune_state", "workers"),
    },
    "tune_guards": {"tune_state"},
    "tune_options": {"case", "machine", "search"},
    "tune_display": {"benchmark", "tasks", "tune_state"},
    "watch": set(),
    "autocast": set(),
    "batching": set(),
    "launchers": {"build", "cuda", "runtime"},
    "ops": {"autocast", "batching", "build", "launchers", "reference", "watch"},
    "autograd": {"autocast", "launchers", "ops", "reference", "watch"},
    "functional": {"autocast", "autograd", "launchers", "ops", "reference", "watch"},
    "unfused_reference": {"reference"},
    "launchers_unfused": {"cuda", "launchers", "runtime"},
    "ops_unfused": {"launchers_unfused", "ops", "unfused_reference"},
    "unfused": {"autocast", "functional", "launchers_unfused", "ops_unfused", "unfused_reference", "watch"},
    "nn": {"functional", "unfused"},
    "compat": {"autocast", "compat", "functional", "nn", "unfused"},
    "te": {"te"},
    "schedules": {"cuda", "schedules", "te"},
    "models": {"models", "nn", "functional", "reference"},
    "images": {"models"},
    "serve": {"deploy", "images", "models", "serve"},
    "deploy": {
        *("benchmark", "build", "choose", "deploy", "functional", "launchers", "metaschedule", "models", "openmp"),
        *("ops", "runtime", "schedules", "te"),
    },
    "benchmark": set(),
}
OPEN = {"", "__version__", "backward", "dense", "operators", "problem", "target", "settings", "unfused_problem"}


def sources() -> list[tuple[str, Path]]:
    found = [(file.stem, file) for file in (ROOT / "tvm_na").glob("*.py")]
    for folder, name in (
        ("tvm_na/compat", "compat"),
        ("tvm_na/compat/natten", "compat"),
        ("tvm_na/compat/natten/utils", "compat"),
        ("tvm_na/cuda", "cuda"),
        ("tvm_na/deploy", "deploy"),
        ("tvm_na/serve", "serve"),
        ("tvm_na/te", "te"),
        ("schedules", "schedules"),
        ("models", "models"),
    ):
        found += [(name, file) for file in (ROOT / folder).glob("*.py")]
    return found


def imported_modules(file: Path) -> set[str]:
    """The parts of tvm_na that a file imports, by the first name below tvm_na ("" for the package itself)."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = node.module == "tvm_na"
            names = [f"tvm_na.{alias.name}" for alias in node.names] if whole else [node.module]
        else:
            continue
        found |= {([*name.split("."), ""])[1] for name in names if name.split(".")[0] == "tvm_na"}
    return found


@pytest.mark.parametrize(("name", "file"), sources(), ids=lambda v: v if isinstance(v, str) else v.name)
def test_imports_run_one_way(name: str, file: Path) -> None:
    if name in ALLOWED:
        assert imported_modules(file) - OPEN <= ALLOWED[name] | {name}


def test_expressions_hold_no_schedule_and_schedules_no_torch() -> None:
    for file in (ROOT / "tvm_na" / "te").glob("*.py"):
        if file.name != "layout.py":  # says where an output lies, not how it is computed
            assert "s_tir.Schedule" not in file.read_text(encoding="utf-8"), file
    for folder in (ROOT / "schedules", ROOT / "tvm_na" / "te"):
        for file in folder.glob("*.py"):
            assert "import torch" not in file.read_text(encoding="utf-8"), file


def run(code: str, python: str = sys.executable, **options: object) -> str:
    done = subprocess.run([python, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_light() -> None:
    code = """
        import time, sys, torch
        start = time.perf_counter()
        import tvm_na
        from tvm_na import na2d
        seconds = time.perf_counter() - start
        assert not [name for name in sys.modules if name.split(".")[0] in ("tvm", "tvm_ffi", "matplotlib", "typer")]
        print(seconds)
    """
    assert min(float(run(code, cwd=ROOT)) for _ in range(3)) < 0.150


def test_using_an_artifact_imports_nothing_of_the_compiler() -> None:
    code = """
        import sys
        from tvm_na.deploy import artifact, manifest
        slow = ("torch", "tvm", "tvm_ffi", "numpy", "rich")
        ours = ("build", "ops", "te", "schedules", "models", "openmp", "runtime", "cache", "choose")
        found = [name for name in sys.modules if name.split(".")[0] in slow]
        assert not found and not [name for name in ours if f"tvm_na.{name}" in sys.modules]
    """
    run(code, cwd=ROOT)


def test_the_checkout_offers_every_package_and_claims_no_other_name(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("owner = 'user'", encoding="utf-8")
    code = """
        import models, tvm_na.models, tvm_na.schedules, tvm_na.te
        assert models.owner == "user"
        assert "nat_mini" in tvm_na.models.list_models()
    """
    run(code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])})


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True], ids=["installed", "editable"])
def test_an_installation_offers_every_package(tmp_path: Path, editable: bool) -> None:
    """In an environment of its own that borrows the dependencies of this one."""
    copy = tmp_path / "source"
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    (copy / "tuning_logs" / "some-target").mkdir()
    (copy / "tuning_logs" / "some-target" / "meta.json").write_text("{}", encoding="utf-8")
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = str(environment / "bin" / "python")
    site = run("import site; print(site.getsitepackages()[0])", python=python).strip()
    install = [python, "-m", "pip", "install", "-q", "--no-deps", *(["-e"] if editable else []), str(copy)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    ours = run("import site; print(site.getsitepackages()[0])").strip()
    (Path(site) / "dependencies.pth").write_text(ours, encoding="utf-8")
    (tmp_path / "user" / "models").mkdir(parents=True)
    (tmp_path / "user" / "models" / "__init__.py").write_text("owner = 'user'", encoding="utf-8")
    code = """
        import importlib.resources, importlib.util, models, torch
        import tvm_na.models, tvm_na.schedules, tvm_na.te
        from tvm_na import na2d
        from tvm_na.records import shipped_folder
        assert models.owner == "user"
        assert (importlib.resources.files("tvm_na") / "serve" / "page.html").is_file()
        assert importlib.util.find_spec("schedules") is None
        assert (shipped_folder("some-target") / "meta.json").is_file()
        print(tvm_na.__file__)
        q = torch.rand(1, 5, 5, 1, 4)
        assert na2d(q, q, q, 3, backend="compiled").shape == q.shape
    """
    where = run(code, python=python, cwd=tmp_path / "user").strip()
    assert where.startswith(str(copy if editable else environment))
    if not editable:
        tops = {path.name for path in Path(site).iterdir() if path.suffix not in (".pth", ".dist-info")}
        assert not tops & {"models", "schedules", "tuning_logs", "tests", "benchmarks", "examples"}
