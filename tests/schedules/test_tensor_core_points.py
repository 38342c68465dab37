"""The tensor core space at random points of random problems, in the emulation against the reference."""

from __future__ import annotations

import math
import random

import pytest

from tests.helpers import random_problem
from tests.schedules.cuda_kernels import POINTS, TARGET, assert_right_in_halves, kernel_of
from tvm_na.problems.attention import NAProblem
from tvm_na.schedules.base import Plan, divisors
from tvm_na.schedules.cuda import tensor_core_space as cuda_mma
from tvm_na.schedules.cuda.band_sizes import BlockShape, heads_of, shared_bytes
from tvm_na.schedules.cuda.tensor_core_space import tiles
from tvm_na.te.attention.band_axis import BandTile, axes

DTYPES = ("float16", "bfloat16")


def drawn_problem(seed: int) -> NAProblem:
    """A small problem of those that tensor cores serve: any options, maps that are no multiple of anything."""
    rng = random.Random(seed)
    dims = (16, 32, 64, 128)
    dim = rng.choice(dims)
    return random_problem(
        rng, sizes=(3, 24), stride=1, head_dim=dim, head_dim_v=rng.choice([dim, dim, rng.choice(dims)]),
        dtype=rng.choice(DTYPES),
    )  # fmt: skip


def drawn_shape(problem: NAProblem, tile: BandTile, structure: str, rng: random.Random) -> dict[str, int]:
    """Decisions that a block can have."""
    row, column = axes(problem, tile)
    turn = structure.partition(" in turn")[0]
    while True:
        extents = (row.tiles, column.tiles, heads_of(problem))
        shape = BlockShape(*(rng.choice(divisors(n)) for n in extents))
        names = {axis: "in turn" if axis == turn else "at once" for axis in ("rows", "columns", "heads")}
        warps = math.prod(getattr(shape, axis) for axis in names if axis != turn)
        if warps <= 16 and shared_bytes(shape, problem, tile, turn) <= TARGET.max_shared_bytes:
            return {f"{axis} {how}": getattr(shape, axis) for axis, how in names.items()}


@pytest.mark.parametrize("seed", range(POINTS))
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
    assert_right_in_halves(kernel, batch=rng.choice([1, 2]), seed=seed, late_copies=bool(seed & 2))
