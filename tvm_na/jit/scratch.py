"""Memory that kernels write and read again within one call: allocated by PyTorch, so that it is taken and given back in
the order of the current stream, and belongs to a CUDA graph that is captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm_na.problems.registry import Problem


def with_scratch(function: Callable[..., None], problem: Problem) -> Callable[..., None]:
    """A kernel for GPUs as a function of its inputs and outputs alone.

    Args:
        function: The kernel of ``problem``, whose last arguments are scratch memory, where it needs any.
        problem: What it computes.
    """
    scratch = problem.scratch()
    if not scratch:
        return function
    import torch

    dtypes = [getattr(torch, argument.dtype) for argument in scratch]

    def call(*args: Any) -> None:
        batch, device = args[0].shape[0], args[0].device
        memory = zip(scratch, dtypes, strict=True)
        function(*args, *(torch.empty(a.shape_for(batch), dtype=dtype, device=device) for a, dtype in memory))

    return call
