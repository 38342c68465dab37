"""The tensor core space without a GPU: kernels in the emulation against the reference, and what nvcc makes of them."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import TOLERANCE
from tests.cuda_emulator.errors import EmulationError
from tests.cuda_emulator.mutate import replaced, without_barrier
from tests.schedules.cuda_kernels import (
    BAND,
    TARGET,
    CudaKernel,
    assert_right_in_halves,
    formulations,
    kernel_of,
    run,
    scheduled,
    space_of,
)
from tvm_na.cuda.inspection import inspect_kernel
from tvm_na.problems.attention import NAProblem
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Plan
from tvm_na.schedules.cuda import mma
from tvm_na.schedules.cuda.band import AT_ONCE, COLUMNS_IN_TURN, HEADS_IN_TURN
from tvm_na.schedules.cuda.band_sizes import default_shape, shared_bytes
from tvm_na.schedules.cuda.tensor_core_space import tiles
from tvm_na.targets.target import parse_target

DTYPES = ("float16", "bfloat16")
PLAIN = NAProblem.make((14, 14), 7, 2, 32, bias=True, return_lse=True, dtype="float16")
NAMED = {
    "nat": PLAIN,
    "nat 7x7": NAProblem.make((7, 7), 7, 16, 32, bias=True, dtype="float16"),
    "dinat": NAProblem.make((28, 30), 7, 4, 32, dilation=4, bias=True, dtype="float16"),
    "uneven groups": NAProblem.make(
        (17, 19), (5, 4), 2, 16, dilation=(3, 4), bias=True, return_lse=True, dtype="bfloat16"
    ),
    "causal": NAProblem.make((15, 14), (7, 6), 4, 64, is_causal=(True, False), return_lse=True, dtype="bfloat16"),
    "shared keys": NAProblem.make((9, 8), 3, 4, 32, head_dim_v=16, heads_kv=2, bias=True, dtype="float16"),
    "wide heads": NAProblem.make((9, 8), 5, 2, 128, dtype="float16", bias=True, return_lse=True),
    "window of one": NAProblem.make((5, 9), 1, 2, 32, dtype="float16", bias=True, return_lse=True),
    "one row": NAProblem.make((1, 40), (1, 9), 2, 32, dtype="float16", bias=True),
    "13x13": NAProblem.make((21, 20), 13, 2, 32, dtype="float16", bias=True, return_lse=True),
    "25x25": NAProblem.make((30, 30), 25, 1, 16, dtype="bfloat16", bias=True, return_lse=True),
    "whole map": NAProblem.make((20, 24), (20, 24), 1, 16, dtype="float16", return_lse=True),
}  # fmt: skip


def structures(problem: NAProblem, formulation: int) -> tuple[str, ...]:
    return space_of(problem, BAND).structures(formulations(problem, BAND)[formulation], TARGET)


@pytest.mark.parametrize("name", NAMED)
def test_every_formulation_and_structure_is_right(name: str) -> None:
    """Every formulation, and every structure of the default one."""
    problem = NAMED[name]
    points = [(number, AT_ONCE) for number in range(len(formulations(problem, BAND)))]
    for number, structure in points + [(0, structure) for structure in structures(problem, 0)[1:]]:
        kernel = kernel_of(problem, scheduled(problem, number, Plan(structure), BAND))
        assert kernel.fits
        assert_right_in_halves(kernel, batch=2, seed=number)


def test_points_that_metaschedule_draws_are_right() -> None:
    for seed in range(1, 9):
        kernel = kernel_of(PLAIN, scheduled(PLAIN, 0, Plan(sample=True, seed=seed), BAND))
        if kernel.fits:
            assert_right_in_halves(kernel, batch=1, seed=seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, -1.5, 30.0])
@pytest.mark.parametrize("kernel_size", [5, 13])
def test_any_scale(dtype: str, scale: float, kernel_size: int) -> None:
    problem = NAProblem.make((14, 13), kernel_size, 2, 16, dtype=dtype, bias=True, return_lse=True)
    error, lse_error = run(kernel_of(problem, scheduled(problem, space=BAND)), scale=scale)
    assert error <= TOLERANCE[dtype] and lse_error <= TOLERANCE[dtype]


# --- what is served


@pytest.mark.parametrize(
    "change",
    [{"dtype": "float32"}, {"spatial": 40, "kernel_size": 7}, {"stride": 2}, {"head_dim": 24}, {"head_dim_v": 256}],
)
def test_others_are_for_the_gather_space(change: dict[str, object]) -> None:
    given = {"spatial": (14, 14), "kernel_size": 7, "heads": 2, "head_dim": 32, "dtype": "float16"}
    problem = NAProblem.make(**{**given, **change})  # type: ignore[arg-type]
    assert [space.name for space in spaces_for(problem, TARGET)] == ["cuda-gather"]


def test_tensor_cores_are_the_default_where_there_are_some() -> None:
    assert [space.name for space in spaces_for(PLAIN, TARGET)] == [BAND, "cuda-gather"]
    assert [space.name for space in spaces_for(PLAIN, parse_target("cuda-sm_75"))] == ["cuda-gather"]


def test_small_windows_have_one_pass_and_large_ones_two() -> None:
    def first(kernel_size: int) -> int:
        return tiles(NAProblem.make((80, 80), kernel_size, 2, 32, dtype="float16"), TARGET)[0].passes

    assert [first(k) for k in (3, 7, 9, 25, 80)] == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("name", ["cuda-sm_80", "cuda-sm_89", "cuda-sm_90"])
def test_default_blocks_are_some_that_a_gpu_can_have(name: str) -> None:
    target = parse_target(name)
    for problem in NAMED.values():
        for tile in tiles(problem, target):
            for turn in (None, "columns"):
                shape = default_shape(problem, tile, target, turn)
                assert shared_bytes(shape, problem, tile, turn) <= target.max_shared_bytes
                assert 1 <= shape.tiles // (shape.columns if turn else 1) <= 8


def test_structures_are_those_that_make_a_difference() -> None:
    assert structures(PLAIN, 0) == (AT_ONCE, COLUMNS_IN_TURN, HEADS_IN_TURN)
    assert structures(NAProblem.make((7, 7), 7, 1, 32, dtype="float16"), 0) == (AT_ONCE,)
    with pytest.raises(
        ValueError, match="structure: required one of tiles at once, columns in turn, heads in turn, got"
    ):
        scheduled(PLAIN, 0, Plan("rows in turn"), BAND)


# --- what the emulation notices


@pytest.fixture(scope="module", params=[AT_ONCE, HEADS_IN_TURN])
def kernel(request: pytest.FixtureRequest) -> CudaKernel:
    return kernel_of(PLAIN, scheduled(PLAIN, 0, Plan(request.param, like={"heads in turn": 2}), BAND))


def damage_is_noticed(kernel: CudaKernel) -> bool:
    """Whether a damaged kernel fails, or has wrong numbers, in one order of its threads or another."""
    for seed in range(4):
        try:
            if not max(run(kernel, seed=seed, late_copies=bool(seed % 2))) <= TOLERANCE[kernel.problem.dtype]:
                return True
        except EmulationError:
            return True
    return False


def test_a_missing_barrier_is_noticed(kernel: CudaKernel) -> None:
    assert not damage_is_noticed(kernel)
    assert damage_is_noticed(kernel.with_source(without_barrier(kernel.source, 0)))


def test_a_shifted_mask_is_noticed(kernel: CudaKernel) -> None:
    """A key more on one side of every window, and one less on the other."""
    assert damage_is_noticed(kernel.with_source(replaced(kernel.source, "- 3), 7), 0)", "- 2), 7), 0)")))


def test_a_wait_that_does_not_wait_is_noticed(kernel: CudaKernel) -> None:
    assert damage_is_noticed(kernel.with_source(replaced(kernel.source, "cp.async.wait_group 0;", "")))


# --- what nvcc makes of them

nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


#: ptxas would rather spill a few bytes of these than have fewer blocks on a multiprocessor.
SPILLED = {"wide heads": 64, "13x13": 64, "25x25": 64}


@nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", NAMED)
def test_defaults_fit_registers_and_use_tensor_cores(name: str, arch: str) -> None:
    found = inspect_kernel(kernel_of(NAMED[name], scheduled(NAMED[name], space=BAND)).source, arch)
    assert found.registers <= 255
    assert found.spill_bytes is not None and found.spill_bytes <= SPILLED.get(name, 0)
    assert found.stack_bytes <= found.spill_bytes  # no array of a thread
    assert found.count("HMMA" if found.language == "SASS" else "mma.sync.aligned.m16n8k16") > 0
    assert found.count("LDSM" if found.language == "SASS" else "ldmatrix.sync.aligned.m8n8.x4") > 0


@nvcc
@pytest.mark.parametrize("structure", [AT_ONCE, COLUMNS_IN_TURN, HEADS_IN_TURN])
def test_nat_needs_few_registers(structure: str) -> None:
    """At 128 registers a multiprocessor has 16 warps."""
    problem = NAProblem.make((56, 56), 7, 2, 32, bias=True, dtype="float16")
    found = inspect_kernel(kernel_of(problem, scheduled(problem, 0, Plan(structure), BAND)).source, "sm_90")
    assert found.registers <= 128
    assert found.count("LDGSTS" if found.language == "SASS" else "cp.async.cg") > 0
    if structure == AT_ONCE:  # straight to the end: no copy waits for the one before, nor for a branch
        assert found.count("BRA" if found.language == "SASS" else "bra") <= 2
        assert sum(found.instructions.values()) <= (1000 if found.language == "SASS" else 1100)


# --- the intrinsics


def test_layouts_give_every_number_a_place_of_its_own() -> None:
    places = [mma.rows_first(i, j) for i in range(16) for j in range(16)]
    assert sorted(places) == [(lane, n) for lane in range(32) for n in range(8)]
    assert sorted(mma.columns_first(n, k) for n in range(16) for k in range(16)) == sorted(places)
    assert sorted(mma.lanes_of_rows(i, c) for i in range(16) for c in range(4)) == [
        (t, n) for t in range(32) for n in (0, 1)
    ]
