"""NVIDIA's tools: programs that start a process of ours, and end with the worker that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.worker import here

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl  # found before a fork, after which little is safe
#: What the started process says before it launches a kernel.
KERNEL = "kernel "


def _end_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def command(tool: Path, options: Sequence[str], numbers: Sequence[int], batch: int) -> list[str]:
    """A tool's command that launches kernels of the package with a batch."""
    place = here()
    program = [sys.executable, "-m", "benchmarks.gpu.launch", place.named, str(place.folder.path), str(place.results)]
    return [str(tool), *options, *program, str(batch), *map(str, numbers)]


def run(words: Sequence[str], log: Path, seconds: float) -> tuple[int | None, str]:
    """Run a tool; its exit status, None if it did not end in time, and what it said, which stays in ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
    return status, log.read_text(encoding="utf-8", errors="replace")
