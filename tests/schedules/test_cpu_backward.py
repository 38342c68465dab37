"""Gradients on CPUs: every problem has a kernel, and its numbers are those of the reference's autograd."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import pytest
import torch

from tests.helpers import random_inputs, random_problem, relative_error, share
from tests.jit.compiling import compile_all
from tests.ops.gradients import (
    BUDGET,
    assert_as_exact_as_pytorch,
    assert_right_where_one_key_counts,
    random_gradients,
    wanted_by_name,
)
from tests.te.expressions import gradients_by
from tvm_na.jit import build
from tvm_na.problems.attention import DTYPES, NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Plan
from tvm_na.schedules.cpu import backward as cpu_backward
from tvm_na.targets.target import NATarget, detect_target
from tvm_na.te.backward.lanes import backward
from tvm_na.te.backward.lanes_tile import BackwardTile, Chunks
from tvm_na.te.common.rows import Rows

_HEAD_DIMS = (4, 12, 24, 32, 40, 64)


def gradients(problem: NAProblem, kernel: Any, batch: int, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What a kernel writes over NaN, and what is right; with a gradient of the lse where the problem has one."""
    inputs, given = random_inputs(problem, batch, seed), random_gradients(problem, batch, seed)
    scale = 0.7 * problem.head_dim**-0.5
    found = gradients_by(kernel, problem, inputs, given, scale)
    return list(found.values()), list(wanted_by_name(problem, inputs, given, scale).values())


def check(problem: NAProblem, kernel: Any, batch: int, seed: int) -> None:
    found, right = gradients(problem, kernel, batch, seed)
    errors = [relative_error(a, b) for a, b in zip(found, right, strict=True)]
    tolerance = [BUDGET[problem.dtype]] * len(errors)
    if math.prod(problem.kernel_size) == 1 and problem.bias:
        # One key has the weight 1 whatever its score: the bias's gradient is 0, and what is found the sum of as many
        # roundings as there are queries.
        tolerance[3] *= batch * math.prod(problem.spatial)
    assert all(e <= t for e, t in zip(errors, tolerance, strict=True)), (seed, str(problem), errors)


def drawn(seed: int) -> NAProblem:
    rng = random.Random(seed)
    rank = rng.choice([1, 2, 2, 3])
    dim = rng.choice(_HEAD_DIMS)
    return random_problem(
        rng,
        rank=rank,
        sizes=(3, 7) if rank == 3 else (4, 30),
        head_dim=dim,
        head_dim_v=rng.choice([dim, dim, 5, 20]),
        dtype=rng.choice(["float32", *DTYPES]),
    )


def scheduled(problem: NAProblem) -> Any:
    return build.scheduled_module(BackwardProblem(problem), detect_target())[0]


@pytest.mark.parametrize("block", range(share(40)))
def test_random_problems_agree_with_the_reference(block: int) -> None:
    seeds = range(10 * block, 10 * block + 10)
    problems = [drawn(seed) for seed in seeds]
    for seed, problem, kernel in zip(seeds, problems, compile_all(list(map(scheduled, problems))), strict=True):
        check(problem, kernel, 1 + seed % 2, seed)


CORNERS = {
    "a window of one": NAProblem.make((5, 6), 1, 2, 4, bias=True),
    "the whole map": NAProblem.make((7, 7), 7, 2, 32, bias=True),
    "NAT-Tiny, first stage": NAProblem.make((56, 56), 7, 2, 32, bias=True, return_lse=True),
    "uneven groups": NAProblem.make((23, 29), 5, 1, 16, dilation=(3, 4), bias=True),
    "one position": NAProblem.make((1, 1), 1, 1, 1, bias=True),
    "one long axis": NAProblem.make(300, 13, 2, 16, is_causal=True),
    "keys of many heads": NAProblem.make((9, 9), 3, 12, 8, heads_kv=2, head_dim_v=24, bias=True),
}


@pytest.mark.parametrize("problem", CORNERS.values(), ids=CORNERS)
def test_corners_of_the_space(problem: NAProblem) -> None:
    check(problem, compile_all([scheduled(problem)])[0], 2, 0)


def test_border_keys_and_queries_on_their_own() -> None:
    problem = NAProblem.make((9, 10), (3, 5), 2, 8, bias=True)
    found, right = gradients(problem, compile_all([scheduled(problem)])[0], 1, 1)
    for a, b in zip(found[:3], right[:3], strict=True):
        for y in (0, 1, 4, 7, 8):
            for x in (0, 1, 2, 3, 6, 8, 9):
                assert relative_error(a[:, y, x], b[:, y, x]) <= BUDGET["float32"], (y, x)


@pytest.mark.parametrize(("queries", "tiles"), [(1, 9), (2, 1), (3, 3), (5, 1), (5, 2)])
def test_every_tile_gives_the_same_numbers(queries: int, tiles: int) -> None:
    problem = NAProblem.make((10, 18), (5, 3), 2, 8, dilation=(1, 2), bias=True)
    tiles_of = [BackwardTile(queries, 8, chunks, tiles, pack) for chunks, pack in ((1, True), (3, False))]
    funcs = [backward(BackwardProblem(problem), tile) for tile in tiles_of]
    plans = [Plan(sketch) for sketch in cpu_backward.SKETCHES]
    found = [cpu_backward.SPACE.apply(func, detect_target(), plan) for func, plan in zip(funcs, plans, strict=True)]
    for kernel in compile_all([each.schedule.mod for each in found if each is not None]):
        check(problem, kernel, 1, 0)


@pytest.mark.parametrize("seed", range(share(40)))
def test_drawn_points_give_the_same_numbers(seed: int) -> None:
    problem, target, rng = drawn(1000 + seed), detect_target(), random.Random(seed)
    func = rng.choice(cpu_backward.SPACE.formulations(BackwardProblem(problem), target))
    plan = Plan(rng.choice(cpu_backward.SKETCHES), sample=True, seed=seed + 1)
    found = cpu_backward.SPACE.apply(func, target, plan)
    assert found is not None
    check(problem, compile_all([found.schedule.mod])[0], 1, seed)


LARGE = {
    "2d": (NAProblem.make((9, 10), (5, 3), 2, 16, bias=True), None),
    "3d": (NAProblem.make((4, 5, 6), 3, 2, 20, heads_kv=1, is_causal=(True, False, True), return_lse=True), 1),
    "long products": (NAProblem.make((9, 9), 3, 2, 128), 1),
}


@pytest.mark.parametrize(("problem", "count"), LARGE.values(), ids=LARGE)
def test_large_scores(problem: NAProblem, count: int | None) -> None:
    """In the first formulations, or in all."""
    funcs = cpu_backward.SPACE.formulations(BackwardProblem(problem), detect_target())[:count]
    found = [cpu_backward.SPACE.apply(func, detect_target()) for func in funcs]
    for kernel in compile_all([each.schedule.mod for each in found if each is not None]):
        run = functools.partial(gradients_by, kernel, problem)
        assert_as_exact_as_pytorch(problem, run)
        assert_right_where_one_key_counts(problem, run)


def test_scores_of_minus_infinity_alone_have_gradients_of_zero() -> None:
    problem = NAProblem.make((5, 6), 3, 1, 8, bias=True, return_lse=True)
    query, key, value, rpb = random_inputs(problem, 1, 0)
    assert rpb is not None
    inputs, (kernel,) = (query, key, value, torch.full_like(rpb, -torch.inf)), compile_all([scheduled(problem)])
    found = gradients_by(kernel, problem, inputs, random_gradients(problem, 1), 0.3)
    assert not any(t.any() for t in found.values())


def test_what_is_masked_may_be_infinite() -> None:
    """The gradients of queries that do not see a key are those that they have if it is finite."""
    problem = NAProblem.make(8, 4, 1, 4, is_causal=True)
    kernel = build.kernel_for(BackwardProblem(problem)).function
    (query, key, value, _), given, found = random_inputs(problem, 1, 0), random_gradients(problem, 1, 0), []
    for bad in (0.0, torch.inf, torch.nan):
        key[:, -1], value[:, -1] = bad, bad
        found.append(gradients_by(kernel, problem, (query, key, value, None), given, 0.6)["d_query"][:, :-1])
    assert torch.isfinite(found[0]).all()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_chunks_have_few_rows_in_common() -> None:
    for size, kernel_size, dilation, count in ((56, 7, 1, 5), (7, 7, 1, 1), (56, 7, 8, 1), (224, 7, 1, 8)):
        problem = BackwardProblem.make((size, 20), (kernel_size, 3), 1, 8, dilation=(dilation, 1))
        assert cpu_backward.chunks_of(problem) == count
        chunks = Chunks.of(Rows(problem.forward), count)
        assert chunks.reach <= 1.5 * chunks.rows or count == 1


def test_the_space_refuses_what_it_does_not_serve() -> None:
    from tvm_na.te.attention.lanes import forward
    from tvm_na.te.attention.lanes_tile import LanesTile

    target, problem = detect_target(), BackwardProblem.make((5, 5), 3, 1, 4)
    assert cpu_backward.SPACE.apply(forward(problem.forward, LanesTile(1, 8)), target) is None
    cuda = NATarget("cuda-sm_90", "cuda", "", "", (), 16, 255)
    assert [space.name for space in spaces_for(problem, cuda)] == ["cuda-backward"]
    assert spaces_for(BackwardProblem.make((5, 5), 3, 1, 4, dtype="tf32"), target) == []
    with pytest.raises(ValueError, match="sketch: required one of tiles outside, rows outside"):
        cpu_backward.SPACE.apply(backward(problem, BackwardTile(1, 8)), target, Plan("none"))
