"""Kernels on PyTorch's OpenMP threads: see ``parallel.cc`` for why."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from pathlib import Path

from tvm_na import fingerprint
from tvm_na.jit import cache

_SOURCE = Path(__file__).with_name("parallel.cc")
_SYMBOLS = ("GOMP_parallel", "omp_in_parallel")


def pytorch_openmp() -> ctypes.CDLL | None:
    """A library in which OpenMP's functions are those that PyTorch calls; None where it has none.

    Other packages bring OpenMP libraries too (scikit-learn does). A look-up in PyTorch's own library finds the
    one that it was linked with, by whatever name.
    """
    import torch

    file = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not file.is_file():  # not Linux
        return None
    library = ctypes.CDLL(str(file))
    return library if all(hasattr(library, name) for name in _SYMBOLS) else None


def _library() -> ctypes.CDLL:
    """The launcher, compiled once per machine and source."""
    source = _SOURCE.read_text(encoding="utf-8")
    request = fingerprint.digest_of("parallel", source, platform.machine())

    def compile_() -> tuple[str, Callable[[Path], None]]:
        # Here, and in `build` and `runtime`: a process that finds its kernels on disk needs no compiler.
        from tvm_na.compilers import cxx
        from tvm_na.compilers.run import run

        def write(file: Path) -> None:
            words = [*cxx.command(), "-std=c++17", "-O2", "-shared", "-fPIC", "-o", str(file), str(_SOURCE)]
            run(words, file)

        return f"parallel-{request}", write

    file = cache.lookup(request) or cache.get_or_build(request, {}, compile_)
    return ctypes.CDLL(str(file))


def register(openmp: ctypes.CDLL) -> Callable[[int], None]:
    """Make kernels loaded from now on run on ``openmp``'s threads.

    Returns:
        A function that sets the number of threads of the calling thread's next kernels.
    """
    import tvm_ffi.libinfo

    library = _library()
    library.tvm_na_use_openmp(*(ctypes.cast(getattr(openmp, name), ctypes.c_void_p) for name in _SYMBOLS))
    ffi = ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi())
    launch = ctypes.cast(library.tvm_na_parallel_launch, ctypes.c_void_p)
    if ffi.TVMFFIEnvModRegisterContextSymbol(b"__TVMBackendParallelLaunch", launch):
        raise RuntimeError("TVM's runtime refused the thread launcher")
    set_threads: Callable[[int], None] = library.tvm_na_set_threads
    return set_threads
