"""The memory that one attention takes at its peak beside its tensors, measured in a fresh process:
``python -m benchmarks.footprint CANDIDATE SIZE``, which prints bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.fresh import last_line_of, peak_of_call
from benchmarks.peers import heads_first
from benchmarks.property_cases import attend, drawn
from tvm_na.problems.attention import NAProblem

OURS, FUSED, WRITTEN_OUT = "tvm_na", "SDPA", "written out"
#: What is compared: neighborhood attention, PyTorch's self-attention as it chooses, and with the matrix of its weights.
CANDIDATES = (OURS, FUSED, WRITTEN_OUT)
KERNEL_SIZE, HEADS, HEAD_DIM = 7, 2, 32


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
    out, peak = peak_of_call(call_of(name, *large))
    return max(0, peak - out.numel() * out.element_size())


def footprint_of(name: str, size: int) -> int:
    """Bytes that a candidate takes beside its inputs and output on a map of ``size`` by ``size``.

    Raises:
        RuntimeError: the process failed; the message has what it said.
    """
    # The first one builds the kernels.
    found = [last_line_of("benchmarks.footprint", name, str(size)) for _ in range(2 if name == OURS else 1)]
    return int(found[-1])


if __name__ == "__main__":
    print(_measured(sys.argv[1], int(sys.argv[2])))
