"""Kernels of gradients on GPUs, run in the emulation and compared with autograd of the reference in float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.helpers import random_inputs, relative_error
from tests.ops.gradients import NAMES, random_gradients, wanted_by_name
from tests.schedules.cuda_kernels import CudaKernel

#: The largest error, relative to the largest element of a gradient. Halves round each gradient once.
BUDGET = {"float64": 1e-12, "float32": 5e-6, "float16": 4e-3, "bfloat16": 3e-2}


def run(
    kernel: CudaKernel, inputs: Any, gradients: Any, scale: float, seed: int = 0, late_copies: bool = True
) -> dict[str, Tensor]:
    """The gradients by name in the emulation; they, what kernels pass to each other, and what none reads, are NaN."""
    problem = kernel.problem.forward
    query, key, value, rpb = inputs
    accum = getattr(torch, problem.accum_dtype)
    lse = torch.full(query.shape[:-1], math.nan, dtype=accum)
    found = {n: torch.full_like(t, math.nan) for n, t in zip(NAMES, inputs, strict=True) if t is not None}
    shapes = [argument.shape_for(len(query)) for argument in kernel.problem.scratch()]
    scratch = [torch.full(shape, math.nan, dtype=accum) for shape in shapes]
    arguments: dict[str, Any] = {"query": query, "key": key, "value": value, "rpb": rpb, "lse": lse}
    arguments |= {"scale": torch.tensor([scale], dtype=accum), "d_out": gradients[0], "d_lse": gradients[1]}
    arguments |= {"statistics": scratch[0], "bias_sums": scratch[-1], **found}
    kernel.launch(arguments, len(query), seed, late_copies)
    return found


def errors(
    kernel: CudaKernel, batch: int = 1, seed: int = 0, scale: float | None = None, late_copies: bool = True
) -> dict[str, float]:
    """The relative errors of the gradients of random inputs, by name."""
    problem = kernel.problem.forward
    inputs, gradients = random_inputs(problem, batch, seed), random_gradients(problem, batch, seed)
    scale = problem.head_dim**-0.5 if scale is None else scale
    found = run(kernel, inputs, gradients, scale, seed, late_copies)
    wanted = wanted_by_name(problem, inputs, gradients, scale)
    assert found.keys() == wanted.keys()
    if math.prod(problem.kernel_size) > 1:
        return {name: relative_error(gradient, wanted[name]) for name, gradient in found.items()}
    # One key has the weight 1 whatever its score: gradients of scores are 0 or d_lse, and what is found beside that the
    # roundings of one product, in the bias of as many as there are queries.
    terms = {**dict.fromkeys(NAMES, 1), "d_rpb": batch * math.prod(problem.spatial)}
    found_errors = {}
    for name, gradient in found.items():
        difference, largest = (gradient.double() - wanted[name]).abs().max().item(), wanted[name].abs().max().item()
        found_errors[name] = difference / max(largest, terms[name])
    return found_errors


def assert_right(kernel: CudaKernel, batch: int = 1, seed: int = 0, scale: float | None = None) -> None:
    """Compare the gradients of random inputs with the reference in float64."""
    found = errors(kernel, batch, seed, scale)
    assert all(error <= BUDGET[kernel.problem.dtype] for error in found.values()), (str(kernel.problem), found)
