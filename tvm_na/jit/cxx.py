"""The C++ compiler: which one it is, and running it such that it ends and leaves what it was to make."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

#: Seconds after which a compiler is taken for one that hangs. To link a kernel takes it a tenth of one.
TIMEOUT = 600.0


def command() -> list[str]:
    """The words that call the C++ compiler: those of CXX, else g++ or clang++ on PATH.

    Raises:
        RuntimeError: there is none.
        ValueError: CXX is no command.
    """
    named = os.environ.get("CXX", "")
    try:
        words = shlex.split(named)
    except ValueError as error:
        raise ValueError(f"CXX: required the words of a command, got {named!r} ({error})") from error
    if words:
        found = shutil.which(words[0])
        if found is None:
            raise RuntimeError(f"CXX: required a C++ compiler that can be started, got {named!r}, which is not there")
        return [found, *words[1:]]
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        raise RuntimeError("required a C++ compiler to link kernels with (g++ or clang++ on PATH), found none")
    return [found]


def is_there() -> bool:
    """Whether there is a C++ compiler."""
    try:
        command()
    except (RuntimeError, ValueError):
        return False
    return True


def as_program(folder: Path) -> str:
    """The compiler as one word, for those who take no more: a script in ``folder`` where it is several."""
    words = command()
    if len(words) == 1:
        return words[0]
    script = folder / "cxx"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
    script.chmod(0o700)
    return str(script)


def link(file: str, objects: Sequence[Path]) -> None:
    """Link objects into a shared library.

    Raises:
        RuntimeError: as :func:`run`; or there is no compiler.
    """
    run([*command(), "-shared", "-fPIC", "-o", str(file), *map(str, objects)], Path(file), "the linker")


def run(words: list[str], output: Path, what: str = "the C++ compiler", timeout: float | None = None) -> None:
    """Run a compiler that is to make the file ``output``.

    Args:
        words: Its command.
        output: What it makes; a file that is there is removed first.
        what: What to call it in errors.
        timeout: Seconds after which it is ended, with what it has started; None for :data:`TIMEOUT`.

    Raises:
        RuntimeError: it cannot be started, does not end, fails or makes nothing; with its command and what it said.
    """
    output.unlink(missing_ok=True)
    limit = TIMEOUT if timeout is None else timeout
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
            said, _ = process.communicate(timeout=limit)
        except BaseException as error:  # also where somebody interrupts
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"{what}: required an end within {limit:g} s, got none{called}") from None
            raise
    if process.returncode:
        raise RuntimeError(f"{what} failed:\n{said}exit status: {process.returncode}{called}")
    if not output.is_file() or not output.stat().st_size:
        raise RuntimeError(f"{what}: required {output}, got none or an empty one, and no error:\n{said}{called}")
