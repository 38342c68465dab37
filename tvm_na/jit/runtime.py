"""Running a compiled kernel with TVM's runtime library alone: no compiler, no ``import tvm``.

A kernel's parallel loops run on PyTorch's OpenMP threads (:mod:`tvm_na.jit.openmp`), where there are none on a
pool of TVM's that belongs to the calling thread. Neither survives ``fork`` (:mod:`tvm_na.process.forking`).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm_na
from tvm_na import settings
from tvm_na.jit import openmp
from tvm_na.process import forking
from tvm_na.targets.threads import FLOPS_PER_THREAD, threads_for


@dataclass(frozen=True)
class LaunchSpec:
    """How kernels run on a device: what differs between launchers.

    Attributes:
        kernel: The kernel's function.
        scale: ``scale(factor, dtype)``: the factor of the scores as a tensor ``[1]`` where the kernel can read it.
        before: ``before(flops)`` is called before the kernel.
        alignment: Bytes that its arguments must be aligned to.
        samples: The largest batch of one call; 0 if one sample is too large.
    """

    kernel: Callable[..., None]
    scale: Callable[[float, Any], Any]
    before: Callable[[int], None] | None
    alignment: int
    samples: int


#: TVM's runtime, and what it needs beside that to launch kernels on GPUs.
LIBRARY, CUDA_LIBRARY = "libtvm_runtime.so", "libtvm_runtime_cuda.so"

_pools = threading.local()
_pool_of_artifacts: Callable[[int], None] | None = None


def runtime_library(name: str = LIBRARY) -> Path:
    """The path of TVM's runtime library, found without importing TVM.

    Where TVM is not installed it is beside tvm_na, as a package of kernels brings both along; ImportError if there is
    none either.
    """
    spec = importlib.util.find_spec("tvm")
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / "lib" / name
    own = Path(tvm_na.__file__).parents[1] / name
    if not own.is_file():
        raise ImportError("required the package apache-tvm, which is not installed")
    return own


def _is_installed() -> bool:
    return importlib.util.find_spec("tvm") is not None


@functools.lru_cache(maxsize=1)
def _load_runtime() -> Callable[[int], None]:
    """Load the runtime once; returns the function that sets the calling thread's number of threads."""
    import tvm_ffi

    if _pool_of_artifacts is not None:
        return _pool_of_artifacts
    forking.computed()
    ctypes.CDLL(str(runtime_library()), ctypes.RTLD_GLOBAL)
    # Where TVM is not, nothing is built: no launcher either.
    library = openmp.pytorch_openmp() if _is_installed() else None
    return _tvm_pool(tvm_ffi) if library is None else openmp.register(library)


def load_for_artifact(own: Path) -> None:
    """Load TVM's runtime for an artifact: that of apache-tvm where it is installed, else ``own``.

    In a process that has loaded it for kernels, they and the artifact share it, and their threads. So they will in one
    that runs PyTorch and could build kernels: a second pool of threads would keep PyTorch's from the cores.

    Raises:
        FileNotFoundError: there is neither.
    """
    global _pool_of_artifacts
    if _load_runtime.cache_info().currsize or _pool_of_artifacts is not None:
        return
    from tvm_na.compilers import cxx

    installed = _is_installed()
    if "torch" in sys.modules and installed and cxx.is_there():
        _load_runtime()
        return
    import tvm_ffi

    # Two copies of the library in a process would register everything twice, which is an error.
    if tvm_ffi.get_global_func("runtime.config_threadpool", allow_missing=True) is None:
        file = runtime_library() if installed else own
        if not file.is_file():
            raise FileNotFoundError(f"artifact: required apache-tvm, or TVM's runtime library at {own}, got neither")
        ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL)
    forking.computed()
    _pool_of_artifacts = _tvm_pool(tvm_ffi)


def _tvm_pool(tvm_ffi: Any) -> Callable[[int], None]:
    # Read by TVM when a pool starts: it can be told to use fewer threads than it has, never more. Bound
    # threads would meet those of every other process and pool on the same cores.
    os.environ["TVM_NUM_THREADS"] = str(max(settings.num_threads(), settings.available_cores()))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    big_cores = 1  # an affinity mode; without bound threads it only has to be named
    return lambda threads: configure(big_cores, threads, ["0"] if forking.is_child else [])


def _after_fork() -> None:
    _pools.threads = None
    if _load_runtime.cache_info().currsize or _pool_of_artifacts is not None:
        # The workers did not come along; waiting for them would never end.
        use_threads(0)


os.register_at_fork(after_in_child=_after_fork)  # after that of forking, which says that it is a child


def use_threads(flops: int) -> None:
    """Set the calling thread's threads to the number wanted now for a kernel that computes ``flops``."""
    threads = 1 if forking.is_child else threads_for(flops, settings.num_threads())
    if getattr(_pools, "threads", None) != threads:
        _load_runtime()(threads)
        _pools.threads = threads


def use_all_threads() -> None:
    """Set the calling thread's threads to those of a whole model."""
    use_threads(FLOPS_PER_THREAD * 2**20)


@functools.lru_cache(maxsize=1)
def _load_cuda_runtime() -> None:
    """Load what TVM needs beside its runtime to launch kernels on GPUs.

    It links to CUDA's own runtime, which PyTorch for the same CUDA has loaded already.

    Raises:
        RuntimeError: something that it links to is missing.
    """
    library = str(runtime_library(CUDA_LIBRARY))
    try:
        try:
            ctypes.CDLL(library)
        except OSError:
            for file in _cuda_runtimes():
                ctypes.CDLL(str(file))
            ctypes.CDLL(library)
    except OSError as error:
        raise RuntimeError(
            "kernels for GPUs: required NVIDIA's driver (libcuda.so.1) and the runtime of CUDA 13 (libcudart.so.13, "
            f"which comes with PyTorch for CUDA 13 or the package nvidia-cuda-runtime), got {error}"
        ) from error


def _cuda_runtimes() -> list[Path]:
    """CUDA's runtime library where nvidia's package for it is installed but no loaded library has asked for it."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    files = (Path(folder) / "cu13" / "lib" / "libcudart.so.13" for folder in folders)
    return [file for file in files if file.is_file()][:1]


def load(file: Path, entry: str, kind: str = "llvm") -> Callable[..., None]:
    """The function ``entry`` of the kernel in a shared library.

    Args:
        file: The library.
        entry: The function's name.
        kind: The kind of target that it was built for, ``llvm`` or ``cuda``.

    Raises:
        RuntimeError: what kernels of this kind run on is missing.
    """
    _load_runtime()
    if kind == "cuda":
        _load_cuda_runtime()
    import tvm_ffi

    # A GPU's stays for good: it may be running, or be in a graph that was captured, when nobody refers to it any more.
    function: Callable[..., None] = tvm_ffi.load_module(str(file), keep_module_alive=kind == "cuda")[entry]
    return function
