"""Compilers that hang, are interrupted or fail."""

from __future__ import annotations

import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from tests.compilers.fakes import compiler_that
from tests.helpers import wait_until
from tvm_na.compilers.run import run


def test_one_that_hangs_is_ended_with_what_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = [compiler_that(f"sleep 300 & echo $! > {tmp_path / 'child'}; wait", tmp_path), "-o", str(tmp_path / "x")]
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"required an end within 0\.5 s, got none\ncommand: ") as caught:
        run(words, tmp_path / "x", timeout=0.5)
    assert time.monotonic() - start < 10
    assert shlex.join(words) in str(caught.value)
    child = Path("/proc", (tmp_path / "child").read_text(encoding="utf-8").strip(), "stat")
    wait_until(lambda: not child.exists() or child.read_text(encoding="utf-8").split()[2] == "Z", "the child ends")


def test_an_interrupt_ends_it_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    does = f"echo $$ > {pid}; sleep 0.3; kill -{signal.SIGINT.value} {os.getpid()}; exec sleep 300"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            run([compiler_that(does, tmp_path)], tmp_path / "x")
    finally:
        signal.signal(signal.SIGINT, before)
    assert not Path("/proc", pid.read_text(encoding="utf-8").strip()).exists()


def test_one_that_fails_is_heard(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^the linker failed:\nto stdout\nto stderr\nexit status: 3\ncommand: "):
        run([compiler_that("echo to stdout; echo to stderr >&2; exit 3", tmp_path)], tmp_path / "x", "the linker")
