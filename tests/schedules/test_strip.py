"""The strip space without a GPU: kernels in the emulation against the reference, what they read, and what nvcc makes of
them."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import asdict
from typing import Any

import pytest
import torch

from tests.conftest import TOLERANCE
from tests.cuda.cuda_funcs import needs_nvcc
from tests.cuda_emulator.mutate import barriers, replaced, without_barrier
from tests.helpers import PROBLEMS, random_problem, share
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
from tvm_na.cuda.inspection import inspect_kernel
from tvm_na.cuda.library import generated
from tvm_na.problems.attention import NAProblem
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Plan
from tvm_na.schedules.cuda import strip
from tvm_na.schedules.cuda.strip_sizes import (
    default_shape,
    keeps_scores,
    options,
    shapes,
    shared_bytes,
    traffic,
    work,
)
from tvm_na.targets.target import parse_target
from tvm_na.te.attention.strip_axis import StripAxis, Walk, keys_of, plan
from tvm_na.te.attention.strip_layout import Layout, Ring
from tvm_na.te.attention.strip_tile import KEYS, StripShape, StripTile, is_served

HALVES = ("float16", "bfloat16")
#: Sizes, options, and a point: rows of a sub-tile; rows and columns of warps, parts and stages.
NAMED: dict[str, tuple[Any, dict[str, Any], tuple[int, ...]]] = {
    "ring": (((9, 20), (5, 7), 1, 32), {"bias": True, "return_lse": True}, (8, 2, 1, 1, 2)),
    "strips and parts": (((17, 19), 3, 1, 16), {"bias": True}, (4, 2, 2, 2, 3)),
    "map at once": (((14, 14), 7, 1, 32), {"bias": True, "return_lse": True}, (8, 2, 4, 1, 2)),
    "uneven window": (((6, 11), (6, 10), 1, 64), {"return_lse": True}, (2, 1, 1, 1, 3)),
    "without bias": (((10, 13), (4, 3), 1, 48), {}, (4, 1, 1, 1, 2)),
    "long steps": (((5, 37), (3, 9), 1, 16), {"return_lse": True}, (1, 3, 2, 1, 2)),
    "causal": (((9, 18), (4, 7), 1, 32), {"is_causal": (True, True), "bias": True}, (2, 3, 1, 2, 2)),
    "uneven groups": (
        ((15, 23), (3, 7), 1, 16),
        {"dilation": (4, 3), "bias": True, "return_lse": True},
        (8, 1, 1, 1, 2),
    ),
    "shared keys": (((7, 9), 3, 4, 32), {"heads_kv": 2, "head_dim_v": 16}, (8, 1, 1, 1, 3)),
    "wide values": (((5, 12), 3, 1, 16), {"head_dim_v": 128, "bias": True}, (1, 1, 1, 1, 2)),
}
#: NAT's four stages at 224 x 224, of one head: keys that are read, at most, for each of the map.
STAGES = {56: 1.3, 28: 1.3, 14: 1.1, 7: 1.0}
#: Those that are always compiled; the others where there is more time.
_COMPILED = (("sm_80", 28), ("sm_90", 56))


def problem_of(name: str, dtype: str) -> NAProblem:
    sizes, more, _ = NAMED[name]
    return NAProblem.make(*sizes, dtype=dtype, **more)


def stage(size: int, heads: int = 1, dtype: str = "float16") -> NAProblem:
    return NAProblem.make((size, size), 7, heads, 32, dtype=dtype, bias=True)


def kernel_with(problem: NAProblem, tile: StripTile, shape: StripShape) -> CudaKernel:
    """The kernel of a point."""
    exact = [asdict(shape)[name] for name, values in options(problem, tile).items() if len(values) > 1]
    point = strip.SPACE.apply(strip.SPACE.formulation(problem, tile), TARGET, Plan(exact=exact))
    assert point is not None
    return kernel_of(problem, point)


@functools.cache
def kernel_for(name: str, dtype: str) -> CudaKernel:
    """The named kernel, the same for all tests."""
    rows, *shape = NAMED[name][2]
    return kernel_with(problem_of(name, dtype), StripTile(rows, 16 // rows), StripShape(*shape))


@pytest.mark.parametrize(("name", "dtype"), [(name, HALVES[n % 2]) for n, name in enumerate(NAMED)])
def test_named_problems_are_right(name: str, dtype: str) -> None:
    kernel = kernel_for(name, dtype)
    assert kernel.fits
    for late_copies in (True, False):
        assert_right_in_halves(kernel, batch=1 + (name == "ring"), seed=0, late_copies=late_copies)


# --- random points of random problems


def drawn_problem(rng: random.Random) -> NAProblem:
    """A small problem that is served, with some tile."""
    while True:
        dim = rng.choice([16, 16, 32, 32, 48, 64, 128])
        dim_v = rng.choice([dim, dim, 16, 64])
        more = {"head_dim": dim, "head_dim_v": dim_v, "dtype": rng.choice(HALVES), "stride": 1}
        problem = random_problem(rng, rank=2, sizes=(2, 24), **more)
        if is_served(problem) and strip.tiles(problem, TARGET):
            return problem


def drawn_point(problem: NAProblem, rng: random.Random) -> tuple[StripTile, StripShape]:
    """A sub-tile and a shape that a GPU can have."""
    while True:
        rows = rng.choice([1, 2, 4, 8])
        tile = StripTile(rows, 16 // rows)
        shape = rng.choice(list(shapes(problem, tile)))
        fits = shared_bytes(problem, tile, shape) <= TARGET.max_shared_bytes and keeps_scores(problem, tile)
        if fits and shape.warps <= 8:
            return tile, shape


@pytest.mark.parametrize("seed", range(share(6)))
def test_random_points_of_random_problems(seed: int) -> None:
    rng = random.Random(seed)
    problem = drawn_problem(rng)
    kernel = kernel_with(problem, *drawn_point(problem, rng))
    assert_right_in_halves(kernel, batch=1, seed=seed, late_copies=bool(seed & 1))


def test_points_that_metaschedule_draws_are_right() -> None:
    problem = problem_of("strips and parts", "float16")
    points = {
        (kernel := kernel_of(problem, scheduled(problem, 0, Plan(sample=True, seed=n), STRIP))).sizes: kernel
        for n in (1, 2, 3)
    }
    assert len(points) > 1
    for kernel in points.values():
        assert_right_in_halves(kernel, batch=1, seed=0)


@pytest.mark.parametrize("name", ["without bias", "ring"])
def test_any_scale(name: str) -> None:
    for scale in (0.0, -1.5, 30.0):
        kernel = kernel_for(name, "bfloat16" if name == "without bias" else "float16")
        assert max(run(kernel, scale=scale)) <= TOLERANCE[kernel.problem.dtype], scale


# --- boxes of keys, and the walk


@pytest.mark.parametrize("is_causal", [False, True])
def test_boxes_hold_all_windows_and_rings_all_boxes(is_causal: bool) -> None:
    """Of every small axis: what a sub-tile sees is in its box, and that in the ring, when it is computed."""
    rng = random.Random(is_causal)
    for _ in range(share(1) * 12):
        kernel_size, dilation = rng.randint(1, 9), rng.randint(1, 4)
        length = rng.randint(kernel_size * dilation, kernel_size * dilation + 40)
        queries, warps, steps = rng.choice([1, 2, 4, 8, 16]), rng.randint(1, 4), rng.randint(1, 6)
        stages, unit = rng.choice([2, 3]), rng.choice([1, 2, 4])
        axis = StripAxis(length, kernel_size, 1, dilation, is_causal, queries, steps, warps, KEYS)
        found = plan(axis, stages, unit)
        least, most = axis.reach()
        assert found.ring % unit == 0 and found.ring >= axis.box
        for residue in (0, dilation - 1):
            group = axis.group(residue)
            copied = 0
            for part in range(axis.blocks):
                walk = Walk(axis, group, part * axis.of_block)
                copied += walk.end(steps - 1) - walk.start
                assert walk.end(0) - walk.start <= found.first
                for step in range(steps):
                    ahead = walk.end(min(step + stages, steps) - 1)
                    assert step == 0 or walk.end(step) - walk.end(step - 1) <= found.more
                    for warp in range(warps):
                        first, begin = walk.query(step, warp), walk.begin(step, warp)
                        assert walk.start <= begin and begin + min(axis.box, group) <= walk.end(step)
                        assert ahead - begin <= found.ring and (found.wraps or ahead - walk.start <= found.ring)
                        for query in range(first, min(first + queries, group)):
                            start, end = axis.window(residue, query)
                            assert begin <= start and end <= begin + axis.box
                            assert least <= begin - query and begin + axis.box - 1 - query <= most
            assert residue or copied == found.copied


@pytest.mark.parametrize("channels", [16, 32, 48, 64, 96, 128])
def test_lanes_load_keys_from_different_banks(channels: int) -> None:
    """A tensor core's load is four of eight keys with 16 bytes each, of which 128 bytes are all banks; where a ring
    begins anew, too."""
    swizzled = channels & (channels - 1) == 0
    unit = max(1, 64 // channels)
    for columns in range(8 + unit - 8 % unit, 40, unit):
        ring = Ring(channels, columns, swizzled)
        places = [ring.place(n, n, part) for n in range(columns) for part in range(ring.parts)]
        assert len(set(places)) == len(places) and max(places) < ring.row
        for first in range(columns if swizzled else columns - 8):
            for part in range(2):
                for k in range(0, channels, 16):
                    eight = [((first + n) % columns, first + n) for n in range(8)]
                    at = [ring.further(ring.place(slot, column, part), k) for slot, column in eight]
                    assert at == [ring.place(slot, column, part + k // 8) for slot, column in eight]
                    assert len({place // 8 % 8 for place in at}) == 8


# --- what is read, and by what a problem is served


@pytest.mark.parametrize("size", STAGES)
def test_defaults_read_a_map_hardly_more_than_once(size: int) -> None:
    """Counted where the kernel runs: copies of 16 bytes, of keys and values alike; and the numbers are right."""
    problem = stage(size)
    tile = strip.tiles(problem, TARGET)[0]
    shape = default_shape(problem, tile, TARGET)
    assert shape is not None
    kernel = kernel_with(problem, tile, shape)
    assert_right_in_halves(kernel, batch=1, seed=size)
    tensors = {argument.name: torch.zeros(argument.shape_for(1)) for argument in problem.arguments()}
    (counts,) = kernel.launch({n: t if n == "scale" else t.half() for n, t in tensors.items()}, 1)
    read = counts.copies * 16 / (2 * size * size * problem.head_dim * 2)
    assert read == traffic(problem, tile, shape) <= STAGES[size]
    blocks = keys_of(problem, tile) // 8
    of_tile = blocks * 2 + -(-blocks // 2) * (2 * 2 + 1)
    assert counts.mma == work(problem, tile, shape).tiles * of_tile


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_windows_that_are_maps_are_plain_attention(arch: str) -> None:
    """49 queries in 64, and 49 keys in 56, all of which are at hand at once."""
    problem, target = stage(7, 16), parse_target(f"cuda-{arch}")
    tile = strip.tiles(problem, target)[0]
    assert (work(problem, tile, StripShape(1, 1, 1, 2)).tiles * 16, keys_of(problem, tile)) == (64, 56)


@pytest.mark.parametrize(
    ("problem", "names"),
    [
        (stage(56, 2), [STRIP, BAND, FLASH, GATHER]),
        (NAProblem.make((56, 56), 7, 2, 48, dtype="bfloat16"), [STRIP, FLASH, GATHER]),
        (NAProblem.make((56, 56), 7, 2, 32, stride=2, dtype="float16"), [FLASH, GATHER]),
        (NAProblem.make((56,), 7, 2, 32, dtype="float16"), [FLASH, GATHER]),
        (NAProblem.make((256, 256), 80, 24, 128, dtype="float16"), [FLASH, BAND, GATHER]),
        (NAProblem.make((56, 56), 7, 2, 32), [GATHER]),
    ],
    ids=str,
)
def test_what_serves_a_problem(problem: NAProblem, names: list[str]) -> None:
    assert [space.name for space in spaces_for(problem, TARGET)] == names
    assert STRIP not in {space.name for space in spaces_for(problem, parse_target("cuda-sm_75"))}


def test_shared_memory_is_what_was_reckoned() -> None:
    for name in ("ring", "without bias"):
        rows, *numbers = NAMED[name][2]
        kernel = kernel_for(name, "float16" if name == "ring" else "bfloat16")
        problem, tile, shape = kernel.problem, StripTile(rows, 16 // rows), StripShape(*numbers)
        assert kernel.sizes.dynamic_shared == shared_bytes(problem, tile, shape)
        assert Layout(problem, tile, shape).table % 2 == 0


# --- what the emulation notices


def test_damage_is_noticed() -> None:
    """Missing barriers and waits, a window that is shifted, a mask that is left out, a place of another column."""
    kernel = kernel_for("ring", "float16")

    def noticed(source: str) -> bool:
        damaged = kernel.with_source(source)
        errors = lambda seed: max(run(damaged, seed=seed, late_copies=bool(seed % 2)))  # noqa: E731
        return damage_is_noticed(errors, TOLERANCE["float16"])

    source = kernel.source
    assert not noticed(source)
    assert barriers(source) == 2
    for number in range(2):
        assert noticed(without_barrier(source, number)), number
    assert noticed(replaced(source, "column0_ptr[0], 19) - 3)", "column0_ptr[0], 19) - 2)"))
    assert noticed(replaced(source, "(uint)rows0_0_ptr[0]", "(uint)999"))
    assert noticed(replaced(source, "10 <= slot_ptr[0]", "99 <= slot_ptr[0]"))


# --- what nvcc makes of them


@needs_nvcc
@pytest.mark.parametrize(
    ("arch", "size"), [(a, n) for a in ("sm_80", "sm_90") for n in STAGES if PROBLEMS >= 100 or (a, n) in _COMPILED]
)
def test_defaults_fit_registers(arch: str, size: int) -> None:
    """No spills, and so few registers that there are two blocks of eight warps."""
    problem, target = stage(size, 112 // size), parse_target(f"cuda-{arch}")
    point = strip.SPACE.apply(strip.SPACE.formulations(problem, target)[0], target)
    assert point is not None
    found = inspect_kernel(generated(point.schedule.mod, target)[0], arch)
    assert found.spill_bytes == found.stack_bytes == 0
    assert found.registers <= 128
    if found.language == "SASS":
        blocks = keys_of(problem, strip.tiles(problem, target)[0]) // 8
        assert found.count("HMMA") == blocks * 2 + math.ceil(blocks / 2) * 5
