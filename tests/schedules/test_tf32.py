"""The tensor core space in TF32 without a GPU: kernels in the emulation against the reference, and what nvcc makes of
them."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import shutil

import pytest
import torch

from tests.conftest import TOLERANCE
from tests.cuda_emulator.mutate import replaced
from tests.helpers import Inputs, random_inputs, random_problem, reference64, relative_error
from tests.schedules import cuda_kernels
from tests.schedules.cuda_kernels import (
    BAND,
    POINTS,
    TARGET,
    CudaKernel,
    assert_right_in_halves,
    formulations,
    kernel_of,
    run,
    scheduled,
    space_of,
)
from tests.schedules.test_tensor_core_points import drawn_shape
from tvm_na.cuda.inspection import inspect_kernel
from tvm_na.ops.tf32 import in_tf32
from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Plan
from tvm_na.schedules.cuda import mma, mma_tf32
from tvm_na.schedules.cuda import tensor_core_space as cuda_mma
from tvm_na.schedules.cuda.band import AT_ONCE, COLUMNS_IN_TURN
from tvm_na.schedules.cuda.band_sizes import copied, default_shape, shared_bytes
from tvm_na.schedules.cuda.tensor_core_space import tiles
from tvm_na.targets.target import parse_target


def in_(spatial: tuple[int, int], kernel_size: object, heads: int, head_dim: int, **options: object) -> NAProblem:
    return NAProblem.make(spatial, kernel_size, heads, head_dim, dtype=TF32, **options)  # type: ignore[arg-type]


PLAIN = in_((14, 14), 7, 2, 32, bias=True, return_lse=True)
NAMED = {
    "nat": PLAIN,
    "nat 7x7": in_((7, 7), 7, 4, 32, bias=True),
    "dinat": in_((28, 30), 7, 1, 32, dilation=4, bias=True),
    "uneven groups": in_((17, 19), (5, 4), 2, 16, dilation=(3, 4), bias=True, return_lse=True),
    "causal": in_((15, 14), (7, 6), 2, 64, is_causal=(True, False), return_lse=True),
    "shared keys": in_((9, 8), 3, 4, 32, head_dim_v=16, heads_kv=2, bias=True),
    "wide heads": in_((9, 8), 5, 2, 128, bias=True, return_lse=True),
    "window of one": in_((5, 9), 1, 2, 32, bias=True, return_lse=True),
    "one row": in_((1, 40), (1, 9), 2, 32, bias=True),
    "13x13": in_((21, 20), 13, 1, 32, bias=True, return_lse=True),
    "25x25": in_((30, 30), 25, 1, 16, bias=True, return_lse=True),
    "whole map": in_((20, 24), (20, 24), 1, 16, return_lse=True),
}


@functools.cache
def default_kernel(name: str) -> CudaKernel:
    return kernel_of(NAMED[name], scheduled(NAMED[name], space=BAND))


@pytest.mark.parametrize("name", NAMED)
def test_named_problems_are_right(name: str) -> None:
    assert default_kernel(name).fits
    assert_right_in_halves(default_kernel(name), batch=1 + (name == "uneven groups"), seed=0)


@pytest.mark.parametrize("name", ["nat", "uneven groups"])
def test_two_passes_are_right(name: str) -> None:
    (number,) = (n for n, tile in enumerate(tiles(NAMED[name], TARGET)) if tile.passes == 2)
    assert_right_in_halves(kernel_of(NAMED[name], scheduled(NAMED[name], number, space=BAND)), batch=1, seed=1)


def test_columns_in_turn_are_right() -> None:
    kernel = kernel_of(PLAIN, scheduled(PLAIN, 0, Plan(COLUMNS_IN_TURN, like={"columns in turn": 2}), BAND))
    assert_right_in_halves(kernel, batch=1, seed=0)


def drawn_problem(seed: int) -> NAProblem:
    """A small problem of those that TF32 serves: any options, maps that are no multiple of anything."""
    rng = random.Random(seed)
    dim = rng.choice((16, 32, 64, 128))
    dim_v = rng.choice([dim, dim, rng.choice((16, 32, 64))])
    return random_problem(rng, sizes=(3, 20), stride=1, head_dim=dim, head_dim_v=dim_v, dtype=TF32)


@pytest.mark.parametrize("seed", range(-(-POINTS // 8)))
def test_random_points_of_random_problems(seed: int) -> None:
    problem, rng = drawn_problem(seed), random.Random(seed)
    tile = rng.choice(tiles(problem, TARGET))
    func = cuda_mma.formulation(problem, tile)
    structure = rng.choice(cuda_mma.structures(func, TARGET))
    like = drawn_shape(problem, tile, structure, rng) if seed % 2 else {}
    point = cuda_mma.apply(func, TARGET, Plan(structure, like=like))
    assert point is not None
    kernel = kernel_of(problem, point)
    assert kernel.fits
    assert_right_in_halves(kernel, batch=1, seed=seed)


@pytest.mark.parametrize("scale", [0.0, -1.5, 30.0])
def test_any_scale(scale: float) -> None:
    """Scores are as exact as those of float32, so that large ones do no harm."""
    problem = in_((7, 9), 5, 1, 16, bias=True, return_lse=True)
    error, lse_error = run(kernel_of(problem, scheduled(problem, space=BAND)), scale=scale)
    assert error <= TOLERANCE[TF32] and lse_error <= TOLERANCE[TF32]


# --- which bits of a number are looked at


def test_weights_and_values_are_rounded_and_scores_are_not() -> None:
    """The error is one of TF32, far from that of float32, and the log-sum-exp of one key is its score."""
    assert 20 * TOLERANCE["float32"] < run(default_kernel("nat"))[0]
    error, lse_error = run(default_kernel("window of one"))
    assert 20 * TOLERANCE["float32"] < error < 2.0**-11
    assert lse_error <= TOLERANCE["float32"]


def run_on(patch: pytest.MonkeyPatch, kernel: CudaKernel, inputs: Inputs) -> float:
    """The relative error of the output on these inputs."""
    patch.setattr(cuda_kernels, "random_inputs", lambda *args, **options: inputs)
    return run(kernel)[0]


def test_values_are_rounded_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values just below a number of TF32 under equal weights; cut off they would be further away by 2^-10."""
    problem = in_((6, 9), 3, 1, 16)
    kernel = kernel_of(problem, scheduled(problem, space=BAND))
    value = torch.full((1, *problem.spatial, 1, 16), 1 + 2.0**-10 - 2.0**-23)
    inputs = (torch.zeros_like(value), torch.randn_like(value), value, None)
    assert run_on(monkeypatch, kernel, inputs) <= 2.0**-22
    cut = replaced(kernel.source, "make_int4(4096, 4096, 4096, 4096)", "make_int4(0, 0, 0, 0)")
    assert run_on(monkeypatch, kernel.with_source(cut), inputs) > 2.0**-11


def test_no_bits_of_nan_become_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = in_((6, 9), (6, 9), 1, 16)
    kernel = kernel_of(problem, scheduled(problem, space=BAND))
    query, key, value, _ = random_inputs(problem, 1, 0)
    for bits in (0x7FFFFFFF, -1, 0x7FC00000):
        value[0, 2, 3, 0, 5] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        assert math.isnan(run_on(monkeypatch, kernel, (query, key, value, None)))


# --- what is served, and how large blocks are


def test_only_tensor_cores_serve_tf32() -> None:
    assert [space.name for space in spaces_for(PLAIN, TARGET)] == [BAND]
    assert spaces_for(PLAIN, parse_target("cuda-sm_75")) == []
    assert spaces_for(PLAIN, parse_target("llvm-x86-avx2")) == []
    assert [space.name for space in spaces_for(dataclasses.replace(PLAIN, dtype="float32"), TARGET)] == ["cuda-gather"]


@pytest.mark.parametrize(
    "change", [{"spatial": 40, "kernel_size": 7}, {"stride": 2}, {"head_dim": 24}, {"dtype": "float64"}]
)
def test_others_stay_as_they_are(change: dict[str, object]) -> None:
    given = {"spatial": (14, 14), "kernel_size": 7, "heads": 2, "head_dim": 32}
    assert in_tf32(NAProblem.make(**{**given, **change}), TARGET) is None  # type: ignore[arg-type]
    served = in_tf32(NAProblem.make(**given), TARGET)  # type: ignore[arg-type]
    assert served == NAProblem.make(**given, dtype=TF32)  # type: ignore[arg-type]


def test_copies_that_cannot_round_are_left_out() -> None:
    assert space_of(PLAIN, BAND).structures(formulations(PLAIN, BAND)[0], TARGET) == (AT_ONCE, COLUMNS_IN_TURN)


@pytest.mark.parametrize("name", ["cuda-sm_80", "cuda-sm_89", "cuda-sm_90"])
def test_default_blocks_are_some_that_a_gpu_can_have(name: str) -> None:
    target = parse_target(name)
    for problem in NAMED.values():
        for tile in tiles(problem, target):
            for turn in (None, "columns"):
                shape = default_shape(problem, tile, target, turn)
                assert shared_bytes(shape, problem, tile, turn) <= target.max_shared_bytes
                assert 1 <= shape.tiles // (shape.columns if turn else 1) <= 8


def test_shared_memory_is_what_was_reckoned() -> None:
    for name in ("nat", "shared keys", "wide heads", "13x13"):
        tile = tiles(NAMED[name], TARGET)[0]
        reckoned = shared_bytes(default_shape(NAMED[name], tile, TARGET), NAMED[name], tile)
        assert reckoned <= default_kernel(name).sizes.dynamic_shared <= 1.05 * reckoned


# --- what nvcc makes of them

nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

#: ptxas would rather spill a few bytes of these than have fewer blocks on a multiprocessor.
SPILLED = {"13x13": 192}


@nvcc
@pytest.mark.parametrize(
    ("name", "arch"),
    [("nat", "sm_80"), ("nat", "sm_90"), ("wide heads", "sm_80"), ("13x13", "sm_90")],
)
def test_defaults_fit_registers_and_use_tensor_cores(name: str, arch: str) -> None:
    found = inspect_kernel(default_kernel(name).source, arch)
    assert found.registers <= 255
    assert found.spill_bytes is not None and found.spill_bytes <= SPILLED.get(name, 0)
    assert found.stack_bytes <= found.spill_bytes  # no array of a thread
    if name == "nat":  # three blocks of four warps on a multiprocessor
        assert found.registers <= 168
    sass = found.language == "SASS"
    assert found.count("HMMA.1688.F32.TF32" if sass else "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32") > 0
    assert found.count("LDSM" if sass else "ldmatrix.sync.aligned.m8n8.x4") > 0


# --- the intrinsics


def test_layouts_give_every_number_a_place_of_its_own() -> None:
    every = [(lane, n) for lane in range(32) for n in range(8)]
    for layout in (mma_tf32.left, mma_tf32.right, mma_tf32.left_of_product, mma_tf32.right_of_product):
        assert sorted(layout(i, j) for i in range(16) for j in range(16)) == every


def test_a_product_is_the_next_left_matrix_without_changing_lanes() -> None:
    """Of each element the lane is the same, and the registers are those of one instruction, of 8 keys."""
    for i in range(16):
        for k in range(16):
            lane, number = mma_tf32.left_of_product(i, k)
            was, register = mma.rows_first(i, k)
            assert lane == was and number // 4 == register // 4
            # Column l of a left matrix is key 2l, column l + 4 is key 2l + 1, of left and right alike.
            column = k % 8 // 2 + 4 * (k % 2)
            assert (lane, number) == mma_tf32.left(i, 8 * (k // 8) + column)
            assert mma_tf32.right_of_product(i, k) == mma_tf32.right(i, 8 * (k // 8) + column)


@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
def test_lanes_read_values_from_different_banks(head_dim: int) -> None:
    stride = head_dim + copied(PLAIN)
    for number in range(8):
        places = {mma_tf32.right_of_product(n, k): (k, n) for n in range(16) for k in range(16)}
        banks = {(stride * k + n) % 32 for k, n in (places[lane, number] for lane in range(32))}
        assert len(banks) == 32


# --- on a GPU


@pytest.mark.gpu
def test_a_gpu_computes_what_the_emulation_does() -> None:
    from tvm_na.jit.build import kernel_for, target_for

    problem = in_((28, 30), 7, 4, 32, dilation=2, bias=True, return_lse=True)
    inputs = random_inputs(problem, 2, 0)
    query, key, value, rpb = (t.cuda() for t in inputs if t is not None)
    out, lse = torch.full_like(query, math.nan), torch.full(query.shape[:-1], math.nan, device="cuda")
    scale = torch.tensor([problem.head_dim**-0.5], device="cuda")
    kernel_for(problem, target_for("cuda", 0)).function(query, key, value, scale, rpb, out, lse)
    wanted, wanted_lse = reference64(problem, inputs)
    error = relative_error(out.cpu(), wanted)
    assert 20 * TOLERANCE["float32"] < error <= TOLERANCE[TF32]
    assert relative_error(lse.cpu(), wanted_lse) <= TOLERANCE[TF32]
