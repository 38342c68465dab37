"""What TVM compiled, as a shared library on disk.

TVM's own ``export_library`` has LLVM write object files, and LLVM ends the process where a write fails (a full disk, a
limit on the size of files). So LLVM writes to memory here, and Python to the disk, whose errors can be told.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_na.compilers import cxx

if TYPE_CHECKING:
    from tvm_na.cuda.library import CudaLibrary

#: Bytes. A limit on the size of files below that is refused, since it holds for files in memory too: objects have tens
#: of kilobytes, those of whole models some megabytes.
SMALLEST_LIMIT = 64 * 2**20

Link = Callable[[str, Sequence[Path]], None]


def write_library(module: Any, file: Path, link: Link | None = None, pack: Callable[[Any], Any] | None = None) -> None:
    """Write a compiled module and what it imports as one shared library, or its objects as an archive.

    Args:
        module: TVM's runtime module (``executable.mod``).
        file: The library to make, or a ``.tar`` of objects that are to be linked elsewhere. Objects lie beside it
            meanwhile.
        link: ``link(library, objects)`` makes it of objects; None for the C++ compiler, or to make the archive.
        pack: ``pack(module)`` gives its imports that are no objects as a module that is one; None for TVM's own way.

    Raises:
        RuntimeError: files must be too small here; or the linker's.
        OSError: a file cannot be written.
    """
    import tvm

    modules = module._collect_dso_modules()
    if module.imports:
        triple = next(m for m in modules if m.kind == "llvm").get_function("_get_target_string")()
        pack_imports = tvm.get_global_func("runtime.ModulePackImportsToLLVM")
        modules.append(pack_imports(module, False, triple, "") if pack is None else pack(module))
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=file.parent) as folder:
        objects = [Path(folder) / f"lib{number}.o" for number in range(len(modules))]
        for each, into in zip(modules, objects, strict=True):
            write_object(each, into)
        (link or (_archive if file.suffix == ".tar" else cxx.link))(str(file), objects)


def _archive(file: str, objects: Sequence[Path]) -> None:
    with tarfile.open(file, "w") as archive:
        for each in objects:
            archive.add(each, each.name)


def write_cuda_library(library: CudaLibrary, file: Path) -> None:
    """Write a kernel for GPUs as a shared library; errors are those of :func:`write_library`."""
    write_library(library.host, file, pack=library.packed)


def write_object(module: Any, file: Path) -> None:
    """Write one compiled module as an object file.

    Raises:
        RuntimeError: files must be too small here.
        OSError: it cannot be written.
    """
    if not hasattr(os, "memfd_create"):  # not Linux
        module.write_to_file(str(file), "o")
        return
    _check_limit()
    with open(os.memfd_create("tvm_na"), "rb") as memory:
        module.write_to_file(f"/proc/self/fd/{memory.fileno()}", "o")
        file.write_bytes(memory.read())


def _check_limit() -> None:
    import resource  # Linux has it

    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and limit < SMALLEST_LIMIT:
        raise RuntimeError(
            f"ulimit -f: required files of {SMALLEST_LIMIT} bytes to be allowed where kernels are built, got {limit}"
        )
