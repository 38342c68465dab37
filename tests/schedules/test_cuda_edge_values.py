"""Values at the edge on GPUs without one: kernels in the emulation."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from tests import edges
from tests.schedules import cuda_backward_kernels
from tests.schedules.cuda_kernels import (
    BAND,
    FLASH,
    FLASH_BACKWARD,
    GATHER,
    STRIP,
    CudaKernel,
    formulations,
    kernel_of,
    scheduled,
)
from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.problems.backward import BackwardProblem

#: By name: space, formulation, the problem and its dtypes. Formulations differ in the lanes of a window, and the passes
#: over it.
FORMS: dict[str, tuple[str, int, str, tuple[str, ...]]] = {
    "gather": (GATHER, 0, "causal, dilated", ("float32", "bfloat16")),
    "gather in lanes": (GATHER, 2, "plain", ("float32", "float16")),
    "band": (BAND, 0, "plain", ("float16", TF32)),
    "band, causal": (BAND, 0, "causal, dilated", ("bfloat16",)),
    "band in two passes": (BAND, 1, "plain", ("float16",)),
    "strip": (STRIP, 0, "plain", ("float16",)),
    "strip, causal": (STRIP, 0, "causal, dilated", ("bfloat16",)),
    "flash": (FLASH, 0, "plain", ("float16",)),
    "flash, causal": (FLASH, 0, "causal, dilated", ("bfloat16",)),
}
ON_TENSOR_CORES = (BAND, FLASH, STRIP)
CASES = [(form, dtype) for form, (*_, dtypes) in FORMS.items() for dtype in dtypes]


@functools.cache
def kernel_for(form: str, dtype: str) -> CudaKernel:
    space, number, size, _ = FORMS[form]
    problem = edges.problem_of(size, dtype)
    number %= len(formulations(problem, space))
    return kernel_of(problem, scheduled(problem, number, space=space))


def forward(kernel: CudaKernel, tensors: edges.Tensors, scale: float) -> edges.Tensors:
    """Output and log-sum-exp, NaN before."""
    problem: NAProblem = kernel.problem
    query, accum = tensors["query"], getattr(torch, problem.accum_dtype)
    out = torch.full((*query.shape[:-1], problem.head_dim_v), math.nan, dtype=query.dtype)
    found = {"out": out, "lse": torch.full(query.shape[:-1], math.nan, dtype=accum)}
    kernel.launch({**tensors, "scale": torch.tensor([scale], dtype=accum), **found}, 1)
    return found


@pytest.mark.parametrize("edge", edges.EDGES)
@pytest.mark.parametrize(("form", "dtype"), CASES)
def test_finite_answers(form: str, dtype: str, edge: str) -> None:
    kernel = kernel_for(form, dtype)
    lse_dtype = dtype if FORMS[form][0] in ON_TENSOR_CORES else ""
    edges.assert_edge(kernel.problem, edge, functools.partial(forward, kernel), lse_dtype)


@pytest.mark.parametrize("name", edges.INPUTS[:4])
@pytest.mark.parametrize("form", FORMS)
def test_how_far_a_bad_number_reaches(form: str, name: str) -> None:
    """Tensor cores multiply weights of 0 with all values of a band, and mask scores by a sum."""
    space, *_, dtypes = FORMS[form]
    kernel = kernel_for(form, dtypes[0])
    for poison in (math.nan, math.inf, -math.inf):
        edges.assert_reach(
            kernel.problem, name, poison, functools.partial(forward, kernel), in_bands=space in ON_TENSOR_CORES
        )


# --- gradients


@functools.cache
def backward_kernel(size: str, dtype: str, formulation: int, space: str | None = None) -> CudaKernel:
    problem = BackwardProblem(edges.problem_of(size, dtype))
    return kernel_of(problem, scheduled(problem, formulation, space=space))


def backward(kernel: CudaKernel, tensors: edges.Tensors, scale: float) -> edges.Tensors:
    inputs = tuple(tensors[name] for name in edges.INPUTS[:4])
    return cuda_backward_kernels.run(kernel, inputs, (tensors["d_out"], tensors["d_lse"]), scale)


@pytest.mark.parametrize("edge", edges.EDGES)
@pytest.mark.parametrize(
    ("dtype", "space"), [*((dtype, None) for dtype in edges.DTYPES), ("float16", FLASH_BACKWARD)], ids=str
)
def test_finite_gradients(dtype: str, space: str | None, edge: str) -> None:
    kernel = backward_kernel("causal, dilated", dtype, 0, space)
    edges.assert_edge(kernel.problem.forward, edge, functools.partial(backward, kernel))


@pytest.mark.parametrize("name", edges.INPUTS)
@pytest.mark.parametrize(("size", "formulation"), [("causal, dilated", 0), ("plain", -1)])
def test_how_far_a_bad_number_reaches_in_gradients(size: str, formulation: int, name: str) -> None:
    kernel = backward_kernel(size, "float32", formulation)
    for poison in (math.nan, math.inf, -math.inf):
        edges.assert_reach(kernel.problem.forward, name, poison, functools.partial(backward, kernel))
