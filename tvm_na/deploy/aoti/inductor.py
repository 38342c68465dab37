"""The rest of a model: compiled by AOTInductor, weights folded in."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import patch

import torch
from torch._inductor import select_algorithm
from torch.export import ExportedProgram

from tvm_na.compilers import cxx
from tvm_na.compilers.run import run
from tvm_na.jit import openmp
from tvm_na.measure.linear import packs_for_onednn
from tvm_na.targets.target import NATarget, detect_target


def compile_program(
    program: ExportedProgram,
    target: NATarget,
    folder: Path,
    scratch: Path,
    dtype: torch.dtype = torch.float32,
    autotune: bool = False,
) -> None:
    """Compile a program for ``target`` into ``folder``, in the form that PyTorch's AOTIModelPackageLoader takes.

    Its tensors between layers are of ``dtype``, and its operators must be known to PyTorch
    (:func:`tvm_na.deploy.export.known_operators`). Takes from half a minute to minutes. With ``autotune``, which is for
    this machine's own target, linear layers may be Inductor's own C++ where that is faster than the library.

    Raises:
        RuntimeError: Inductor or the C++ compiler fails.
    """
    package = scratch / "model.pt2"
    without_tables = patch.object(select_algorithm, "PRINT_AUTOTUNE", False)  # there is one for each layer
    with torch.no_grad(), without_tables, _aligned_memory(scratch):
        options = _options(target, scratch, dtype) | (_AUTOTUNE if autotune else {})
        torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=options)
    _unpack(package, folder)


_SOURCE = Path(openmp.__file__).parent / "aligned.cc"
_ALIGNED = "tvm_na_aligned"
_AUTOTUNE = {
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
    "max_autotune_report_choices_stats": False,
}


@contextmanager
def _aligned_memory(scratch: Path) -> Iterator[None]:
    """While it is used, compilers find the library :data:`_ALIGNED`, a linker's script that names one object."""
    compiled = scratch / "aligned.o"
    run([*cxx.command(), "-std=c++17", "-O2", "-fPIC", "-c", "-o", str(compiled), str(_SOURCE)], compiled)
    (scratch / f"lib{_ALIGNED}.a").write_text(f'INPUT("{compiled}")\n', encoding="utf-8")
    places = [str(scratch), *filter(None, [os.environ.get("LIBRARY_PATH")])]
    with patch.dict(os.environ, {"LIBRARY_PATH": os.pathsep.join(places)}):
        yield


def _options(target: NATarget, scratch: Path, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "freezing": True,
        "cpp.cxx": (None, cxx.as_program(scratch)),
        # Else the code would be for this very machine, and for the number of threads that it has now.
        "cpp.march": target.cpu if target.name.startswith("llvm-x86") else "armv8-a",
        "cpp.simdlen": target.vector_bytes * 8,
        "cpp.dynamic_threads": True,
        # Else a batch of one is refused where inputs are checked (AOTI_RUNTIME_CHECK_INPUTS=1).
        "aot_inductor.check_lowerbound": False,
        "aot_inductor.custom_op_libs": [_ALIGNED],
        # oneDNN lays weights out for the instructions that it finds here, which the target may lack. In float64
        # Inductor would call it for convolutions, which it then refuses, as in bfloat16 on CPUs without AVX-512.
        "cpp.weight_prepack": target.name == detect_target().name and packs_for_onednn(dtype),
    }


def _unpack(package: Path, folder: Path) -> None:
    """The files of a .pt2 but for C++ sources and hidden ones, without the folder that they have in common.

    PyTorch would unpack the package into a temporary folder at every load; from a folder it loads in place.
    """
    with zipfile.ZipFile(package) as archive:
        for info in archive.infolist():
            path = PurePosixPath(*PurePosixPath(info.filename).parts[1:])
            if info.is_dir() or path.suffix == ".cpp" or path.parts[0].startswith("."):
                continue
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(archive.read(info))
