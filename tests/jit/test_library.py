"""Libraries on disks that are full, and under limits: LLVM would end the process."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.helpers import run_python
from tests.jit.kernels import check
from tvm_na.compilers import cxx
from tvm_na.jit import build, cache, runtime
from tvm_na.problems.attention import NAProblem
from tvm_na.te import ENTRY

PROBLEM = NAProblem.make((6, 7), 3, 1, 4)


def test_a_limit_on_the_size_of_files_is_told(folder: Path) -> None:
    code = """
        import resource
        from tvm_na.jit import build
        from tvm_na.problems.attention import NAProblem
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        problem = NAProblem.make((6, 7), 3, 1, 4)
        try:
            build.kernel_for(problem)
        except RuntimeError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**26, resource.RLIM_INFINITY))
        build.kernel_for(problem)
    """
    assert run_python(code).startswith("ulimit -f: required files of 67108864 bytes to be allowed")


def test_a_full_disk_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(RuntimeError, match=r"kernel cache: required a folder .* with space .*No space left.*\.o'"):
            build.kernel_for(PROBLEM)
    assert cache.entries() == []
    assert not list(folder.rglob(".tmp-*"))


def test_objects_to_be_linked_elsewhere(tmp_path: Path) -> None:
    module, _ = build.scheduled_module(PROBLEM, build.current_target())
    build.compiled(module, build.current_target())(tmp_path / "kernel.tar")
    with tarfile.open(tmp_path / "kernel.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    cxx.link(str(tmp_path / "kernel.so"), [tmp_path / "lib0.o"])
    check(PROBLEM, runtime.load(tmp_path / "kernel.so", ENTRY), 2)
    assert {file.name for file in tmp_path.iterdir()} == {"kernel.so", "kernel.tar", "lib0.o"}


def test_temporary_files_lie_in_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A full folder of the system's does no harm."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "there is none"))
    check(PROBLEM, build.kernel_for(PROBLEM).function, 2)
