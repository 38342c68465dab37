"""Packages: what is written is read, and damage is told, by name."""

from __future__ import annotations

import json
import lzma
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import run_python
from tests.packages.made_up import library_of, made_up
from tvm_na.packages.package import MANIFEST, Package, pack
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem

PROBLEM = NAProblem.make((8, 8), 3, 2, 16, bias=True)
PROBLEMS = (PROBLEM, BackwardProblem(PROBLEM))


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return made_up(tmp_path / "package", *PROBLEMS)


def test_what_is_written_is_read(package: Package, tmp_path: Path) -> None:
    assert Package.open(package.folder) == package
    assert package.problems == PROBLEMS
    assert [kernel.default for kernel in package.kernels] == [True, False] * len(PROBLEMS)
    for problem in PROBLEMS:
        default = package.default_of(problem)
        assert default is not None and default.problem == problem and default.point.parameters == {"size": 1}
        assert package.library(default, tmp_path).read_bytes() == library_of(problem, 1)
        assert default.name == default.sha256[:16]
    assert {(r.failure, *r.point.parameters.values()) for r in package.refused} == {("spills", 4)}
    assert package.default_of(NAProblem.make((9, 9), 3, 2, 16)) is None


def test_a_library_is_for_its_owner_alone(package: Package, tmp_path: Path) -> None:
    files = {package.library(kernel, tmp_path) for kernel in package.kernels}
    assert len(files) == len(package.kernels)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_library_that_is_loaded_is_not_written_over(package: Package, tmp_path: Path) -> None:
    kernel = package.kernels[0]
    with package.library(kernel, tmp_path).open("rb") as loaded:
        assert package.library(kernel, tmp_path).stat().st_ino != os.fstat(loaded.fileno()).st_ino
        assert loaded.read() == library_of(PROBLEM, 1)
    assert len(list(tmp_path.iterdir())) == 2  # the package's folder, and one library


def test_what_is_the_same_has_one_file(tmp_path: Path) -> None:
    first, other, same = (pack(tmp_path, data) for data in (b"first", b"other", b"first"))
    assert first == same != other and lzma.decompress((tmp_path / first).read_bytes()) == b"first"
    assert len(list((tmp_path / "kernels").iterdir())) == 2


def other_library(package: Package) -> None:
    (package.folder / package.kernels[0].file).write_bytes(lzma.compress(library_of(PROBLEM, 3)))


def torn_library(package: Package) -> None:
    file = package.folder / package.kernels[0].file
    file.write_bytes(file.read_bytes()[:-9])


def endless_library(package: Package) -> None:
    (package.folder / package.kernels[0].file).write_bytes(lzma.compress(bytes(10**7)))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda package: (package.folder / package.kernels[0].file).unlink(), "can be unpacked, got .*No such file"),
        (lambda package: (package.folder / package.kernels[0].file).write_bytes(bytes(64)), "can be unpacked, got "),
        (other_library, "required the library that was built, got another in "),
        (torn_library, "required a whole file of at most "),
        (endless_library, "required a whole file of at most "),
    ],
    ids=["missing", "something else", "another", "torn", "endless"],
)
def test_a_library_that_was_not_built_is_not_written(
    package: Package, tmp_path: Path, damage: Callable[[Package], None], says: str
) -> None:
    damage(package)
    with pytest.raises(ValueError, match=f"^package: .*{says}"):
        package.library(package.kernels[0], tmp_path)
    assert not list(tmp_path.glob("*.so"))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.clear(),
        lambda m: m.update(format=1),
        lambda m: m.update(target="cuda-sm_1"),
        lambda m: m.update(machine=3),
        lambda m: m["versions"].update(tvm=None),
        lambda m: m["workloads"].pop(),
        lambda m: m["workloads"][0].update(problem="{}"),
        lambda m: m["workloads"][0].update(hash="x"),
        lambda m: m["workloads"][0].update(first=1),
        lambda m: m["kernels"][0].update(file="kernels/../../x.so.xz"),
        lambda m: m["kernels"][0].update(file="/etc/x.so.xz"),
        lambda m: m["kernels"][0].update(name="x"),
        lambda m: m["kernels"][0].update(sha256="0"),
        lambda m: m["kernels"][0].update(workload=-1),
        lambda m: m["kernels"][0].update(default="yes"),
        lambda m: m["kernels"][0]["resources"].update(threads=1.5),
        lambda m: m["kernels"][0]["resources"].update(others=1),
        lambda m: m["kernels"][0]["parameters"].append(["size", 1, [1]]),
        lambda m: m["kernels"][0]["parameters"].append(["other", True, [1]]),
        lambda m: m["refused"][0].pop("reason"),
    ],
)
def test_a_damaged_manifest_is_told(package: Package, change: Callable[[Any], object]) -> None:
    file = package.folder / MANIFEST
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"^package: required a manifest.json of format 2, got .*manifest.json: "):
        Package.open(package.folder)


def test_a_folder_that_is_no_package_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^package: required a manifest.json .*No such file"):
        Package.open(tmp_path)


def test_a_package_is_opened_without_tvm_and_torch(package: Package) -> None:
    code = """
        import sys
        from pathlib import Path
        from tvm_na.packages.package import Package
        print(len(Package.open(Path(sys.argv[1])).kernels), {"torch", "tvm", "rich", "filelock"} & sys.modules.keys())
    """
    assert run_python(code, str(package.folder)).split() == ["4", "set()"]
