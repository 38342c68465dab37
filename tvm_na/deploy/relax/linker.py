"""Who links a library for a CPU that this machine may not have."""

from __future__ import annotations

import functools
import importlib.util
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from tvm_na.compilers import cxx
from tvm_na.compilers.run import run
from tvm_na.jit.library import Link
from tvm_na.targets.target import NATarget

#: The C library that libraries for other architectures need, or a newer one: that of Debian 10 and manylinux_2_28.
GLIBC = "2.28"

# As a linker of finished objects: "zig cc" would first compile a runtime library of its own, for minutes.
_LINKER_OF_ZIG = "ziglang build-lib -dynamic -fno-compiler-rt -fno-ubsan-rt -fno-soname -lc -lm"


def linker_for(target: NATarget) -> Link:
    """A function ``link(file, objects)`` as :func:`tvm_na.jit.library.write_library` takes it.

    Raises:
        RuntimeError: there is no compiler for the target's architecture.
    """
    architecture = target.triple.split("-")[0] or platform.machine()
    if architecture == platform.machine():
        return cxx.link
    if importlib.util.find_spec("ziglang") is None:
        raise RuntimeError(
            f"to link for {architecture}: required the package ziglang (pip install 'tvm_na[cross]'), found none"
        )
    triple = f"{architecture}-linux-gnu.{GLIBC}"
    return functools.partial(_link_by_zig, triple)


def _link_by_zig(triple: str, file: str, objects: Sequence[Path]) -> None:
    words = [sys.executable, "-m", *_LINKER_OF_ZIG.split(), "-target", triple, f"-femit-bin={file}"]
    run([*words, *map(str, objects)], Path(file), "the linker")
