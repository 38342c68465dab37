"""The CPU schedule: every problem has one, and its numbers are the reference's."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import torch

from tests.conftest import TOLERANCE
from tests.helpers import HEAD_DIMS, Inputs, random_inputs, random_problem, reference64, relative_error, share
from tests.jit.compiling import compile_all
from tests.te.expressions import assert_local, call
from tvm_na.jit import build
from tvm_na.problems.attention import DTYPES, NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.base import HALVES
from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.schedules import base, spaces_for
from tvm_na.schedules.base import Plan
from tvm_na.schedules.cpu import attention as cpu
from tvm_na.schedules.cpu import blocks
from tvm_na.targets.target import NATarget, alike, detect_target, parse_target
from tvm_na.te.attention.lanes import forward
from tvm_na.te.attention.lanes_tile import LanesTile, lanes_of, spanned_columns
from tvm_na.te.common.window import group_length, group_window


def compile_(problem: NAProblem, tile: LanesTile | None = None) -> Any:
    target = detect_target()
    if tile is None:
        module = build.scheduled_module(problem, target)[0]
    else:
        module = cpu.SPACE.apply(forward(problem, tile), target).schedule.mod
    return compile_all([module])[0]


def run(problem: NAProblem, kernel: Any, inputs: Inputs, scale: float) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A kernel's outputs, which are NaN before the call."""
    query, key, value, rpb = inputs
    accum = getattr(torch, problem.accum_dtype)
    out = torch.full((*query.shape[:-1], problem.head_dim_v), torch.nan, dtype=query.dtype)
    lse = torch.full(query.shape[:-1], torch.nan, dtype=accum) if problem.return_lse else None
    call(kernel, [query, key, value, torch.tensor([scale], dtype=accum), rpb], [out, lse])
    return out, lse


def errors(problem: NAProblem, kernel: Any, batch: int, seed: int) -> list[float]:
    """Relative errors of a kernel's outputs."""
    inputs, scale = random_inputs(problem, batch, seed), 0.7 * problem.head_dim**-0.5
    found = zip(run(problem, kernel, inputs, scale), reference64(problem, inputs, scale), strict=True)
    return [relative_error(out, wanted) for out, wanted in found if out is not None]


def drawn(seed: int) -> NAProblem:
    rng = random.Random(seed)
    dim = rng.choice(HEAD_DIMS)
    dim_v = rng.choice([dim, dim, rng.choice([1, 5, 20, 48])])
    dtype = rng.choice(DTYPES)
    rank = rng.choice([1, 2, 2, 2, 3])
    sizes = (3, 9) if rank == 3 else (5, 40)
    return random_problem(rng, rank=rank, sizes=sizes, head_dim=dim, head_dim_v=dim_v, dtype=dtype)


@pytest.mark.parametrize("block", range(share(20)))
def test_random_problems_agree_with_the_reference(block: int) -> None:
    seeds = range(20 * block, 20 * block + 20)
    problems = [drawn(seed) for seed in seeds]
    target = detect_target()
    kernels = compile_all([build.scheduled_module(problem, target)[0] for problem in problems])
    for seed, problem, kernel in zip(seeds, problems, kernels, strict=True):
        found = errors(problem, kernel, batch=1 + seed % 2, seed=seed)
        assert all(e <= TOLERANCE[problem.dtype] for e in found), (seed, str(problem), found)


CORNERS = {
    "one-token": NAProblem.make((1, 1), 1, 1, 1, bias=True, return_lse=True),
    "k1": NAProblem.make((5, 9), 1, 2, 3, return_lse=True),
    "whole-map": NAProblem.make((7, 7), 7, 2, 32, bias=True),
    "wide-window": NAProblem.make((6, 45), (5, 41), 1, 8, bias=True, return_lse=True),
    "blocked": NAProblem.make((12, 14), (4, 7), 2, 8, stride=(4, 7), bias=True),
    "uneven-groups": NAProblem.make((23, 31), 3, 2, 12, dilation=(7, 10), bias=True, return_lse=True),
    "uneven-causal": NAProblem.make((23, 31), 3, 2, 12, dilation=(7, 10), is_causal=True, stride=(2, 3), bias=True),
    "prime-dims": NAProblem.make((9, 9), 3, 3, 13, head_dim_v=17),
    "narrow": NAProblem.make((40, 3), (7, 3), 2, 16, bias=True),
    "flat": NAProblem.make((3, 40), (3, 7), 2, 16, bias=True, dtype="float64"),
    "gqa": NAProblem.make((9, 11), 5, 6, 8, heads_kv=2, head_dim_v=24, return_lse=True),
}


@pytest.mark.parametrize("problem", CORNERS.values(), ids=CORNERS)
def test_corners_of_the_space_agree_with_the_reference(problem: NAProblem) -> None:
    found = errors(problem, compile_(problem), batch=2, seed=0)
    assert all(e <= TOLERANCE[problem.dtype] for e in found), found


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("queries", [1, 3, 8])
def test_every_tile_gives_the_same_numbers(queries: int, exact: bool, pack: bool) -> None:
    problem = NAProblem.make((11, 22), (3, 4), 2, 8, dilation=(2, 3), stride=(1, 2), bias=True, return_lse=True)
    found = errors(problem, compile_(problem, LanesTile(queries, 8, exact, pack)), batch=2, seed=1)
    assert all(e <= TOLERANCE["float32"] for e in found), found


@pytest.mark.parametrize("seed", range(share(25)))
def test_drawn_points_give_the_same_numbers(seed: int) -> None:
    rng = random.Random(seed)
    problem = list(CORNERS.values())[seed // 2 % len(CORNERS)] if seed % 2 else drawn(1000 + seed)
    target = detect_target()
    points = []
    for k in range(10):
        func = rng.choice(cpu.SPACE.formulations(problem, target))
        plan = Plan(rng.choice(cpu.SPACE.sketches(func, target)), sample=True, seed=100 * seed + k + 1)
        scheduled = cpu.SPACE.apply(func, target, plan)
        assert scheduled is not None
        points.append(scheduled)
    kernels = compile_all([point.schedule.mod for point in points])
    for k, (point, kernel) in enumerate(zip(points, kernels, strict=True)):
        found = errors(problem, kernel, batch=1 + k % 2, seed=k)
        assert all(e <= TOLERANCE[problem.dtype] for e in found), (str(problem), point.sketch, point.parameters, found)


def test_plans() -> None:
    """The default, a wish, the nearest to a wish, and draws that a seed repeats."""
    problem, target = NAProblem.make((12, 12), 5, 2, 8), detect_target()
    func = cpu.SPACE.formulations(problem, target)[0]

    def values(plan: Plan) -> dict[str, int]:
        scheduled = cpu.SPACE.apply(func, target, plan)
        assert scheduled is not None
        assert base.sketch_of(scheduled.schedule.trace) == scheduled.sketch
        assert all(parameter.value in parameter.options for parameter in scheduled.parameters)
        return scheduled.values

    default = values(Plan())
    assert values(Plan(like=default)) == default
    wished = values(Plan(sketch="pack in task", like={"rows per task": 7, "unknown": 3}))
    assert wished == {**values(Plan("pack in task")), "rows per task": 6}
    draws = [values(Plan(sample=True, seed=seed)) for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len({tuple(draw.items()) for draw in draws}) == 3
    with pytest.raises(ValueError, match="sketch: required one of pack in task"):
        values(Plan(sketch="none"))
    assert values(Plan(exact=draws[2])) == values(Plan(exact=list(draws[2].values()))) == draws[2]
    some = dict(list(default.items())[:-1])
    for exact in (
        {**default, "rows per task": 7},
        {**default, "unknown": 3},
        some,
        list(some.values()),
        [*some.values(), 1, 1],
    ):
        with pytest.raises(ValueError, match="(rows per task|parameters): required"):
            values(Plan(exact=exact))


def test_one_kernel_serves_every_batch() -> None:
    problem = NAProblem.make((9, 10), 3, 2, 8, bias=True)
    kernel = compile_(problem)
    for batch in (1, 2, 5, 17):
        assert errors(problem, kernel, batch, seed=batch)[0] <= TOLERANCE["float32"]


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_value_outside_of_the_window_stays_outside(poison: float) -> None:
    for causal in (False, True):
        problem = NAProblem.make((8, 16), 3, 1, 8, is_causal=causal)
        kernel = compile_(problem)
        assert_local(problem, lambda inputs, p=problem, k=kernel: run(p, k, inputs, 0.3), poison, step=7)  # type: ignore


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_far_apart_and_non_finite_behave_as_in_the_reference(dtype: str) -> None:
    problem = NAProblem.make((4, 4), 3, 1, 4, dtype=dtype, return_lse=True)
    query, key, value, _ = random_inputs(problem, 1, 0)
    query *= 300.0  # probabilities underflow
    kernel = compile_(problem)
    out, lse = run(problem, kernel, (query, key, value, None), 1.0)
    assert lse is not None
    wanted, wanted_lse = reference64(problem, (query, key, value, None), 1.0)
    # The scores' own rounding is magnified by their size.
    assert relative_error(out, wanted) <= 1000 * TOLERANCE[dtype]
    assert relative_error(lse, wanted_lse) <= 10 * TOLERANCE[dtype]
    query[0, 0, 0] = torch.nan
    out, lse = run(problem, kernel, (query, key, value, None), 1.0)
    assert lse is not None
    assert out[0, 0, 0].isnan().all()
    assert lse[0, 0, 0].isnan().all()
    assert out[0, 1:].isfinite().all()


def test_spanned_columns_is_the_most_that_a_tile_spans() -> None:
    rng = random.Random(7)
    for _ in range(200):
        problem = random_problem(rng)
        (_, width), (_, k), (_, s), (_, d) = problem.spatial, problem.kernel_size, problem.stride, problem.dilation
        queries = rng.randint(1, 9)
        most = 0
        for r in range(d):
            length = group_length(width, d, r)
            for first in range(0, length, queries):
                windows = [
                    group_window(t, length, k, s, problem.is_causal[1])[0]
                    for t in range(first, min(first + queries, length))
                ]
                most = max(most, max(windows) + k - min(windows))
        assert spanned_columns(problem, queries) == most
        assert 0 <= lanes_of(problem, LanesTile(queries, 8)) - most < 8


def test_the_space_refuses_what_it_does_not_serve() -> None:
    from tvm_na.te.attention.definition import forward as natural

    target = detect_target()
    problem = NAProblem.make((5, 5), 3, 1, 4)
    assert cpu.SPACE.apply(natural(problem), target) is None
    cuda = NATarget("cuda-sm_90", "cuda", "", "", (), 16, 255)
    assert cpu.SPACE.apply(forward(problem, LanesTile(1, 8)), cuda) is None
    assert spaces_for(NAProblem.make((5, 5), 3, 1, 4, dtype="tf32"), target) == []


def chosen(problem: NAProblem, name: str) -> tuple[LanesTile | None, base.Scheduled]:
    """The default of a problem on a target."""
    target = parse_target(name)
    func = cpu.SPACE.formulations(problem, target)[0]
    scheduled = cpu.SPACE.apply(func, target)
    assert scheduled is not None
    return LanesTile.of(func), scheduled


AVX2, AVX512 = "llvm-x86-avx2", "llvm-x86-avx512"


@pytest.mark.parametrize(
    ("problem", "target", "queries", "vector"),
    [
        (NAProblem.make((56, 56), 7, 2, 32), AVX512, 2, 8),  # eight columns hold the windows of two queries
        (NAProblem.make((28, 28), 7, 4, 32, dilation=4), AVX512, 7, 8),  # one window for all of a group
        (NAProblem.make((64, 64), 13, 2, 32), AVX512, 4, 16),
        (NAProblem.make((56, 56), 7, 2, 32), AVX2, 2, 8),
        (NAProblem.make((4096,), 63, 4, 32), AVX2, 8, 8),  # keys come from the second cache
    ],
)
def test_the_default_tile_has_vectors_that_its_windows_fill(
    problem: NAProblem, target: str, queries: int, vector: int
) -> None:
    tile, _ = chosen(problem, target)
    assert tile is not None
    assert (tile.queries, tile.vector, tile.exact_values) == (queries, vector, True)


@pytest.mark.parametrize(
    ("registers", "tile", "scores", "values"),
    [  # two queries, each with a window of its own; seven with the same one
        (16, (2, False), (2, 1, 4), (2, 4)),
        (32, (2, False), (2, 1, 7), (2, 4)),
        (16, (7, True), (7, 1, 1), (4, 2)),
        (32, (7, True), (7, 1, 3), (4, 4)),
    ],
)
def test_default_blocks_are_those_that_tuning_found(
    registers: int, tile: tuple[int, bool], scores: tuple[int, ...], values: tuple[int, ...]
) -> None:
    queries, shared = tile
    assert blocks.score_block(queries, 1, 7, registers)[1:] == scores
    assert blocks.value_block(queries, 4, shared, registers)[1:3] == values


@pytest.mark.parametrize("name", [AVX2, AVX512])
@pytest.mark.parametrize("kernel_size", [3, 5, 7, 13])
def test_default_blocks_of_accumulators_spill_no_register(kernel_size: int, name: str) -> None:
    problem = NAProblem.make((32, 32), kernel_size, 2, 32)
    registers = parse_target(name).vector_registers
    values = chosen(problem, name)[1].values
    queries, vectors, rows = (values[f"score {what} at once"] for what in ("queries", "vectors", "rows"))
    sums = queries * vectors * rows
    assert min(8, registers // 2) <= sums <= registers - queries - 1
    assert values["value queries at once"] * values["value vectors at once"] <= registers - 2


@pytest.mark.parametrize(
    ("problem", "sketch", "tasks"),
    [
        (NAProblem.make((56, 56), 7, 2, 32), "pack in task", 16),
        (NAProblem.make((28, 28), 7, 4, 32), "pack in task", 8),
        (NAProblem.make((7, 7), 7, 16, 32), "pack in task", 4),  # worth two threads
        (NAProblem.make((56, 56), 7, 2, 32, dilation=8), "pack first", 112),  # neighboring rows read others' keys
        (NAProblem.make((32, 32), 7, 8, 32, heads_kv=1), "pack first", 256),
    ],
)
def test_tasks_are_as_many_as_threads_are_worth_where_they_pack_keys(
    problem: NAProblem, sketch: str, tasks: int
) -> None:
    _, scheduled = chosen(problem, AVX2)
    values = scheduled.values
    rows, heads = values["rows per task"], values["heads per task"]
    assert scheduled.sketch == sketch
    assert problem.spatial[0] // rows * (problem.heads // heads) == tasks


def assembly_for(problem: NAProblem, target: NATarget) -> str:
    """The code of the default schedule."""
    import tvm

    module = build.scheduled_module(problem, target)[0]
    return str(tvm.compile(module, target=target.tvm_target()).mod.inspect_source("s"))


WIDE = NAProblem.make((14, 14), 13, 2, 32)  # enough for the longest vectors


@pytest.mark.parametrize("name", [AVX512, AVX2, "llvm-x86-sse4"])
def test_kernels_for_other_cpus_use_their_vectors(name: str) -> None:
    assembly = assembly_for(WIDE, parse_target(name))
    register = {AVX512: "%zmm", AVX2: "%ymm", "llvm-x86-sse4": "%xmm"}[name]
    assert register in assembly
    if name != "llvm-x86-sse4":
        products = [line for line in assembly.splitlines() if "vfmadd" in line and register in line]
        assert len(products) > 20
    assert "expf" not in assembly


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("float16", "llvm-x86-sse4"), *((dtype, n) for dtype in HALVES for n in (AVX2, "llvm-aarch64-neon"))],
)
@pytest.mark.parametrize("kind", ["attention", "gradients", "qk", "av", "av_transposed", "bias_sums"])
def test_kernels_of_halves_call_no_conversion(kind: str, dtype: str, name: str) -> None:
    attention = NAProblem.make((9, 9), 3, 2, 16, dtype=dtype, bias=kind in ("attention", "gradients", "qk"))
    of_kind = {"attention": lambda: attention, "gradients": lambda: BackwardProblem(attention)}
    problem: Any = of_kind.get(kind, lambda: UnfusedProblem(kind, attention))()
    calls = set(re.findall(r"\b(?:callq?|bl)[ \t]+(\w+)", assembly_for(problem, parse_target(name))))
    assert all(called.startswith(("__tvm", "TVM", "main", "memset")) for called in calls), calls


@pytest.mark.parametrize("name", [AVX512, "llvm-aarch64-neon"])
def test_without_products_of_bfloat16_all_levels_that_have_them_get_the_same_code(name: str) -> None:
    target, *others = alike(parse_target(name), uses_dots=False)
    code = [assembly_for(WIDE, level) for level in (target, *others)]
    assert len(code) > 1 and len(set(code)) == 1


def test_divisors() -> None:
    assert base.largest_divisor(12, 5) == 4
    assert base.largest_divisor(7, 6) == 1
    assert base.largest_divisor(5, 0) == 1
