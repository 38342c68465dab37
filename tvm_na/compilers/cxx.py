"""The C++ compiler: which one it is, and linking with it."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from tvm_na.compilers.run import run


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
