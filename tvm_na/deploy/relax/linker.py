"""Who links a library for a CPU that this machine may not have."""

from __future__ import annotations

import functools
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tvm_na.jit import openmp
from tvm_na.targets.target import NATarget

#: The C library that libraries for other architectures need, or a newer one: that of Debian 10 and manylinux_2_28.
GLIBC = "2.28"

Link = Callable[..., None]

# As a linker of finished objects: "zig cc" would first compile a runtime library of its own, for minutes.
_LINKER_OF_ZIG = "ziglang build-lib -dynamic -fno-compiler-rt -fno-ubsan-rt -fno-soname -lc -lm"


def linker_for(target: NATarget) -> Link:
    """A function ``link(file, objects, options=None)`` as TVM's ``export_library`` takes it.

    Raises:
        RuntimeError: there is no compiler for the target's architecture.
    """
    architecture = target.triple.split("-")[0] or platform.machine()
    if architecture == platform.machine():
        return functools.partial(_link, [openmp.cxx_compiler(), "-shared", "-fPIC", "-o"])
    if importlib.util.find_spec("ziglang") is None:
        raise RuntimeError(
            f"to link for {architecture}: required the package ziglang (pip install 'tvm_na[cross]'), found none"
        )
    triple = f"{architecture}-linux-gnu.{GLIBC}"
    return functools.partial(_link, [sys.executable, "-m", *_LINKER_OF_ZIG.split(), "-target", triple, "-femit-bin="])


def _link(command: list[str], file: str, objects: list[str], options: Any = None, **_: Any) -> None:
    """Link with ``command``, whose last word is to be followed by the file to make."""
    *first, output = command
    into = [f"{output}{file}"] if output.endswith("=") else [output, str(file)]
    words = [*first, *into, *map(str, objects), *(options or [])]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the linker failed:\n{done.stderr}")
