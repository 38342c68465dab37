"""Whose a cache may be: who else could have written what is run, what may not be read, which entry is whose."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tvm_na import owned
from tvm_na.jit import build, cache
from tvm_na.problems.attention import NAProblem
from tvm_na.records import select as selecting
from tvm_na.records.files import shipped_folder
from tvm_na.records.index import FolderIndex

PROBLEM = NAProblem.make((6, 7), 3, 1, 4)
REQUEST, OTHER = "a" * 32, "b" * 32
SOMEBODY = 12345
TARGET = "llvm-x86-avx2"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with the kernel of :data:`REQUEST`."""
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path / "cache"))
    put(REQUEST, b"kernel")
    return tmp_path / "cache"


def put(request: str, content: bytes) -> Path:
    def compile_() -> tuple[str, Callable[[Path], None]]:
        return "c" * 32, lambda file: file.write_bytes(content) and None

    return cache.get_or_build(request, {"problem": "p", "target": "t"}, compile_)


def find(pattern: str, folder: Path) -> Path:
    (found,) = [folder] if pattern == "." else folder.glob(pattern)
    return found


#: What is looked at before a kernel is loaded.
PLACES = (".", "index", "kernels", "index/*.json", "kernels/*.so")


def test_a_cache_is_the_callers_alone(folder: Path) -> None:
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert cache.lookup(REQUEST) is not None


@pytest.fixture
def permissive() -> Iterator[None]:
    """A process whose files everybody may write to."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_whatever_the_umask_says(permissive: None, folder: Path) -> None:
    test_a_cache_is_the_callers_alone(folder)
    shutil.rmtree(folder)
    FolderIndex(shipped_folder(TARGET), TARGET, True, "0")  # is kept in the cache
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.glob("*"))] == [0o700, 0o700]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_others_may_write_is_an_error(folder: Path, place: str, mode: int) -> None:
    path = find(place, folder)
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(RuntimeError, match=r"TVM_NA_CACHE_DIR.*chmod -R go-w") as caught:
        cache.lookup(REQUEST)
    assert f"kernel cache: required {path} " in str(caught.value)
    if path.is_dir():
        with pytest.raises(RuntimeError, match="chmod -R go-w"):
            put(OTHER, b"another")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives files to others: needs root")
def test_what_somebody_else_owns_is_an_error_unless_it_is_root(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = find(place, folder)
    os.chown(path, SOMEBODY, -1)
    with pytest.raises(RuntimeError, match=f"to belong to user 0 or to root.*, got user {SOMEBODY}.*TVM_NA_CACHE_DIR"):
        cache.lookup(REQUEST)
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)  # what else there is belongs to root
    assert cache.lookup(REQUEST) == find("kernels/*.so", folder)


def test_where_there_are_no_owners_nothing_is_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.chmod(0o777)
    monkeypatch.delattr(os, "geteuid")
    assert cache.lookup(REQUEST) is not None


def test_an_untrusted_cache_is_an_error_before_a_schedule_is_chosen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.chmod(0o777)
    monkeypatch.setattr(build, "_kernels", {})
    monkeypatch.setattr(selecting, "candidates", lambda *_: pytest.fail("read its records"))
    for use in (build.kernel_for, build.is_cached, build.explain):
        with pytest.raises(RuntimeError, match="kernel cache: required .* to be written by its owner alone"):
            use(PROBLEM)


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(5, "I/O error"), OSError(40, "a loop of links")])
def test_what_cannot_be_read_is_a_miss_with_one_warning(
    folder: Path, error: OSError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(path: Path) -> None:
        raise error

    monkeypatch.setattr(owned, "check", fails)
    with caplog.at_level(logging.WARNING):
        assert [cache.lookup(REQUEST), cache.lookup(OTHER)] == [None, None]
        assert cache.entries() == []
    assert len(caplog.records) == 1
    assert error.strerror in caplog.text


def test_a_copied_entry_is_a_miss(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(folder / "index" / f"{REQUEST}.json", folder / "index" / f"{OTHER}.json")
    assert cache.lookup(OTHER) is None
    assert "not about this request" in caplog.text
    assert put(OTHER, b"its own").read_bytes() == b"its own"
    assert cache.lookup(REQUEST) is not None


def loop(path: Path) -> None:
    path.symlink_to(path.name)


ODD: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: (path / "inside").mkdir(parents=True),
    "a queue": lambda path: os.mkfifo(path, 0o600),
    "a loop of links": loop,
    "a link to its folder": lambda path: path.symlink_to(path.parent),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "empty": lambda path: path.touch(0o600),
    "nested": lambda path: (path.touch(0o600), path.write_text("[" * 100_000, encoding="utf-8")),
    "a number": lambda path: (path.touch(0o600), path.write_text("1", encoding="utf-8")),
}


@pytest.mark.parametrize("pattern", ["index/*.json", "kernels/*.so"])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_files_are_misses_mended_and_cleared(folder: Path, odd: Callable[[Path], object], pattern: str) -> None:
    path = find(pattern, folder)
    path.unlink()
    odd(path)
    assert cache.lookup(REQUEST) is None
    assert len(cache.entries()) == (1 if pattern == "kernels/*.so" and path.exists() else 0)
    assert put(REQUEST, b"kernel").read_bytes() == b"kernel"
    path.unlink()
    odd(path)
    assert cache.clear() == 1
    assert not [file for file in folder.rglob("*") if not file.is_dir()]


def test_an_empty_kernel_that_was_indexed_is_built_anew(folder: Path) -> None:
    """As versions before left one whose compiler had made nothing."""
    index, digest = find("index/*.json", folder), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    index.write_text(json.dumps({**json.loads(index.read_text(encoding="utf-8")), "sha256": digest}), encoding="utf-8")
    (folder / "kernels" / f"{'c' * 32}-{digest[:16]}.so").touch(0o600)
    assert cache.lookup(REQUEST) is None
    assert put(REQUEST, b"kernel").read_bytes() == b"kernel"


@pytest.mark.parametrize("write", [lambda file: None, lambda file: file.touch()], ids=["nothing", "empty"])
def test_a_library_without_content_is_not_indexed(folder: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(RuntimeError, match="kernel cache: required a library from the compiler, got none or an empty"):
        cache.get_or_build(OTHER, {}, lambda: ("d" * 32, write))
    assert cache.lookup(OTHER) is None
    assert not list(folder.rglob(".tmp-*"))


def test_a_full_disk_is_told(folder: Path) -> None:
    def full(file: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RuntimeError, match=r"kernel cache: required a folder .* with space .*No space left on device"):
        cache.get_or_build(OTHER, {}, lambda: ("d" * 32, full))


def test_what_compiling_raises_is_not_about_the_folder(folder: Path) -> None:
    def compile_() -> tuple[str, Callable[[Path], None]]:
        raise FileNotFoundError("not of the cache")

    with pytest.raises(FileNotFoundError, match="not of the cache"):
        cache.get_or_build(OTHER, {}, compile_)


def test_leftovers_of_killed_runs_are_swept(folder: Path) -> None:
    def leave(age: float) -> list[Path]:
        left = [
            folder / "kernels" / f".tmp-{age}",
            folder / "records" / f".tmp-{age}",
            folder / "locks" / f"{age}.lock",
        ]
        left[0].mkdir()
        (left[0] / "kernel.so").touch()
        for file in left[1:]:
            file.parent.mkdir(exist_ok=True)
            file.touch()
        for path in left:
            time = path.stat().st_mtime - age
            os.utime(path, (time, time))
        return left

    for sweep in (lambda: put(OTHER, b"another"), cache.clear):
        old, new = leave(cache.LEFT + 60), leave(cache.LEFT - 60)
        sweep()
        assert not [path for path in old if path.exists()]
        assert new[0].exists()  # a build that is running
        shutil.rmtree(new[0])
    assert not list((folder / "locks").iterdir())
