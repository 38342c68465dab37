"""Locks: one holder at a time, of all threads and processes, whatever becomes of the file."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.helpers import ROOT, wait_until, within
from tvm_na.process.locks import LockedError, locked

HOLDER = """
import sys, time
from pathlib import Path
from tvm_na.process.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_holds_it_until_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, file], cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match="required a lock that nobody holds"), locked(file, wait=False):
            pytest.fail("two hold it")
        holder.kill()
    with within(10), locked(file):
        pass


def test_threads_wait_for_each_other_though_the_file_goes(tmp_path: Path) -> None:
    file, order = tmp_path / "lock", list[str]()

    def take() -> None:
        with locked(file, remove=True):
            order.append("second")

    with locked(file, remove=True):
        thread = threading.Thread(target=take)
        thread.start()
        assert not wait_until_waiting(thread, order)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"] and not file.exists()


def wait_until_waiting(thread: threading.Thread, order: list[str]) -> list[str]:
    wait_until(thread.is_alive, "the thread runs")
    thread.join(0.1)
    return order


def test_the_file_has_its_mode_and_its_error(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with locked(tmp_path / "lock", 0o600):
            assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert (tmp_path / "lock").exists()
    with pytest.raises(FileNotFoundError), locked(tmp_path / "none" / "lock"):
        pytest.fail("there is no such folder")
