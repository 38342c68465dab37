"""A pretended driver: libcuda.so.1 and libcudart.so.13 that only write down how they are called."""

from __future__ import annotations

import ast
import functools
import os
import shutil
import subprocess
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import ROOT, run_python

_LOADING = """
import os, sys
from pathlib import Path
import tvm_ffi
from tests.ops.fake_tensor import cuda_tensor
from tvm_na.jit import runtime

log = Path(os.environ["FAKE_CUDA_LOG"])
kernel = runtime.load(Path(sys.argv[1]), "main", "cuda")
"""


@functools.cache
def _driver() -> tempfile.TemporaryDirectory[str]:
    """A folder with both libraries."""
    if torch.version.cuda is not None:
        pytest.skip("this PyTorch brings CUDA's own runtime")
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler")
    kept = tempfile.TemporaryDirectory()
    folder = Path(kept.name)
    (folder / "versions").write_text("libcudart.so.13 { global: *; };", encoding="utf-8")
    for name, option in (
        ("libcuda.so.1", "-DDRIVER"),
        ("libcudart.so.13", f"-Wl,--version-script={folder / 'versions'}"),
    ):
        source, library = ROOT / "tests" / "fakes" / "cuda.c", folder / name
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", option, "-o", str(library), str(source)]
        subprocess.run(command, check=True, capture_output=True, text=True)
    return kept


def fake_driver() -> str:
    """A value for LD_LIBRARY_PATH with which both libraries are found."""
    return f"{_driver().name}:{os.environ.get('LD_LIBRARY_PATH', '')}"


def driver_calls(file: Path, code: str) -> list[Any]:
    """What a fresh Python prints, line by line, that loads the kernel of ``file`` with a pretended driver.

    ``code`` has the kernel as ``kernel``, and the calls of the driver as lines of the file ``log``.
    """
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": fake_driver(),
        "FAKE_CUDA_LOG": str(file.with_suffix(".log")),
    }
    printed = run_python(_LOADING + textwrap.dedent(code), str(file), env=environment)
    return [ast.literal_eval(line) for line in printed.splitlines()]
