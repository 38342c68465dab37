"""The tensor core space without a GPU: kernels in the emulation against the reference, and what nvcc makes of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import random
import re

import pytest
import torch

from tests.conftest import TOLERANCE
from tests.cuda.cuda_funcs import needs_nvcc
from tests.cuda_emulator.mutate import replaced, without_barrier
from tests.helpers import Inputs, random_inputs, random_problem, reference64, relative_error
from tests.schedules import cuda_kernels
from tests.schedules.cuda_kernels import (
    BAND,
    POINTS,
    TARGET,
    CudaKernel,
    assert_right_in_halves,
    damage_is_noticed,
    formulations,
    kernel_of,
    run,
    scheduled,
    space_of,
)
from tvm_na.cuda.inspection import inspect_kernel
from tvm_na.cuda.limits import Sizes, UnlaunchableError, check_least_registers
from tvm_na.cuda.static.facts import facts_of
from tvm_na.ops.tf32 import in_tf32
from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Plan
from tvm_na.schedules.cuda import mma, mma_tf32
from tvm_na.schedules.cuda import tensor_core_space as cuda_mma
from tvm_na.schedules.cuda.band_sizes import (
    AT_ONCE,
    COLUMNS_IN_TURN,
    HEADS_IN_TURN,
    BlockShape,
    axis_in_turn,
    bytes_of,
    can_be_in_turn,
    copied,
    default_shape,
    least_registers,
    parts_of_rows,
    shared_bytes,
    sizes_along,
)
from tvm_na.schedules.cuda.tensor_core_space import tiles
from tvm_na.targets.target import parse_target
from tvm_na.te.attention.band_axis import BandTile

HALVES = ("float16", "bfloat16")
DTYPES = (*HALVES, TF32)
# What a problem is made of but its dtype.
NAMED = {
    "nat": (((14, 14), 7, 2, 32), {"bias": True, "return_lse": True}),
    "nat 7x7": (((7, 7), 7, 8, 32), {"bias": True}),
    "dinat": (((28, 30), 7, 1, 32), {"dilation": 4, "bias": True}),
    "uneven groups": (((17, 19), (5, 4), 2, 16), {"dilation": (3, 4), "bias": True, "return_lse": True}),
    "causal": (((15, 14), (7, 6), 2, 64), {"is_causal": (True, False), "return_lse": True}),
    "shared keys": (((9, 8), 3, 4, 32), {"head_dim_v": 16, "heads_kv": 2, "bias": True}),
    "wide heads": (((9, 8), 5, 2, 128), {"bias": True, "return_lse": True}),
    "window of one": (((5, 9), 1, 2, 32), {"bias": True, "return_lse": True}),
    "one row": (((1, 40), (1, 9), 2, 32), {"bias": True}),
    "13x13": (((21, 20), 13, 1, 32), {"bias": True, "return_lse": True}),
    "25x25": (((30, 30), 25, 1, 16), {"bias": True, "return_lse": True}),
    "whole map": (((20, 24), (20, 24), 1, 16), {"return_lse": True}),
}


def problem_of(name: str, dtype: str) -> NAProblem:
    sizes, options = NAMED[name]
    return NAProblem.make(*sizes, dtype=dtype, **options)  # type: ignore[arg-type]


PLAIN, PLAIN_TF32 = problem_of("nat", "float16"), problem_of("nat", TF32)
#: Each problem in 16 bits of one kind or the other, and some in TF32.
CASES = [(name, HALVES[n % 2]) for n, name in enumerate(NAMED)] + [(name, TF32) for name in list(NAMED)[::2]]


@functools.cache
def kernel_for(
    problem: NAProblem, number: int = 0, sketch: str | None = None, like: tuple[str, int] | None = None
) -> CudaKernel:
    """The kernel of a formulation, the same for all tests."""
    plan = Plan(sketch, like={} if like is None else dict([like]))
    return kernel_of(problem, scheduled(problem, number, plan, BAND))


def sketches(problem: NAProblem, number: int = 0) -> tuple[str, ...]:
    return space_of(problem, BAND).sketches(formulations(problem, BAND)[number], TARGET)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_named_problems_are_right(name: str, dtype: str) -> None:
    kernel = kernel_for(problem_of(name, dtype))
    assert kernel.fits
    assert_right_in_halves(kernel, batch=1 + (name == "uneven groups"), seed=0)


@pytest.mark.parametrize(("name", "dtype"), [("nat", "float16"), ("nat", TF32), ("uneven groups", "bfloat16")])
def test_every_formulation_and_structure_is_right(name: str, dtype: str) -> None:
    """Every formulation, and every sketch of the default one."""
    problem = problem_of(name, dtype)
    points = [(number, AT_ONCE) for number in range(1, len(formulations(problem, BAND)))]
    for number, sketch in points + [(0, sketch) for sketch in sketches(problem)[1:]]:
        kernel = kernel_for(problem, number, sketch)
        assert kernel.fits
        assert_right_in_halves(kernel, batch=1 + number % 2, seed=number)


@pytest.mark.parametrize(("name", "dtype"), [("causal", "float16"), ("shared keys", "bfloat16"), ("dinat", "float16")])
def test_structures_of_other_problems_are_right(name: str, dtype: str) -> None:
    problem = problem_of(name, dtype)
    assert len(sketches(problem)) > 1 or name == "dinat"
    for sketch in sketches(problem)[1:]:
        assert_right_in_halves(kernel_for(problem, 0, sketch), batch=1, seed=0)


# --- random points of random problems


def drawn_problem(seed: int) -> NAProblem:
    """A small problem of those that tensor cores serve: any options, maps that are no multiple of anything."""
    rng = random.Random(seed)
    dims = (16, 32, 64, 128)
    dim, dtype = rng.choice(dims), DTYPES[seed % 3] if seed % 2 else rng.choice(HALVES)
    dim_v = rng.choice([dim, dim, rng.choice(dims[:3] if dtype == TF32 else dims)])
    return random_problem(rng, sizes=(3, 20), stride=1, head_dim=dim, head_dim_v=dim_v, dtype=dtype)


def drawn_shape(problem: NAProblem, tile: BandTile, sketch: str, rng: random.Random) -> dict[str, int]:
    """Parameters that a block can have."""
    turn = axis_in_turn(sketch)
    names = {axis: "in turn" if axis == turn else "at once" for axis in ("rows", "columns", "heads")}
    while True:
        shape = BlockShape(*(rng.choice(sizes_along(problem, tile, axis, axis == turn)) for axis in names))
        warps = math.prod(getattr(shape, axis) for axis in names if axis != turn)
        if warps <= 16 and shared_bytes(shape, problem, tile, turn) <= TARGET.max_shared_bytes:
            return {f"{axis} {how}": getattr(shape, axis) for axis, how in names.items()}


@pytest.mark.parametrize("seed", range(POINTS))
def test_random_points_of_random_problems(seed: int) -> None:
    problem, rng = drawn_problem(seed), random.Random(seed)
    tile = rng.choice(tiles(problem, TARGET))
    func = cuda_mma.SPACE.formulation(problem, tile)
    sketch = rng.choice(cuda_mma.SPACE.sketches(func, TARGET))
    like = drawn_shape(problem, tile, sketch, rng) if seed % 2 else {}
    point = cuda_mma.SPACE.apply(func, TARGET, Plan(sketch, like=like))
    assert point is not None
    kernel = kernel_of(problem, point)
    assert kernel.fits
    assert_right_in_halves(kernel, batch=rng.choice([1, 2]), seed=seed, late_copies=bool(seed & 2))


def test_points_that_metaschedule_draws_are_right() -> None:
    kernels = [kernel_of(PLAIN, scheduled(PLAIN, 0, Plan(sample=True, seed=seed), BAND)) for seed in range(1, 6)]
    fitting = [kernel for kernel in kernels if kernel.fits]
    assert fitting
    for seed, kernel in enumerate(fitting):
        assert_right_in_halves(kernel, batch=1, seed=seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel_size", [5, 13])
def test_any_scale(dtype: str, kernel_size: int) -> None:
    """Scores in TF32 are as exact as those of float32, so that large ones do no harm."""
    problem = NAProblem.make((14, 13), kernel_size, 1, 16, dtype=dtype, bias=True, return_lse=True)
    for scale in (0.0, -1.5, 30.0):
        assert max(run(kernel_for(problem), scale=scale)) <= TOLERANCE[dtype], scale


# --- which bits of a number of TF32 are looked at


def test_weights_and_values_are_rounded_and_scores_are_not() -> None:
    """The error is one of TF32, far from that of float32, and the log-sum-exp of one key is its score."""
    assert 20 * TOLERANCE["float32"] < run(kernel_for(PLAIN_TF32))[0]
    error, lse_error = run(kernel_for(problem_of("window of one", TF32)))
    assert 20 * TOLERANCE["float32"] < error < 2.0**-11
    assert lse_error <= TOLERANCE["float32"]


def run_on(patch: pytest.MonkeyPatch, kernel: CudaKernel, inputs: Inputs) -> float:
    """The relative error of the output on these inputs."""
    patch.setattr(cuda_kernels, "random_inputs", lambda *args, **options: inputs)
    return run(kernel)[0]


def test_values_are_rounded_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values just below a number of TF32 under equal weights; cut off they would be further away by 2^-10."""
    problem = NAProblem.make((6, 9), 3, 1, 16, dtype=TF32)
    kernel = kernel_for(problem)
    value = torch.full((1, *problem.spatial, 1, 16), 1 + 2.0**-10 - 2.0**-23)
    inputs = (torch.zeros_like(value), torch.randn_like(value), value, None)
    assert run_on(monkeypatch, kernel, inputs) <= 2.0**-22
    cut = replaced(kernel.source, "make_int4(4096, 4096, 4096, 4096)", "make_int4(0, 0, 0, 0)")
    assert run_on(monkeypatch, kernel.with_source(cut), inputs) > 2.0**-11


def test_no_bits_of_nan_become_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = NAProblem.make((6, 9), (6, 9), 1, 16, dtype=TF32)
    query, key, value, _ = random_inputs(problem, 1, 0)
    for bits in (0x7FFFFFFF, -1, 0x7FC00000):
        value[0, 2, 3, 0, 5] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        assert math.isnan(run_on(monkeypatch, kernel_for(problem), (query, key, value, None)))


# --- what is served, and how large blocks are


@pytest.mark.parametrize(
    "change",
    [{"dtype": "float64"}, {"spatial": 40, "kernel_size": 7}, {"stride": 2}, {"head_dim": 24}, {"head_dim_v": 256}],
)
def test_others_are_for_other_spaces(change: dict[str, object]) -> None:
    given = {"spatial": (14, 14), "kernel_size": 7, "heads": 2, "head_dim": 32, "dtype": "float16"}
    problem = NAProblem.make(**{**given, **change})  # type: ignore[arg-type]
    flash = [] if problem.dtype == "float64" else ["cuda-flash"]
    assert [space.name for space in spaces_for(problem, TARGET)] == [*flash, "cuda-gather"]
    assert in_tf32(NAProblem.make(**{**given, "dtype": "float32", **change}), TARGET) is None  # type: ignore[arg-type]


def test_tensor_cores_are_the_default_where_there_are_some() -> None:
    def names(problem: NAProblem, target: str) -> list[str]:
        return [space.name for space in spaces_for(problem, parse_target(target))]

    plain = dataclasses.replace(PLAIN, dtype="float32")
    assert names(PLAIN, "cuda-sm_80") == ["cuda-strip", BAND, "cuda-flash", "cuda-gather"]
    two_passes = NAProblem.make((80, 80), 25, 2, 32, dtype="float16")
    assert names(two_passes, "cuda-sm_80") == ["cuda-flash", BAND, "cuda-gather"]
    assert names(PLAIN, "cuda-sm_75") == names(plain, "cuda-sm_80") == ["cuda-gather"]
    # In TF32 there is nothing else.
    assert names(PLAIN_TF32, "cuda-sm_80") == [BAND]
    assert names(PLAIN_TF32, "cuda-sm_75") == names(PLAIN_TF32, "llvm-x86-avx2") == []
    assert in_tf32(plain, TARGET) == PLAIN_TF32


@pytest.mark.parametrize(("dtype", "largest"), [*((dtype, 5349) for dtype in HALVES), (TF32, 2674)])
def test_asynchronous_copies_count_bytes_in_32_bits(dtype: str, largest: int) -> None:
    """Of the largest batch each copy's offset is a number of 32 bits, and of no larger one in TF32."""
    problem = NAProblem.make((56, 56), 7, 2, 32, dtype=dtype)
    widths = {int(n) for n in re.findall(r"\(uint8_t\*\)src \+ src_off \* (\d+)", kernel_for(problem).source)}
    assert widths == {bytes_of(problem)}
    samples, elements = problem.largest_batch("cuda"), 56 * 56 * 2 * 32
    assert samples == largest and samples * elements * max(widths) < 2**31 <= (samples + 1) * elements * max(widths)


def test_one_sample_too_large_for_tf32_is_computed_in_float32() -> None:
    problem = NAProblem.make((512, 512), 7, 32, 64)
    assert in_tf32(problem, TARGET) is None and problem.largest_batch("cuda") == 1
    assert in_tf32(dataclasses.replace(problem, heads=31, heads_kv=31), TARGET) is not None


def test_small_windows_have_one_pass_and_large_ones_two() -> None:
    def first(kernel_size: int) -> int:
        return tiles(NAProblem.make((80, 80), kernel_size, 2, 32, dtype="float16"), TARGET)[0].passes

    assert [first(k) for k in (3, 7, 9, 25, 80)] == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90"])
def test_default_blocks_are_some_that_a_gpu_can_have(arch: str) -> None:
    target = parse_target(f"cuda-{arch}")
    for name, dtype in CASES:
        problem = problem_of(name, dtype)
        for tile in tiles(problem, target):
            for turn in (None, *(["columns"] if can_be_in_turn(problem, tile, target, COLUMNS_IN_TURN) else [])):
                shape = default_shape(problem, tile, target, turn)
                assert shared_bytes(shape, problem, tile, turn) <= target.max_shared_bytes
                assert 1 <= shape.tiles // (shape.columns if turn else 1) <= 8


def test_shared_memory_is_what_was_reckoned() -> None:
    for name in ("nat", "shared keys", "wide heads", "13x13"):
        problem = problem_of(name, TF32)
        tile = tiles(problem, TARGET)[0]
        reckoned = shared_bytes(default_shape(problem, tile, TARGET), problem, tile)
        assert reckoned <= kernel_for(problem).sizes.dynamic_shared <= 1.05 * reckoned


def test_structures_are_those_that_make_a_difference() -> None:
    assert sketches(PLAIN) == (AT_ONCE, COLUMNS_IN_TURN, HEADS_IN_TURN)
    assert sketches(NAProblem.make((7, 7), 7, 1, 32, dtype="float16")) == (AT_ONCE,)
    assert sketches(PLAIN_TF32) == (AT_ONCE, COLUMNS_IN_TURN)  # copies that cannot round are left out
    with pytest.raises(ValueError, match="sketch: required one of tiles at once, columns in turn, heads in turn, got"):
        scheduled(PLAIN, 0, Plan("rows in turn"), BAND)


@pytest.mark.parametrize("size", [(14, 14), (3, 8 * 11)])
def test_one_column_or_head_is_not_in_turn(size: tuple[int, int]) -> None:
    """It would be another name for a point of "tiles at once"; eleven columns have no divisor that a block can have."""
    problem = NAProblem.make(size, 3, 3, 32, dtype="float16")
    func = cuda_mma.SPACE.formulation(problem, BandTile(2, 8))
    offered = cuda_mma.SPACE.sketches(func, TARGET)
    assert (COLUMNS_IN_TURN in offered) == (size[1] == 14) and HEADS_IN_TURN in offered
    for sketch in offered[1:]:
        point = cuda_mma.SPACE.apply(func, TARGET, Plan(sketch, like={sketch: 1}))
        assert point is not None
        (parameter,) = (parameter for parameter in point.parameters if parameter.name == sketch)
        assert parameter.value == min(parameter.options) >= 2


@pytest.mark.parametrize("name", ["25x25", "whole map", "25x25, wide"])
def test_all_warps_copy_what_a_step_of_two_passes_needs(name: str) -> None:
    wide = NAProblem.make((30, 30), 25, 1, 128, dtype="float16")
    kernel = kernel_for(wide if name == "25x25, wide" else problem_of(name, "float16"))
    warps = kernel.launches[0].block[1]
    assert tiles(kernel.problem, TARGET)[0].passes == 2 and warps > 1
    copies = re.findall(r"(?:threadIdx\.y\) < (\d+)\) \{)?\n +ptx_cp_async_legacy", kernel.source)
    of_warps = [int(warps_copying or warps) for warps_copying in copies]
    assert len(copies) * warps <= 1.5 * sum(of_warps)  # the first warp, which takes part in all, against the mean


@pytest.mark.parametrize(("warps", "refused"), [(28, False), (32, True)])
def test_blocks_without_registers_for_their_scores_are_refused(warps: int, refused: bool) -> None:
    """Those of a 7x7 window in sub-tiles of 2x8 are 64 numbers of a lane."""
    problem, tile = NAProblem.make((64, 8), 7, 1, 16, dtype="float16"), BandTile(2, 8)
    func = cuda_mma.SPACE.formulation(problem, tile)
    assert func.attrs["tvm_na.least_registers"] == least_registers(problem, tile) == 66
    assert least_registers(problem, BandTile(2, 8, 2)) == 12
    context = pytest.raises(UnlaunchableError, match="registers") if refused else contextlib.nullcontext()
    with context:
        check_least_registers(func, Sizes(32 * warps, 0, 0), parse_target("cuda-sm_90"))


def test_rows_are_cut_so_that_no_warp_waits_long() -> None:
    for rows, warps, row_warps in itertools.product(range(1, 9), range(1, 17), (1, 2, 4, 6, 16)):
        parts = parts_of_rows(rows, warps, row_warps)
        busiest = -(-rows * parts // warps) * (row_warps // parts)
        assert row_warps % parts == 0
        assert parts == 1 if rows >= warps else busiest <= max(row_warps // 2, -(-rows * row_warps // warps), 1)


# --- what the emulation notices


@pytest.fixture(scope="module", params=[AT_ONCE, HEADS_IN_TURN])
def kernel(request: pytest.FixtureRequest) -> CudaKernel:
    return kernel_for(PLAIN, 0, request.param, ("heads in turn", 2))


def test_damage_is_noticed(kernel: CudaKernel) -> None:
    """A missing barrier; a key more on one side of every window, and one less on the other; a wait that waits not."""

    def noticed(source: str) -> bool:
        damaged = kernel.with_source(source)
        # Copies that land late and such that land at once.
        errors = lambda seed: max(run(damaged, seed=seed, late_copies=bool(seed % 2)))  # noqa: E731
        return damage_is_noticed(errors, TOLERANCE["float16"])

    source = kernel.source
    assert not noticed(source)
    assert noticed(without_barrier(source, 0))
    assert noticed(replaced(source, "- 3), 7), 0)", "- 2), 7), 0)"))
    assert noticed(replaced(source, "cp.async.wait_group 0;", ""))


# --- what nvcc makes of them

#: ptxas would rather spill a few bytes of these than have fewer blocks on a multiprocessor.
SPILLED = {"wide heads": 64, "13x13": 64, "25x25": 64}
ON_TENSOR_CORES = {
    "SASS": ("HMMA", "HMMA.1688.F32.TF32", "LDSM"),
    "PTX": (
        "mma.sync.aligned.m16n8k16",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        "ldmatrix.sync.aligned.m8n8.x4",
    ),
}


@needs_nvcc
@pytest.mark.parametrize(
    ("name", "dtype", "arch"),
    [(name, dtype, "sm_90") for name, dtype in CASES if dtype != TF32]
    + [("nat", "float16", "sm_80"), ("wide heads", "float16", "sm_80"), ("25x25", "float16", "sm_80")]
    + [("nat", TF32, "sm_80"), ("nat", TF32, "sm_90"), ("wide heads", TF32, "sm_80"), ("13x13", TF32, "sm_90")],
)
def test_defaults_fit_registers_and_use_tensor_cores(name: str, dtype: str, arch: str) -> None:
    problem = problem_of(name, dtype)
    found = inspect_kernel(kernel_for(problem).source, arch)
    assert least_registers(problem, tiles(problem, TARGET)[0]) < found.registers <= 255
    spilled = {"13x13": 192} if dtype == TF32 else SPILLED
    assert found.spill_bytes <= spilled.get(name, 0)
    assert found.stack_bytes <= found.spill_bytes  # no array of a thread
    if (name, dtype) == ("nat", TF32):  # three blocks of four warps on a multiprocessor
        assert found.registers <= 168
    multiply, multiply_tf32, load = ON_TENSOR_CORES["SASS" if found.language == "SASS" else "PTX"]
    assert found.count(multiply_tf32 if dtype == TF32 else multiply) > 0
    assert found.count(load) > 0


@needs_nvcc
@pytest.mark.parametrize("sketch", [AT_ONCE, COLUMNS_IN_TURN, HEADS_IN_TURN])
def test_nat_needs_few_registers(sketch: str) -> None:
    """At 128 registers a multiprocessor has 16 warps."""
    problem = NAProblem.make((56, 56), 7, 2, 32, bias=True, dtype="float16")
    target = parse_target("cuda-sm_90")
    (found,) = facts_of(scheduled(problem, 0, Plan(sketch), BAND).schedule.mod, target, problem, 1)
    assert found.registers <= 128 and found.copies > 0 and found.spill_bytes == 0
    assert found.busiest <= 1.15  # no warp waits long for another one's copies
    if sketch == AT_ONCE:  # straight to the end: no copy waits for the one before, nor for a branch
        assert found.instructions.get("BRA", 0) + found.instructions.get("bra", 0) <= 2
        assert found.executed <= found.code <= (1000 if found.language == "SASS" else 1200)


# --- the intrinsics


LAYOUTS = (mma.rows_first, mma.columns_first, mma_tf32.left, mma_tf32.right)
LAYOUTS_OF_PRODUCTS = (mma_tf32.left_of_product, mma_tf32.right_of_product)


@pytest.mark.parametrize("layout", [*LAYOUTS, *LAYOUTS_OF_PRODUCTS])
def test_layouts_give_every_number_a_place_of_its_own(layout: mma.Layout) -> None:
    places = sorted(layout(i, j) for i in range(16) for j in range(16))
    assert places == [(lane, n) for lane in range(32) for n in range(8)]


def test_lanes_of_rows_have_a_place_of_their_own() -> None:
    places = sorted(mma.lanes_of_rows(i, c) for i in range(16) for c in range(4))
    assert places == [(lane, n) for lane in range(32) for n in (0, 1)]


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
    stride = head_dim + copied(PLAIN_TF32)
    for number in range(8):
        places = {mma_tf32.right_of_product(n, k): (k, n) for n in range(16) for k in range(16)}
        banks = {(stride * k + n) % 32 for k, n in (places[lane, number] for lane in range(32))}
        assert len(banks) == 32


# --- on a GPU


@pytest.mark.gpu
def test_a_gpu_computes_what_the_emulation_does() -> None:
    from tvm_na.jit.build import kernel_for as built_for
    from tvm_na.jit.build import target_for

    problem = NAProblem.make((28, 30), 7, 4, 32, dilation=2, bias=True, return_lse=True, dtype=TF32)
    inputs = random_inputs(problem, 2, 0)
    query, key, value, rpb = (t.cuda() for t in inputs if t is not None)
    out, lse = torch.full_like(query, math.nan), torch.full(query.shape[:-1], math.nan, device="cuda")
    scale = torch.tensor([problem.head_dim**-0.5], device="cuda")
    built_for(problem, target_for("cuda", 0)).function(query, key, value, scale, rpb, out, lse)
    wanted, wanted_lse = reference64(problem, inputs)
    error = relative_error(out.cpu(), wanted)
    assert 20 * TOLERANCE["float32"] < error <= TOLERANCE[TF32]
    assert relative_error(lse.cpu(), wanted_lse) <= TOLERANCE[TF32]
