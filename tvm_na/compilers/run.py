"""Running a compiler such that it ends, and leaves what it was to make."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from pathlib import Path

#: Seconds after which a compiler is taken for one that hangs. To link a kernel takes it a tenth of one.
TIMEOUT = 600.0


def run(words: list[str], output: Path, what: str = "the C++ compiler", timeout: float = TIMEOUT) -> str:
    """Run a compiler that is to make the file ``output``.

    Args:
        words: Its command.
        output: What it makes; a file that is there is removed first.
        what: What to call it in errors.
        timeout: Seconds after which it is ended, with what it has started.

    Returns:
        What it printed.

    Raises:
        RuntimeError: it cannot be started, does not end, fails or makes nothing; with its command and what it said.
    """
    output.unlink(missing_ok=True)
    called = f"\ncommand: {shlex.join(words)}"
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise RuntimeError(f"{what}: required a program that can be started, got {error}{called}") from error
    with process:
        try:
            said, _ = process.communicate(timeout=timeout)
        except BaseException as error:  # also where somebody interrupts
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"{what}: required an end within {timeout:g} s, got none{called}") from None
            raise
    if process.returncode:
        raise RuntimeError(f"{what} failed:\n{said}exit status: {process.returncode}{called}")
    if not output.is_file() or not output.stat().st_size:
        raise RuntimeError(f"{what}: required {output}, got none or an empty one, and no error:\n{said}{called}")
    return said
