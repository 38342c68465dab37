"""Peak memory, measured in a fresh process: what has been loaded and freed in another one would count."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

R = TypeVar("R")

_ROOT = Path(__file__).parent.parent


def _status(name: str) -> int:
    """A number of bytes that Linux keeps of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def peak_of_call(call: Callable[[], R]) -> tuple[R, int]:
    """What ``call`` gives, and the bytes at most in use at a time during it, beyond what was in use before.

    Linux counts them to some hundred kilobytes.
    """
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from now
    result = call()
    return result, _status("VmHWM") - before


def last_line_of(module: str, *arguments: str) -> str:
    """The last line that ``python -m module arguments`` prints, in a process that gives freed tensors back.

    Raises:
        RuntimeError: the process failed; the message has what it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=_ROOT,
        # malloc takes large tensors from the system one by one, and gives them back.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"measuring memory ({module} {' '.join(arguments)}) failed: {done.stderr}")
    return done.stdout.splitlines()[-1]
