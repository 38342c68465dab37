"""AArch64's products of pairs of bfloat16, run by qemu-aarch64: the instruction itself, and all that is around it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import random_inputs, reference64, relative_error
from tests.schedules.test_cpu_dots import LIMIT, WITH_DOTS
from tvm_na.jit import build
from tvm_na.problems.attention import NAProblem
from tvm_na.targets.target import NATarget, parse_target

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", ["qemu-aarch64", "-cpu", "max"]
TARGETS = [name for name, dot in WITH_DOTS.items() if dot == "bfdot"]

PROBLEMS = {
    "odd-window": NAProblem.make((10, 14), 7, 2, 32, bias=True, return_lse=True),
    "even-window": NAProblem.make((9, 12), 4, 1, 16),
    "dilated-causal": NAProblem.make((11, 23), (3, 5), 2, 12, dilation=(2, 3), is_causal=(False, True), bias=True),
    "strided-shared-heads": NAProblem.make((12, 13), 5, 4, 8, heads_kv=2, head_dim_v=24, stride=(2, 3)),
    "odd-channels": NAProblem.make((40,), 9, 2, 13, head_dim_v=5, return_lse=True),
    "volume": NAProblem.make((4, 5, 6), 3, 1, 20, head_dim_v=16),
}


def run_emulated(problem: NAProblem, target: NATarget, tensors: list[Tensor], folder: Path) -> list[Tensor]:
    """All tensors of a call after it."""
    import tvm

    module: Any = build.scheduled_module(problem, target)[0]
    tvm.compile(module, target=target.tvm_target()).mod.write_to_file(str(folder / "kernel.o"))
    source, program = Path(__file__).with_name("one_kernel.c"), folder / "program"
    build_ = [COMPILER, "-w", "-O1", "-static", str(source), str(folder / "kernel.o"), "-lm", "-o", str(program)]
    subprocess.run(build_, check=True)
    with open(folder / "in", "wb") as file:
        for tensor in tensors:
            code = 4 if tensor.dtype is torch.bfloat16 else 2
            file.write(np.array([code, tensor.itemsize * 8, tensor.ndim], np.int32).tobytes())
            file.write(np.array(tensor.shape, np.int64).tobytes())
            file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    subprocess.run([*EMULATOR, str(program), str(folder / "in"), str(folder / "out")], check=True)
    written, found = bytearray((folder / "out").read_bytes()), []
    for tensor in tensors:
        size = tensor.numel() * tensor.itemsize
        found.append(torch.frombuffer(written[:size], dtype=tensor.dtype).reshape(tensor.shape))
        del written[:size]
    return found


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("which", PROBLEMS)
def test_the_instruction_gives_what_the_reference_gives(which: str, name: str, tmp_path: Path) -> None:
    for program in (COMPILER, EMULATOR[0]):
        if shutil.which(program) is None:
            pytest.skip(f"test_the_instruction_gives_what_the_reference_gives needs {program}")
    problem = PROBLEMS[which].with_dtype("bfloat16")
    query, key, value, rpb = random_inputs(problem, 1, 0)
    out = torch.full((*query.shape[:-1], problem.head_dim_v), torch.nan, dtype=query.dtype)
    outputs = [out, torch.full(query.shape[:-1], torch.nan)][: 1 + problem.return_lse]
    inputs = [t for t in (query, key, value, torch.tensor([0.2]), rpb) if t is not None]
    found = run_emulated(problem, parse_target(name), [*inputs, *outputs], tmp_path)[-len(outputs) :]
    for got, wanted in zip(found, reference64(problem, (query, key, value, rpb), 0.2), strict=False):
        assert wanted is not None and relative_error(got, wanted) <= LIMIT
