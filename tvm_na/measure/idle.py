"""Whether others use what is to be measured: the cores of this machine, or a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

_GLANCE = 0.05  # seconds
_DISREGARDED = 0.35  # of a core
_IDLE_PERCENT = 5  # of a GPU's time


class Patience:
    """Waits, but not for ever, until other processes leave enough cores alone.

    Threads that wait for one that another process has displaced make a kernel 100 times as slow, every time.

    Attributes:
        patience: Seconds to wait at most; half as many after each time in vain, so that a machine that is always
            busy is not waited for.
    """

    def __init__(self, patience: float = 5.0) -> None:
        self.patience = self._most = patience

    def wait_until_idle(self, threads: int) -> bool:
        """Wait until as many cores as ``threads`` have nothing to do; whether that came to be."""
        import psutil

        cores, end = psutil.cpu_count() or 1, time.monotonic() + self.patience
        while True:
            busy = psutil.cpu_percent(interval=_GLANCE) / 100 * cores
            if cores - busy > min(threads, cores) - _DISREGARDED:
                self.patience = min(self._most, 2 * self.patience)
                return True
            if time.monotonic() > end:
                self.patience /= 2
                return False


def why_busy(gpu: str) -> str | None:
    """Who else uses a GPU (as nvidia-smi names it), in words; None if it is idle, or where nvidia-smi is not there."""
    used = _nvidia_smi(gpu, "--query-gpu=utilization.gpu")
    if used is None:
        return None
    percent = [int(line) for line in used if line.isdecimal()]
    if percent and percent[0] > _IDLE_PERCENT:
        return f"it is busy {percent[0]} % of the time"
    rows = [line.split(", ", 1) for line in _nvidia_smi(gpu, "--query-compute-apps=pid,process_name") or ()]
    others = [row for row in rows if row[0].isdecimal() and int(row[0]) != os.getpid()]
    if others:
        return f"used by {', '.join(f'{name} (process {pid})' for pid, name in others)}"
    return None


def _nvidia_smi(gpu: str, query: str) -> list[str] | None:
    """The lines of an answer of nvidia-smi; None if it is not there, or does not know the GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, query, "--format=csv,noheader,nounits", f"--id={gpu}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return None if done.returncode else [line.strip() for line in done.stdout.splitlines() if line.strip()]
