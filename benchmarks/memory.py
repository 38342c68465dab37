"""Peak memory, measured in fresh processes: what has been loaded and freed in another one would count.

``python -m benchmarks.memory CANDIDATE SIZE`` prints the bytes that one attention takes beside its inputs and output.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.peers import heads_first
from benchmarks.properties.cases import attend, drawn
from tvm_na.problems.attention import NAProblem

R = TypeVar("R")

OURS, FUSED, WRITTEN_OUT = "tvm_na", "SDPA", "written out"
#: What is compared: neighborhood attention, PyTorch's self-attention as it chooses, and with the matrix of its weights.
CANDIDATES = (OURS, FUSED, WRITTEN_OUT)
KERNEL_SIZE, HEADS, HEAD_DIM = 7, 2, 32


def _status(name: str) -> int:
    """A number of bytes that Linux keeps of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def peak_of_call(call: Callable[[], R]) -> tuple[R, int]:
    """What ``call`` gives, and the bytes at most in use at a time during it, beyond what was in use before.

    Linux counts them to some hundred kilobytes.
    """
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from now
    result = call()
    return result, _status("VmHWM") - before


def _last_line_of(*arguments: str) -> str:
    """The last line that this module prints, in a process that gives freed tensors back; RuntimeError if that fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *arguments],
        cwd=Path(__file__).parent.parent,
        # malloc takes large tensors from the system one by one, and gives them back.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"measuring memory ({' '.join(arguments)}) failed: {done.stderr}")
    return done.stdout.splitlines()[-1]


def problem_of(size: int) -> NAProblem:
    """Neighborhood attention on a square map, as in NAT-Tiny's first stage but for the size."""
    return NAProblem.make((size, size), KERNEL_SIZE, HEADS, HEAD_DIM)


def call_of(name: str, query: Tensor, key: Tensor, value: Tensor) -> Callable[[], Tensor]:
    """A candidate on tensors ``[batch, height, width, heads, head_dim]``.

    Self-attention gives ``[batch, heads, tokens, head_dim]``, and gets its tensors so beforehand.
    """
    if name == OURS:
        return partial(attend, problem_of(query.shape[1]), query, key, value)
    tensors = [heads_first(t) for t in (query, key, value)]
    if name == FUSED:
        return partial(scaled_dot_product_attention, *tensors)

    def written_out() -> Tensor:
        with sdpa_kernel([SDPBackend.MATH]):
            return scaled_dot_product_attention(*tensors)

    return written_out


def _measured_attention(name: str, size: int) -> int:
    """Bytes at most in use at a time during a call, beyond what was in use before and its output."""
    torch.set_grad_enabled(False)
    small, large = (drawn(problem_of(n), (n, n), 1, 0)[:3] for n in (KERNEL_SIZE + 1, size))
    # What is loaded on first use is loaded by a small map, and kernels are on disk since a call in another process.
    call_of(name, *small)()
    out, peak = peak_of_call(call_of(name, *large))
    return max(0, peak - out.numel() * out.element_size())


def footprint_of(name: str, size: int) -> int:
    """Bytes that a candidate takes beside its inputs and output on a map of ``size`` by ``size``."""
    # The first one builds the kernels.
    found = [_last_line_of(name, str(size)) for _ in range(2 if name == OURS else 1)]
    return int(found[-1])


if __name__ == "__main__":
    print(_measured_attention(sys.argv[1], int(sys.argv[2])))
