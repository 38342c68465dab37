"""Where things lie, which way imports run, and what importing costs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
import venv
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers import ROOT, run_forked, run_python

_FOLDERS = {"tvm_na": "tvm_na", "schedules": "tvm_na.schedules", "models": "tvm_na.models"}


def rooms() -> list[set[str]]:
    """The rooms of CONTRIBUTING.md from the highest to the lowest, each as its files or folders."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?`) \|", text.partition("## Rooms")[2].partition("\n## ")[0], re.MULTILINE)
    return [set(re.findall(r"`(.+?)`", row)) for row in rows]


def sources() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for folder, package in _FOLDERS.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = file
    return found


ROOMS, SOURCES = rooms(), sources()


def imported_modules(file: Path, with_types: bool = False) -> set[str]:
    """The modules of this package that a file imports, inside of functions too; ``with_types``: for types alone too."""
    tree, skipped = ast.parse(file.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not with_types:
            skipped |= set(ast.walk(node))
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in SOURCES else node.module for name in names}
    return {name for name in found if name.partition(".")[0] == "tvm_na"}


def room_of(file: Path) -> int:
    """The place of a file's room in CONTRIBUTING.md, 0 for the highest."""
    path = file.relative_to(ROOT).as_posix()
    found = [i for i, room in enumerate(ROOMS) for place in room if path == place or path.startswith(f"{place}/")]
    assert len(found) == 1, f"{path}: required one room of CONTRIBUTING.md, got {found}"
    return found[0]


@pytest.mark.parametrize("name", sorted(SOURCES.keys() - {"tvm_na", "tvm_na.__main__"}))
def test_a_room_imports_only_rooms_below_it(name: str) -> None:
    room = room_of(SOURCES[name])
    for other in imported_modules(SOURCES[name], with_types=True) - {name}:
        assert other in SOURCES, f"{name} imports {other}, which is no module"
        assert room_of(SOURCES[other]) >= room, f"{name} imports {other} of a higher room"


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {name: imported_modules(file) - {name, "tvm_na"} for name, file in SOURCES.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"files import each other in a circle: {' -> '.join(error.args[1])}")


def test_few_modules_lie_at_the_top() -> None:
    assert len(list((ROOT / "tvm_na").glob("*.py"))) <= 8


def test_expressions_hold_no_schedule_and_schedules_no_torch() -> None:
    for file in (ROOT / "tvm_na" / "te").rglob("*.py"):
        if file.name != "layout.py":  # says where an output lies, not how it is computed
            assert "s_tir.Schedule" not in file.read_text(encoding="utf-8"), file
    for folder in (ROOT / "schedules", ROOT / "tvm_na" / "te"):
        for file in folder.rglob("*.py"):
            assert "import torch" not in file.read_text(encoding="utf-8"), file


def test_importing_the_package_is_light() -> None:
    code = """
        start = time.process_time()
        import tvm_na
        from tvm_na import na2d
        seconds = time.process_time() - start
        assert not [name for name in sys.modules if name.split(".")[0] in ("tvm", "tvm_ffi", "matplotlib", "typer")]
        print(seconds)
    """
    assert min(map(float, run_forked("import sys, time, torch", code, 3, at_once=False))) < 0.150


def test_parts_import_nothing_of_what_they_do_without() -> None:
    """An artifact is used without the compiler; problems and the shapes of their tiles are those of any framework."""
    code = """
        import sys
        def loaded(*names):
            return [name for name in names if name in sys.modules]
        from tvm_na.deploy import artifact, manifest
        assert not loaded("torch", "tvm", "tvm_ffi", "numpy", "rich")
        rooms = ("jit", "ops", "te", "schedules", "models", "records", "tune")
        assert not loaded(*(f"tvm_na.{room}" for room in rooms))
        import tvm_na.problems.dense, tvm_na.te.dense.product
        assert not loaded("torch", "tvm")
    """
    run_python(code)


def test_the_checkout_offers_every_package_and_claims_no_other_name(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("owner = 'user'", encoding="utf-8")
    code = """
        import models, tvm_na.models, tvm_na.schedules, tvm_na.te
        assert models.owner == "user"
        assert "nat_mini" in tvm_na.models.list_models()
    """
    run_python(code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])})


def of_python(python: Path, code: str, **options: object) -> str:
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, **options).stdout.strip()


@pytest.mark.slow
def test_an_installation_offers_every_package(tmp_path: Path) -> None:
    """Of wheels and editable, in an environment of its own that borrows the dependencies of this one."""
    copy, user, environment = tmp_path / "source", tmp_path / "user", tmp_path / "venv"
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    (copy / "tuning_logs" / "some-target").mkdir()
    (copy / "tuning_logs" / "some-target" / "records.jsonl").write_text("{}", encoding="utf-8")
    (user / "models").mkdir(parents=True)
    (user / "models" / "__init__.py").write_text("owner = 'user'", encoding="utf-8")
    venv.create(environment, with_pip=False)
    python, site_code = environment / "bin" / "python", "import site; print(site.getsitepackages()[0])"
    site = Path(of_python(python, site_code))
    (site / "dependencies.pth").write_text(of_python(Path(sys.executable), site_code), encoding="utf-8")
    code = textwrap.dedent("""
        import importlib.resources, importlib.util, models, torch
        import tvm_na.models, tvm_na.schedules, tvm_na.te
        from tvm_na import na2d
        from tvm_na.records.files import shipped_folder
        assert models.owner == "user"
        assert (importlib.resources.files("tvm_na") / "serve" / "page.html").is_file()
        assert importlib.util.find_spec("schedules") is None
        assert (shipped_folder("some-target") / "records.jsonl").is_file()
        q = torch.rand(1, 5, 5, 1, 4)
        assert na2d(q, q, q, 3, backend="compiled").shape == q.shape
        print(tvm_na.__file__)
    """)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    for options, whence in (([], environment), (["-e"], copy)):
        subprocess.run([*pip, *options, str(copy)], check=True, capture_output=True, text=True)
        if whence is environment:
            tops = {path.name for path in site.iterdir() if path.suffix not in (".pth", ".dist-info")}
            assert not tops & {"models", "schedules", "tuning_logs", "tests", "benchmarks", "examples"}
        assert of_python(python, code, cwd=user).startswith(str(whence))
