"""The compilers of CUDA C++: which are here, and device code from them.

NVRTC comes first, where the package cuda-bindings, the library and CUDA's headers are installed: it compiles in this
process. Else nvcc takes its place. Both get the same flags.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from tvm_na.compilers.run import run
from tvm_na.cuda import fatbin, nvrtc
from tvm_na.cuda.toolkit import DEFAULT_HOME, homes

#: Never --use_fast_math: it makes division, square root and exp approximate, and float32 must be exact to 2e-6.
#: Products and sums may be fused, which is more exact, not less. float32 below the normal range (1.2e-38) counts as 0:
#: otherwise each power of two takes four instructions instead of one. The optimisation is what both compilers do
#: unasked: -O3. What else is spelled out here is their default, and stays so if that changes.
FLAGS = ("--std=c++17", "--fmad=true", "--ftz=true", "--prec-div=true", "--prec-sqrt=true")


@dataclass(frozen=True)
class Nvrtc:
    """NVRTC, through cuda-bindings; ``name``, ``version`` and ``where`` are for people."""

    version: str
    include_dirs: tuple[str, ...]
    name: ClassVar[str] = "NVRTC"

    @property
    def where(self) -> str:
        """The package it is called through, and where its headers are."""
        return f"cuda-bindings, headers in {self.include_dirs[0]}"

    def compile(self, source: str, arch: str, ptx: bool = True) -> tuple[bytes, str]:
        """What the CUDA driver can load, and what ``ptxas -v`` says of it.

        That is machine code for ``arch`` (such as ``sm_90``), and with ``ptx`` PTX too, where nvFatbin or CUDA's
        fatbinary can join them; see :func:`tvm_na.cuda.inspection.resources_of` for the rest.

        Raises:
            RuntimeError: with the compiler's messages, if it fails.
        """
        cubin, text, log = self.parts(source, arch)
        return (fatbin.join(cubin, text, arch) if ptx else None) or cubin, log

    def parts(self, source: str, arch: str) -> tuple[bytes, bytes, str]:
        """Machine code, the PTX that it was made of, and what ``ptxas -v`` says of it."""
        return nvrtc.compile(source, arch, (*FLAGS, "--ptxas-options=-v"), self.include_dirs)


@dataclass(frozen=True)
class Nvcc:
    """The compiler driver of the CUDA toolkit."""

    where: str
    version: str
    name: ClassVar[str] = "nvcc"

    def compile(self, source: str, arch: str, ptx: bool = True) -> tuple[bytes, str]:
        """See :meth:`Nvrtc.compile`; PTX whenever it is wanted."""
        if not ptx:
            return self.run(source, "--cubin", f"-arch={arch}", "-Xptxas=-v")
        number = arch.removeprefix("sm_")
        both = f"arch=compute_{number},code=[sm_{number},compute_{number}]"
        return self.run(source, "--fatbin", "-gencode", both, "-Xptxas=-v")

    def parts(self, source: str, arch: str) -> tuple[bytes, bytes, str]:
        """See :meth:`Nvrtc.parts`."""
        ptx = self.run(source, "--ptx", f"-arch={arch.replace('sm_', 'compute_')}")[0]
        cubin, log = self.run(ptx.decode(), "--cubin", f"-arch={arch}", "-Xptxas=-v", language="ptx")
        return cubin, ptx, log

    def run(self, source: str, *options: str, language: str = "cu") -> tuple[bytes, str]:
        """The output file of nvcc for ``source`` with these and the usual options, and what it printed.

        ``language`` is ``cu``, or ``ptx`` for what a run with ``--ptx`` gave.
        """
        with tempfile.TemporaryDirectory(prefix="tvm_na-") as name:
            folder = Path(name)
            file = folder / f"kernel.{language}"
            file.write_text(source, encoding="utf-8")
            command = [self.where, *options, *FLAGS, "-o", str(folder / "out"), str(file)]
            said = run(command, folder / "out", "nvcc")
            return (folder / "out").read_bytes(), said


def find_nvcc() -> Nvcc:
    """The nvcc of CUDA_HOME or CUDA_PATH, else on PATH, else where the toolkit is usually installed.

    Raises:
        RuntimeError: there is none.
    """
    named = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [*(f"{home}/bin" for home in named if home), os.environ.get("PATH", os.defpath), f"{DEFAULT_HOME}/bin"]
    path = shutil.which("nvcc", path=os.pathsep.join(folders))
    if path is None:
        raise RuntimeError("required nvcc, of the CUDA toolkit, on PATH or in CUDA_HOME, found none")
    return Nvcc(path, _nvcc_version(path))


@functools.lru_cache(maxsize=8)
def _nvcc_version(path: str) -> str:
    done = subprocess.run([path, "--version"], check=False, capture_output=True, text=True)
    found = re.search(r"\bV([\d.]+)", done.stdout)
    if done.returncode or found is None:
        raise RuntimeError(f"required an nvcc that tells its version, got {path}: {done.stdout}{done.stderr}")
    return found[1]


def find_nvrtc() -> Nvrtc:
    """NVRTC, where all that it needs is installed.

    Raises:
        RuntimeError: says what is missing.
    """
    version = nvrtc.version()
    return Nvrtc(version, nvrtc.include_dirs(homes()))


def find_compiler() -> Nvrtc | Nvcc:
    """The compiler that kernels for GPUs are made with.

    Raises:
        RuntimeError: there is none; says what to install.
    """
    missing = []
    for find in (find_nvrtc, find_nvcc):
        try:
            return find()
        except RuntimeError as error:
            missing.append(str(error))
    raise RuntimeError(
        "kernels for GPUs: required NVRTC (pip install 'tvm_na[cuda]') or nvcc (of the CUDA toolkit, version 12.8 or "
        f"newer), got neither: {'; '.join(missing)}"
    )


@functools.lru_cache(maxsize=1)
def _packages() -> tuple[str, ...]:
    """What NVRTC is installed as, with versions: to load it in order to ask takes as long as the rest of a start."""
    found = []
    for name in ("cuda-bindings", "nvidia-cuda-nvrtc"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def description() -> str:
    """The versions of the compilers that are here, and the flags."""
    try:
        nvcc: tuple[str, ...] = (f"nvcc {find_nvcc().version}",)
    except RuntimeError:
        nvcc = ()
    return ", ".join((*_packages(), *nvcc, " ".join(FLAGS)))
