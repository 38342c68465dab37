"""The flash space without a GPU: kernels in the emulation against the reference, and what nvcc makes of them."""

from __future__ import annotations

import functools
import itertools
import math
import random
from typing import Any

import pytest
import torch

from tests.conftest import TOLERANCE
from tests.cuda.cuda_funcs import needs_nvcc
from tests.cuda_emulator.mutate import barriers, replaced, without_barrier
from tests.helpers import random_inputs, random_problem, reference64, relative_error, share
from tests.schedules import cuda_kernels
from tests.schedules.cuda_kernels import (
    BAND,
    FLASH,
    GATHER,
    STRIP,
    TARGET,
    CudaKernel,
    assert_right_in_halves,
    damage_is_noticed,
    kernel_of,
    run,
    scheduled,
)
from tvm_na.cuda.static.facts import facts_of
from tvm_na.problems.attention import NAProblem
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Plan
from tvm_na.schedules.cuda import flash
from tvm_na.schedules.cuda.flash_sizes import KEYS, STAGES, TILES, WARPS, default_shape, registers, shared_bytes, work
from tvm_na.targets.target import parse_target
from tvm_na.te.attention.flash_layout import PART, SharedRow, left, right
from tvm_na.te.attention.flash_tile import SIDE, FlashShape, FlashTile, can_be_swizzled

HALVES = ("float16", "bfloat16")
#: Sizes, options, and a point: rows of a sub-tile, sub-tiles and warps along each axis, keys, stages, rows permuted,
#: queries in registers.
NAMED: dict[str, tuple[Any, dict[str, Any], tuple[Any, ...]]] = {
    "2D": (((9, 20), (5, 7), 1, 32), {}, (1, (1, 1, 1), (1, 2, 1), 16, 2, False, True)),
    "3D": (((4, 5, 10), (3, 3, 5), 1, 16), {}, (2, (2, 1, 1), (1, 2, 1), 16, 3, True, False)),
    "1D": (((60,), 21, 1, 64), {"return_lse": True}, (1, (1, 1, 2), (1, 1, 1), 32, 4, True, True)),
    "whole map": (((6, 20), (6, 20), 1, 16), {"return_lse": True}, (4, (1, 1, 2), (1, 2, 1), 16, 2, False, True)),
    "bias": (
        ((7, 11), (3, 6), 2, 32),
        {"bias": True, "return_lse": True},
        (2, (1, 2, 1), (1, 1, 1), 16, 2, True, True),
    ),
    "bias in 3D": (((3, 4, 7), (3, 2, 4), 1, 16), {"bias": True}, (8, (1, 1, 1), (2, 1, 1), 16, 2, False, False)),
    "causal": (((7, 18), (4, 9), 1, 32), {"is_causal": (True, False)}, (1, (1, 2, 1), (1, 1, 1), 16, 2, False, True)),
    "causal line": (((50,), 50, 1, 16), {"is_causal": True}, (1, (1, 1, 1), (1, 1, 2), 16, 3, False, True)),
    "uneven groups": (
        ((11, 19), (3, 4), 1, 16),
        {"dilation": (2, 3), "bias": True, "return_lse": True},
        (4, (1, 1, 1), (1, 1, 1), 16, 2, True, True),
    ),
    "strided": (((9, 17), (4, 6), 1, 32), {"stride": (2, 3)}, (2, (1, 1, 2), (1, 2, 1), 32, 2, False, False)),
    "shared keys": (
        ((5, 9), 3, 4, 32),
        {"heads_kv": 2, "head_dim_v": 16},
        (2, (1, 1, 1), (1, 1, 1), 16, 2, True, True),
    ),
    "odd dims": (((5, 17), 5, 1, 20), {"head_dim_v": 42}, (1, (1, 1, 1), (1, 2, 1), 16, 2, False, True)),
    "wide": (((3, 17), 3, 1, 256), {"head_dim_v": 24}, (1, (1, 1, 1), (1, 1, 1), 16, 2, False, False)),
    "window of one": (((5, 9), 1, 1, 16), {"bias": True}, (2, (1, 1, 1), (1, 1, 1), 16, 2, True, True)),
}


def problem_of(name: str, dtype: str) -> NAProblem:
    sizes, options, _ = NAMED[name]
    return NAProblem.make(*sizes, dtype=dtype, **options)


def kernel_with(problem: NAProblem, tile: FlashTile, shape: FlashShape) -> CudaKernel:
    """The kernel of a point."""
    numbers = [*shape.tiles[3 - problem.rank :], *shape.warps[3 - problem.rank :], shape.keys, shape.stages]
    numbers += [int(shape.swizzled)] if can_be_swizzled(problem) else []
    point = flash.SPACE.apply(
        flash.SPACE.formulation(problem, tile), TARGET, Plan(exact=[*numbers, int(shape.keeps_queries)])
    )
    assert point is not None
    return kernel_of(problem, point)


@functools.cache
def kernel_for(name: str, dtype: str) -> CudaKernel:
    """The named kernel, the same for all tests."""
    rows, *shape = NAMED[name][2]
    return kernel_with(problem_of(name, dtype), FlashTile(rows, SIDE // rows), FlashShape(*shape))


@pytest.mark.parametrize(("name", "dtype"), [(name, HALVES[n % 2]) for n, name in enumerate(NAMED)])
def test_named_problems_are_right(name: str, dtype: str) -> None:
    kernel = kernel_for(name, dtype)
    assert kernel.fits
    for late_copies in (True, False):
        assert_right_in_halves(kernel, batch=1 + (name == "2D"), seed=0, late_copies=late_copies)


# --- random points of random problems


def drawn_problem(rng: random.Random) -> NAProblem:
    """A small problem of any rank and options."""
    rank = rng.choice([1, 2, 2, 3, 3])
    dim = rng.choice([16, 16, 32, 48, 64, 128, 2 * rng.randint(1, 40)])
    dim_v = rng.choice([dim, dim, 16, 64, 2 * rng.randint(1, 40)])
    sizes = {1: (3, 90), 2: (2, 16), 3: (1, 7)}[rank]
    return random_problem(rng, rank=rank, sizes=sizes, head_dim=dim, head_dim_v=dim_v, dtype=rng.choice(HALVES))


def drawn_point(problem: NAProblem, rng: random.Random) -> tuple[FlashTile, FlashShape]:
    """A sub-tile and a shape that a GPU can have."""
    lacking = (1,) * (3 - problem.rank)
    while True:
        rows = 1 if problem.rank == 1 else rng.choice([1, 2, 4, 8])
        tiles, warps = (
            (*lacking, *(rng.choice(options) for _ in range(problem.rank))) for options in (TILES, WARPS[:3])
        )
        rest = (
            rng.choice(KEYS),
            rng.choice(STAGES),
            rng.random() < 0.5 and can_be_swizzled(problem),
            rng.random() < 0.5,
        )
        shape = FlashShape(tiles, warps, *rest)
        fits = shared_bytes(problem, shape) <= TARGET.max_shared_bytes and registers(problem, shape) <= 255
        if fits and shape.warps_of_block <= 8:
            return FlashTile(rows, SIDE // rows), shape


@pytest.mark.parametrize("seed", range(share(10)))
def test_random_points_of_random_problems(seed: int) -> None:
    rng = random.Random(seed)
    problem = drawn_problem(rng)
    kernel = kernel_with(problem, *drawn_point(problem, rng))
    assert_right_in_halves(kernel, batch=1, seed=seed, late_copies=bool(seed & 1))


def test_points_that_metaschedule_draws_are_right() -> None:
    problem = problem_of("2D", "float16")
    kernels = (kernel_of(problem, scheduled(problem, 0, Plan(sample=True, seed=seed), FLASH)) for seed in range(1, 20))
    fitting = next(kernel for kernel in kernels if kernel.fits and kernel.sizes.threads <= 256)
    assert_right_in_halves(fitting, batch=1, seed=0)


@pytest.mark.parametrize("name", ["1D", "bias"])
def test_any_scale(name: str) -> None:
    """A negative factor turns the order of products around, and zero makes all scores equal."""
    for scale in (0.0, -1.5, 30.0):
        assert max(run(kernel_for(name, "float16"), scale=scale)) <= TOLERANCE["float16"], scale


@pytest.mark.parametrize("exponent", [-120, 120])
def test_any_scale_of_what_is_multiplied(exponent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products far from 1, that the scale brings back; a maximum that nothing has reached stays finite."""
    kernel, factor = kernel_for("strided", "bfloat16"), 2.0 ** (exponent // 2)
    query, key, value, _ = random_inputs(kernel.problem, 1, 0)
    inputs = (query * factor, key * factor, value, None)
    monkeypatch.setattr(cuda_kernels, "random_inputs", lambda *args, **options: inputs)
    for sign in (1, -1):
        assert max(run(kernel, scale=sign * 2.0**-exponent)) <= TOLERANCE["bfloat16"]


def test_infinite_scores() -> None:
    """Minus infinity has no weight, and where all scores are so the output is 0; plus infinity is NaN in its window."""
    kernel = kernel_for("1D", "float16")
    query, key, value, _ = random_inputs(kernel.problem, 1, 0)
    query.abs_()
    key[0, :30] = -math.inf
    key[0, -1] = math.inf
    out, lse = torch.full_like(query, math.nan), torch.full(query.shape[:-1], math.nan)
    tensors = {"query": query, "key": key, "value": value, "scale": torch.tensor([0.125]), "out": out, "lse": lse}
    kernel.launch(tensors, 1)
    wanted, wanted_lse = reference64(kernel.problem, (query, key, value, None), 0.125)
    empty, bad = lse[0, :, 0].isneginf(), out[0, :, 0].isnan().any(-1)
    assert empty.tolist() == [t < 20 for t in range(60)] and bad.tolist() == [t >= 49 for t in range(60)]
    assert torch.equal(empty, wanted_lse[0, :, 0].isneginf()) and not out[0, empty].any()
    assert relative_error(out[0, 20:49], wanted[0, 20:49]) <= TOLERANCE["float16"]


# --- what is served by what


LARGE = {
    "FLUX": NAProblem.make((256, 256), 80, 24, 128, dtype="float16"),
    "Hunyuan": NAProblem.make((30, 48, 80), (18, 24, 24), 24, 128, dtype="float16"),
    "line": NAProblem.make((32768,), 2048, 16, 128, dtype="float16"),
}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("name", "products", "keys"), [("FLUX", 1.25, 40), ("Hunyuan", 1.5, 95), ("line", 1.05, 10)])
def test_defaults_multiply_little_more_than_windows(name: str, products: float, keys: float, arch: str) -> None:
    """And read far less keys than those of each query's window."""
    problem, target = LARGE[name], parse_target(f"cuda-{arch}")
    tile = flash.tiles(problem, target)[0]
    shape = default_shape(problem, tile, target)
    assert shape is not None
    done = work(problem, tile, shape)
    assert 1 <= done.products / math.prod(problem.kernel_size) <= products
    assert done.keys <= keys


@pytest.mark.parametrize(
    ("problem", "names"),
    [
        (NAProblem.make((56, 56), 7, 2, 32, dtype="float16"), [STRIP, BAND, FLASH, GATHER]),
        *((problem, [FLASH, BAND, GATHER] if problem.rank == 2 else [FLASH, GATHER]) for problem in LARGE.values()),
        (NAProblem.make((56, 56), 7, 2, 32, stride=2, dtype="bfloat16"), [FLASH, GATHER]),
        (NAProblem.make((56, 56), 7, 2, 96, dtype="float16"), [STRIP, FLASH, GATHER]),
        (NAProblem.make((56, 56), 7, 2, 33, dtype="float16"), [GATHER]),
        (NAProblem.make((56, 56), 7, 2, 258, dtype="float16"), [GATHER]),
        (NAProblem.make((56,), 7, 2, 32), [GATHER]),
    ],
    ids=str,
)
def test_what_serves_a_problem(problem: NAProblem, names: list[str]) -> None:
    assert [space.name for space in spaces_for(problem, TARGET)] == names
    assert FLASH not in {space.name for space in spaces_for(problem, parse_target("cuda-sm_75"))}


def test_shared_memory_is_what_was_reckoned() -> None:
    for name in ("2D", "odd dims", "bias"):
        _, *numbers = NAMED[name][2]
        problem = problem_of(name, "float16")
        assert kernel_for(name, "float16").sizes.dynamic_shared == shared_bytes(problem, FlashShape(*numbers))


@pytest.mark.parametrize("name", ["2D", "strided"])
def test_products_are_those_that_were_reckoned(name: str) -> None:
    """Of blocks within the map; those at its border need less."""
    kernel, (rows, *numbers) = kernel_for(name, "float16"), NAMED[name][2]
    problem, shape = kernel.problem, FlashShape(*numbers)
    tensors = {argument.name: torch.zeros(argument.shape_for(1)) for argument in problem.arguments()}
    (counts,) = kernel.launch({n: t if n == "scale" else t.half() for n, t in tensors.items()}, 1)
    done = work(problem, FlashTile(rows, SIDE // rows), shape)
    reckoned = math.prod(problem.spatial) * done.products * (problem.head_dim + problem.head_dim_v)
    assert 0.6 * reckoned <= counts.mma * 16 * 8 * 16 <= reckoned


@pytest.mark.parametrize("swizzled", [False, True])
def test_lanes_load_rows_from_different_banks(swizzled: bool) -> None:
    """A tensor core's load is four of eight rows with 16 bytes each, of which 128 bytes are all banks."""
    for channels in (n for n in range(16, 257, 16) if not swizzled or n & (n - 1) == 0):
        row = SharedRow(channels, swizzled)
        parts = [row.part(n, part) for n in range(16) for part in range(channels // PART)]
        assert len(set(parts)) == len(parts) and max(parts) < 16 * row.length
        for lanes, k in itertools.product((left, right), range(0, channels, 16)):
            places = [row.further(lanes(row, lane), k) for lane in range(32)]
            assert sorted(places) == sorted(row.part(n, k // PART + part) for n in range(16) for part in range(2))
            for eight in range(0, 32, 8):
                assert len({place // PART % 8 for place in places[eight : eight + 8]}) == 8


# --- what the emulation notices


def test_damage_is_noticed() -> None:
    """Missing barriers and waits, a window that is shifted, a mask that is left out."""
    kernel = kernel_for("2D", "float16")

    def noticed(source: str, scale: float | None = None) -> bool:
        damaged = kernel.with_source(source)
        errors = lambda seed: max(run(damaged, seed=seed, scale=scale, late_copies=bool(seed % 2)))  # noqa: E731
        return damage_is_noticed(errors, TOLERANCE["float16"])

    source = kernel.source
    assert not noticed(source) and not noticed(source, -0.4)
    # Waits and barriers before queries take the sign of the scale, before they are loaded, and in each step.
    assert barriers(source) == 5
    for number in range(5):
        assert noticed(without_barrier(source, number), None if number else -0.4), number
    assert noticed(replaced(source, "- 3)", "- 2)"))
    assert noticed(replaced(source, "(uint)most0_ptr[0]", "(uint)999"))


# --- what nvcc makes of them


@needs_nvcc
@pytest.mark.parametrize(
    ("name", "arch", "instructions"), [("FLUX", "sm_90", 1900), ("Hunyuan", "sm_80", 1750), ("line", "sm_80", 1850)]
)
def test_defaults_fit_registers(name: str, arch: str, instructions: int) -> None:
    """No spills, and products written out once: two sub-tiles by all keys of a step, over 128 channels, twice."""
    problem, target = LARGE[name], parse_target(f"cuda-{arch}")
    point = flash.SPACE.apply(flash.SPACE.formulations(problem, target)[0], target)
    assert point is not None
    (found,) = facts_of(point.schedule.mod, target, problem, 1)
    assert found.registers <= 255 and found.spill_bytes == found.stack_bytes == 0
    assert found.busiest == 1  # all warps copy as much
    if found.language == "SASS":
        assert found.instructions["HMMA"] == 2 * 2 * 16 * point.values["keys at once"] * 128 // (16 * 8 * 16)
        assert found.code <= instructions
