"""What a call of halves takes: its tensors and what kernels pack in float32, no copy of a tensor in float32."""

from __future__ import annotations

import json
import os

import pytest

from tests.helpers import build_all, run_python
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem

# Heads and channels for which values and keys are packed in float32 too, so that both dtypes pack the same.
PEAKS = """
    import json, sys
    import torch
    from benchmarks.memory import peak_of_call
    from tvm_na import na2d

    def tensors_of(size):
        found = [torch.ones(4, size, size, 8, 32, dtype=getattr(torch, sys.argv[1])) for _ in range(3)]
        return [t.requires_grad_() for t in found]

    def forward(tensors):
        with torch.no_grad():
            return na2d(*tensors, 3)

    def both(tensors):
        return torch.autograd.grad(na2d(*tensors, 3), tensors, tensors[0].detach())

    large = tensors_of(48)
    for call in (forward, both):
        call(tensors_of(8))  # what is loaded on first use is loaded
    print(json.dumps([peak_of_call(lambda: call(large))[1] for call in (forward, both)]))
"""
ELEMENTS = 4 * 48 * 48 * 8 * 32  # of each tensor


def peaks(dtype: str) -> list[int]:
    """Bytes of the forward pass, and of it with gradients, their results included."""
    attentions = [
        NAProblem.make((size, size), 3, 8, 32, dtype=dtype, return_lse=lse) for size in (8, 48) for lse in (False, True)
    ]
    gradients = [BackwardProblem.make((size, size), 3, 8, 32, dtype=dtype) for size in (8, 48)]
    build_all([*attentions, *gradients])  # a compiler would leave free memory behind
    # malloc takes large tensors from the system one by one, and gives them back.
    found = run_python(PEAKS, dtype, env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"})
    return [int(peak) for peak in json.loads(found)]


@pytest.mark.slow
def test_halves_take_less_by_half_of_every_result() -> None:
    whole, half = peaks("float32"), peaks("bfloat16")
    slack = ELEMENTS // 4  # bytes: Linux counts to some hundred kilobytes
    for results, exact, found in zip((1, 4), whole, half, strict=True):
        assert found <= exact - 2 * results * ELEMENTS + slack, (results, exact, found)
