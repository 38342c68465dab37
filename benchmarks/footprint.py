"""The memory that one attention takes at its peak beside its tensors, measured in a fresh process:
``python -m benchmarks.footprint CANDIDATE SIZE``, which prints bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.memory import _status as status_of
from benchmarks.peers import heads_first
from benchmarks.property_cases import attend, drawn
from tvm_na.problem import NAProblem

OURS, FUSED, WRITTEN_OUT = "tvm_na", "SDPA", "written out"
#: What is compared: neighborhood attention, PyTorch's self-attention as it chooses, and with the matrix of its weights.
CANDIDATES = (OURS, FUSED, WRITTEN_OUT)
KERNEL_SIZE, HEADS, HEAD_DIM = 7, 2, 32
_ROOT = Path(__file__).parent.parent


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


def _measured(name: str, size: int) -> int:
    """Bytes at most in use at a time during a call, beyond what was in use before and its output."""
    torch.set_grad_enabled(False)
    small, large = (drawn(problem_of(n), (n, n), 1, 0)[:3] for n in (KERNEL_SIZE + 1, size))
    # What is loaded on first use is loaded by a small map, and kernels are on disk since a call in another process.
    call_of(name, *small)()
    call = call_of(name, *large)
    before = status_of("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from now
    out = call()
    return max(0, status_of("VmHWM") - before - out.numel() * out.element_size())


def footprint_of(name: str, size: int) -> int:
    """Bytes that a candidate takes beside its inputs and output on a map of ``size`` by ``size``.

    Linux counts them to some hundred kilobytes.

    Raises:
        RuntimeError: the process failed; the message has what it said.
    """
    found = 0
    for _ in range(2 if name == OURS else 1):  # the first builds the kernels
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.footprint", name, str(size)],
            cwd=_ROOT,
            # malloc takes large tensors from the system one by one, and gives them back.
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"measuring the memory of {name} on {size}x{size} failed: {done.stderr}")
        found = int(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    print(_measured(sys.argv[1], int(sys.argv[2])))
