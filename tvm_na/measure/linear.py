"""A linear layer by a kernel of ours against the library's, as a compiler that freezes weights calls it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tvm_na.measure.timing import Timing, measure
from tvm_na.ops.launch import launcher_for
from tvm_na.ops.residual import block_of, packed
from tvm_na.problems.dense import DenseProblem

OURS, LIBRARY = "ours", "library"


def library_linear(problem: DenseProblem, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The product of a linear layer as Inductor calls it: MKL with packed weights where that is there."""
    tokens = math.prod(problem.spatial)
    if problem.dtype != "float32" or not torch.backends.mkl.is_available():
        return lambda x: F.linear(x, weight, bias)
    packed_for_mkl = torch.ops.mkl._mkl_reorder_linear_weight(weight, tokens)
    return lambda x: torch.ops.mkl._mkl_linear(x, packed_for_mkl, weight, bias, tokens)


def compare_linear(problem: DenseProblem, rounds: int = 5) -> dict[str, Timing]:
    """Seconds of one sample, in turns: :data:`OURS` and :data:`LIBRARY`, each with activation and residual.

    Args:
        problem: A linear layer, for the CPU.
        rounds: Samples of each.
    """
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": getattr(torch, problem.dtype)}
    tokens, out = math.prod(problem.spatial), problem.out_channels
    with torch.no_grad():
        x = torch.randn(1, tokens, problem.in_channels, **options)
        weight = torch.randn(out, problem.in_channels, **options)
        bias = torch.randn(out, **options) if problem.bias else None
        residual = torch.randn(1, tokens, out, **options) if problem.residual else None
        launch, own_weight = launcher_for(problem, x.device), packed(weight, block_of(problem))
        product = library_linear(problem, weight, bias)

        def library() -> Tensor:
            found = product(x)
            found = F.gelu(found) if problem.activation == "gelu" else found
            return found if residual is None else found + residual

        candidates = {OURS: lambda: launch((x, own_weight, bias, residual), 1.0), LIBRARY: library}
        return measure(candidates, rounds=rounds, sample_time=2e-3, warmup_time=1e-2)
