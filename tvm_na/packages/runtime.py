"""What a package brings along for machines that have PyTorch alone: TVM's runtime, tvm_ffi, tvm_na and what it imports.

It is a folder for ``PYTHONPATH``. What is in it is for one version of Python, as tvm_ffi is.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from tvm_na.jit.runtime import CUDA_LIBRARY, LIBRARY, runtime_library
from tvm_na.packages.package import RUNTIME
from tvm_na.targets.target import host_machine

_FFI = "apache-tvm-ffi"
#: In which wheels it comes; the machine's instruction set follows.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_24", "manylinux2014")
_WHEEL_MACHINES = {"x86-64": "x86_64", "aarch64": "aarch64"}
#: What else is imported to measure; for any Python.
_PURE = ("filelock", "platformdirs")
_PYTHON = "{}.{}".format(*sys.version_info)
#: Of tvm_na, where it is taken as it lies: the folders beside it belong to it by name.
_OWN = ("tvm_na", "tvm_na.models", "tvm_na.schedules")


def add_runtime(folder: Path, python: str = "") -> Path:
    """Put into a package what a machine without TVM needs beside PyTorch and NumPy; its folder.

    Args:
        folder: The package.
        python: The version of Python there, such as ``3.12``; this one's if empty. For another one tvm_ffi is
            downloaded by pip, once.

    Raises:
        ValueError: ``python`` is no version.
        RuntimeError: there is no such tvm_ffi, or no network to get it from.
        OSError: it cannot be written.
    """
    python = python or _PYTHON
    if not re.fullmatch(r"3\.\d+", python):
        raise ValueError(f"python: required a version such as 3.12, got {python!r}")
    runtime, made = folder / RUNTIME, folder / f".{RUNTIME}.tmp"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        for name in (LIBRARY, CUDA_LIBRARY):
            shutil.copyfile(runtime_library(name), made / name)
        for distribution in ("apache-tvm", "tvm_na"):  # by which versions are known
            _copy(distribution, made, lambda name: name.endswith(".dist-info/METADATA"))
        for package in _OWN:
            _copy_package(package, made)
        for distribution in _PURE:
            _copy(distribution, made, lambda name: name.endswith(".py"))
        _add_ffi(made, python)
        shutil.rmtree(runtime, ignore_errors=True)
        made.replace(runtime)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return runtime


def _is_used(name: str) -> bool:
    """Whether a file of tvm_ffi's is needed to load kernels: no headers and sources."""
    parts = Path(name).parts
    if parts[0].endswith(".dist-info"):
        return parts[1:] == ("METADATA",)
    return parts[0] == "tvm_ffi" and parts[1:2] != ("3rdparty",) and name.endswith((".py", ".so"))


def _copy(distribution: str, into: Path, wanted: Callable[[str], bool]) -> None:
    for file in metadata.files(distribution) or ():
        if wanted(str(file)):
            place = into / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), place)


def _copy_package(name: str, into: Path) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations
    ignored = shutil.ignore_patterns("__pycache__")
    place = into.joinpath(*name.split("."))
    shutil.copytree(spec.submodule_search_locations[0], place, ignore=ignored, dirs_exist_ok=True)


def _add_ffi(into: Path, python: str) -> None:
    if python == _PYTHON:
        _copy(_FFI, into, _is_used)
        return
    with tempfile.TemporaryDirectory(prefix="tvm_na-") as name, zipfile.ZipFile(_download(Path(name), python)) as wheel:
        wheel.extractall(into, [file for file in wheel.namelist() if _is_used(file)])


def _download(into: Path, python: str) -> Path:
    """The wheel of tvm_ffi, in the version that is installed here."""
    machine, wanted = _WHEEL_MACHINES[host_machine()], f"{_FFI}=={metadata.version(_FFI)}"
    platforms = (f"--platform={name}_{machine}" for name in _PLATFORMS)
    options = ("--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(into), *options, wanted]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    wheels = list(into.glob("*.whl"))
    if done.returncode or not wheels:
        raise RuntimeError(
            f"python: required {wanted} for Python {python} from a package index (or a Python {python} to build the "
            f"package with), got\n{done.stdout}{done.stderr}"
        )
    return wheels[0]
