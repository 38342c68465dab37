"""The CUDA spaces without a GPU: kernels in the emulation against the reference, and what nvcc makes of them."""

from __future__ import annotations

import functools
import random

import pytest

from tests.conftest import TOLERANCE
from tests.cuda.cuda_funcs import needs_nvcc
from tests.cuda_emulator.mutate import barriers, replaced, without_barrier
from tests.schedules.banks import indices, places_in_a_bank
from tests.schedules.cuda_kernels import (
    DTYPES,
    POINTS,
    CudaKernel,
    assert_right,
    damage_is_noticed,
    drawn_problem,
    fitting_point,
    formulations,
    kernel_of,
    run,
    scheduled,
)
from tvm_na.cuda.inspection import inspect_kernel
from tvm_na.problems.attention import NAProblem

PLAIN = NAProblem.make((14, 14), 7, 2, 32, bias=True, return_lse=True)
NAMED = {
    "nat": PLAIN,
    "nat 7x7": NAProblem.make((7, 7), 7, 16, 32, bias=True, dtype="float16"),
    "one token of a head": NAProblem.make((7, 7), 7, 1, 1),
    "prime": NAProblem.make((13, 11), 5, 1, 32, bias=True, dtype="bfloat16"),
    "wide heads": NAProblem.make((9, 8), 5, 2, 256, dtype="float16", return_lse=True),
    "narrow values": NAProblem.make((9, 8), 3, 4, 24, heads_kv=2, head_dim_v=5, bias=True),
    "1d": NAProblem.make(57, 7, 3, 20, dilation=5, dtype="bfloat16"),
    "3d": NAProblem.make((5, 6, 7), (3, 2, 3), 2, 5, dilation=(1, 2, 2), is_causal=(True, False, True), bias=True),
    "strided": NAProblem.make((15, 14), (7, 6), 4, 64, stride=(3, 2), return_lse=True, dtype="float64"),
    "large window": NAProblem.make((25, 26), 25, 1, 16, bias=True, dtype="float16", return_lse=True),
    "whole map": NAProblem.make((20, 20), 20, 1, 8, return_lse=True),
}


@functools.cache
def of(problem: NAProblem, formulation: int = 0) -> CudaKernel:
    """The kernel of a default point, the same for all tests."""
    return kernel_of(problem, scheduled(problem, formulation))


@pytest.mark.parametrize("name", NAMED)
def test_every_formulation_is_right(name: str) -> None:
    problem = NAMED[name]
    for formulation in range(len(formulations(problem))):
        assert_right(of(problem, formulation), batch=2 - formulation % 2, seed=formulation)


@pytest.mark.parametrize("seed", range(POINTS))
def test_random_points_of_random_problems(seed: int) -> None:
    problem = drawn_problem(seed, {1: (5, 60), 2: (5, 17), 3: (3, 7)})
    rng = random.Random(seed)
    formulation = rng.randrange(len(formulations(problem)))
    assert_right(fitting_point(problem, formulation, seed), batch=rng.choice([1, 2]), seed=seed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_scale(dtype: str) -> None:
    problem = NAProblem.make((7, 9), 5, 2, 16, dtype=dtype, return_lse=True)
    for scale in (0.0, -1.5, 30.0):
        error, lse_error = run(of(problem), scale=scale)
        assert error <= TOLERANCE[dtype] and lse_error <= TOLERANCE[problem.accum_dtype]


# --- what the emulation notices


def noticed(kernel: CudaKernel, source: str) -> bool:
    damaged = kernel.with_source(source)
    return damage_is_noticed(lambda seed: max(run(damaged, seed=seed)), TOLERANCE[kernel.problem.dtype])


@pytest.mark.parametrize(("formulation", "needed"), [(0, [0]), (2, [0, 1, 2, 3, 4, 5, 6])])
def test_a_missing_barrier_is_noticed(formulation: int, needed: list[int]) -> None:
    """The others stand where a shuffle has made the warp's threads wait for each other already."""
    kernel = of(PLAIN, formulation)
    assert barriers(kernel.source) >= len(needed)
    for n in needed:
        assert noticed(kernel, without_barrier(kernel.source, n)), n


def test_a_shifted_window_is_noticed() -> None:
    kernel = of(PLAIN)
    assert not noticed(kernel, kernel.source)
    assert noticed(kernel, replaced(kernel.source, "- 3), 7), 0)", "- 2), 7), 0)"))


# --- what nvcc makes of them


@pytest.mark.parametrize("head_dim", [32, 128])
@pytest.mark.parametrize(("formulation", "kernel_size"), [(0, 7), (1, 8), (-1, 8)])
def test_threads_of_a_warp_meet_different_banks(head_dim: int, formulation: int, kernel_size: int) -> None:
    """But for halves of a group that sum up for each other, as in the second formulation."""
    problem = NAProblem.make((14, 14), kernel_size, 2, head_dim, bias=True, return_lse=True, dtype="float16")
    kernel = of(problem, formulation % len(formulations(problem)))
    assert len(indices(kernel.source)) > 4
    assert places_in_a_bank(kernel) <= (2 if formulation == 1 else 1)


@needs_nvcc
@pytest.mark.parametrize(
    ("name", "arch"), [(name, "sm_90") for name in NAMED] + [("nat", "sm_80"), ("wide heads", "sm_80")]
)
def test_defaults_fit_registers(name: str, arch: str) -> None:
    found = inspect_kernel(of(NAMED[name]).source, arch)
    assert found.registers <= 255 and found.spill_bytes == 0 and found.stack_bytes == 0
    assert found.shared_bytes <= 48 * 1024
