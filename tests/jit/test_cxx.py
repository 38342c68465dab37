"""The C++ compiler: which one is called, and what comes of one that is missing, hangs, fails or leaves nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.compilers.fakes import compiler_that
from tests.jit.kernels import check
from tvm_na.compilers import cxx
from tvm_na.jit import build, openmp
from tvm_na.problems.attention import NAProblem

PROBLEM = NAProblem.make((6, 7), 3, 1, 4)


def test_cxx_may_be_several_words(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called = tmp_path / "called"
    launcher = compiler_that(f"""echo >> {called}; exec "$@" """, tmp_path)
    monkeypatch.setenv("CXX", f"{launcher} g++ -Wl,--as-needed")
    check(PROBLEM, build.kernel_for(PROBLEM).function, 2)
    openmp._library()
    assert called.read_text(encoding="utf-8") == "\n\n"
    program = cxx.as_program(tmp_path)
    assert "g++" in subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    monkeypatch.setenv("CXX", " ")
    assert cxx.command() == [cxx.as_program(tmp_path)] == [shutil.which("g++") or shutil.which("clang++")]


@pytest.mark.parametrize(
    ("named", "error", "says"),
    [
        ("no-such-compiler -m64", RuntimeError, "CXX: required a C.. compiler that can be started, got 'no-such-comp"),
        ("'g++", ValueError, 'CXX: required the words of a command, got "\'g.."'),
    ],
)
def test_a_missing_compiler_is_no_missing_folder(
    folder: Path, named: str, error: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", named)
    with pytest.raises(error, match=says):
        build.kernel_for(PROBLEM)
    assert not cxx.is_there()


def test_one_that_cannot_be_started(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = Path(compiler_that("", tmp_path))
    script.write_bytes(b"\0no program")
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(RuntimeError, match=r"the linker: required a program that can be started, got .*\ncommand: /"):
        build.kernel_for(PROBLEM)


@pytest.mark.parametrize("does", ["exit 0", "while [ $1 != -o ]; do shift; done; : > $2"], ids=["nothing", "empty"])
def test_one_that_makes_nothing_leaves_nothing(
    folder: Path, does: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("CXX", compiler_that(does, tmp_path))
        for use, what in ((lambda: build.kernel_for(PROBLEM), "the linker"), (openmp._library, r"the C\+\+ compiler")):
            with pytest.raises(RuntimeError, match=f"{what}: required .*, got none or an empty one") as caught:
                use()
            assert str(tmp_path / "compiler") in str(caught.value)
    assert not list(folder.rglob("*.json"))
    assert not list(folder.rglob("*.so"))
    check(PROBLEM, build.kernel_for(PROBLEM).function, 2)
    openmp._library()
