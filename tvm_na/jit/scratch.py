"""Memory that kernels write and read again within one call: allocated by PyTorch, so that it is taken and given back in
the order of the current stream, and belongs to a CUDA graph that is captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm_na.problems.backward import BackwardProblem, scratch_shapes
from tvm_na.problems.registry import Problem


def with_scratch(function: Callable[..., None], problem: Problem) -> Callable[..., None]:
    """A kernel for GPUs as a function of its inputs and outputs alone.

    Args:
        function: The kernel of ``problem``, whose last arguments are scratch memory, where it needs any.
        problem: What it computes.
    """
    if not isinstance(problem, BackwardProblem):
        return function
    import torch

    dtype = getattr(torch, problem.accum_dtype)
    per_sample = [shape[1:] for shape in scratch_shapes(problem, 1)]

    def call(*args: Any) -> None:
        query = args[0]
        batch, device = query.shape[0], query.device
        function(*args, *(torch.empty((batch, *shape), dtype=dtype, device=device) for shape in per_sample))

    return call
