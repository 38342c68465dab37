"""The unfused operators on CPUs: every problem has a kernel, and its numbers are those of the reference."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.helpers import random_problem, share
from tests.jit.compiling import compile_all
from tvm_na.jit import build
from tvm_na.problems.attention import DTYPES
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.unfused import KINDS as ALL_KINDS
from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.reference.case import WrongNumbers
from tvm_na.reference.cases import budget_of, make_case
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Plan
from tvm_na.schedules.cpu import unfused as cpu_unfused
from tvm_na.targets.target import NATarget, detect_target, parse_target
from tvm_na.te.attention.lanes import forward
from tvm_na.te.attention.lanes_tile import LanesTile
from tvm_na.te.unfused.lanes_transposed import transposed
from tvm_na.te.unfused.tiles import TransposedTile

#: Kinds that CPUs have kernels of.
KINDS = tuple(kind for kind in ALL_KINDS if kind != "bias_parts")


def drawn(seed: int) -> UnfusedProblem:
    rng = random.Random(seed)
    rank, kind = rng.choice([1, 2, 2, 3]), KINDS[seed % len(KINDS)]
    problem = random_problem(
        rng,
        rank=rank,
        sizes=(3, 7) if rank == 3 else (4, 25),
        head_dim=rng.choice([1, 5, 8, 12, 24, 32, 40, 64, 136]),
        bias=kind == "qk" and rng.random() < 0.6,
        return_lse=False,
        dtype=rng.choice(["float32", *DTYPES]),
    )
    return UnfusedProblem(kind, replace(problem, head_dim_v=problem.head_dim))


def scheduled(problem: UnfusedProblem, target: NATarget | None = None) -> object:
    return build.scheduled_module(problem, target or detect_target())[0]


def check(problem: UnfusedProblem, kernel: object, batch: int) -> None:
    """The kernel writes over NaN what is right."""
    case = make_case(problem, batch, "cpu")
    outputs = case.outputs()
    kernel(*case.inputs, *outputs)  # type: ignore[operator]
    try:
        case.check(outputs, budget_of(problem))
    except WrongNumbers as error:
        pytest.fail(f"{problem}: {error}")


@pytest.mark.parametrize("block", range(share(20)))
def test_random_problems_agree_with_the_reference(block: int) -> None:
    problems = [drawn(seed) for seed in range(10 * block, 10 * block + 10)]
    for seed, (problem, kernel) in enumerate(zip(problems, compile_all(list(map(scheduled, problems))), strict=True)):
        check(problem, kernel, 1 + seed % 2)


CORNERS: dict[str, tuple[Any, ...]] = {
    "a window of one": ((5, 6), 1, 2, 4, {}),
    "the whole map": ((7, 8), (7, 8), 2, 32, {"is_causal": (True, False)}),
    "wide windows": ((3, 40), (3, 37), 1, 8, {}),
    "one position": ((1, 1), 1, 1, 1, {"is_causal": True}),
    "one long axis": (300, 13, 2, 16, {"is_causal": True}),
    "uneven groups": ((23, 29), 5, 2, 20, {"dilation": (3, 4), "stride": (2, 5), "heads_kv": 1}),
    "many keys": ((9, 8, 7), (5, 6, 7), 2, 3, {}),
}


@pytest.mark.parametrize("name", CORNERS)
def test_corners_of_the_space(name: str) -> None:
    *sizes, options = CORNERS[name]
    kinds = KINDS if name in ("uneven groups", "wide windows") else ("qk", "av", "av_transposed")
    problems = [UnfusedProblem.make(kind, *sizes, bias=kind == "qk", **options) for kind in kinds]
    for problem, kernel in zip(problems, compile_all(list(map(scheduled, problems))), strict=True):
        check(problem, kernel, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_points_give_the_same_numbers(kind: str) -> None:
    target, rng, modules = detect_target(), random.Random(0), []
    options = {"dilation": (1, 2), "is_causal": (True, False), "heads_kv": 2, "bias": kind == "qk"}
    problem = UnfusedProblem.make(kind, (9, 18), (4, 9), 6, 48, **options)  # type: ignore[arg-type]
    for seed in range(3):
        func = rng.choice(cpu_unfused.SPACE.formulations(problem, target))
        found = cpu_unfused.SPACE.apply(func, target, Plan(sample=True, seed=seed + 1))
        assert found is not None
        assert found.points > 1 or kind in ("av_transposed", "bias_sums")
        modules.append(found.schedule.mod)
    for kernel in compile_all(modules):
        check(problem, kernel, 1)


def test_every_tile_of_sums_over_queries_gives_the_same_numbers() -> None:
    target, modules = detect_target(), []
    sums = UnfusedProblem.make("av_transposed", (6, 7), 3, 2, 24)
    bias = UnfusedProblem.make("bias_sums", (6, 7), 3, 2, 1)
    problems = [sums, sums, sums, bias, bias]
    tiles = [TransposedTile(8, 3), TransposedTile(4, 2), TransposedTile(1, 1), TransposedTile(tokens=5)]
    tiles.append(TransposedTile(tokens=42))
    for problem, tile in zip(problems, tiles, strict=True):
        found = cpu_unfused.SPACE.apply(transposed(problem, tile), target)
        assert found is not None
        modules.append(found.schedule.mod)
    for problem, kernel in zip(problems, compile_all(modules), strict=True):
        check(problem, kernel, 2)


def test_runs_are_bit_equal_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm_na.jit import runtime

    sizes: tuple[Any, ...] = ((29, 17), (7, 5), 2, 16)
    steps = [UnfusedProblem.make(kind, *sizes, heads_kv=1) for kind in KINDS]
    for problem in (*steps, BackwardProblem.make(*sizes, heads_kv=1, bias=True)):
        kernel, runs = build.kernel_for(problem).function, []
        case = make_case(problem, 3, "cpu")
        for threads in ("1", "2", "2"):
            monkeypatch.setenv("TVM_NA_NUM_THREADS", threads)
            runtime.use_threads(2**40)
            outputs = case.outputs()
            kernel(*case.inputs, *outputs)
            runs.append(outputs)
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("name", ["llvm-x86-avx512", "llvm-x86-sse4", "llvm-aarch64-neon"])
def test_other_machines_have_schedules(name: str) -> None:
    for kind in KINDS:
        assert scheduled(UnfusedProblem.make(kind, (9, 10), 5, 2, 40, is_causal=(False, True)), parse_target(name))


def test_a_window_wastes_few_lanes() -> None:
    avx2, avx512 = (NATarget("x", "llvm", "", "", (), size, 16) for size in (32, 64))
    first = [cpu_unfused.lane_vectors(UnfusedProblem.make("qk", 64, k, 1, 8), avx2)[0] for k in (1, 3, 7, 8, 13)]
    assert first == [2, 4, 8, 8, 8]
    assert cpu_unfused.lane_vectors(UnfusedProblem.make("qk", 64, 7, 1, 8), avx512)[0] == 8


def test_the_space_refuses_what_it_does_not_serve() -> None:
    target, problem = detect_target(), UnfusedProblem.make("qk", (5, 5), 3, 1, 4)
    assert cpu_unfused.SPACE.apply(forward(problem.forward, LanesTile(1, 8)), target) is None
    parts = UnfusedProblem.make("bias_parts", (5, 5), 3, 1, 4)
    assert spaces_for(parts, target) == []
    assert "bias_sums" in parts.unsupported(target.kind)
    with pytest.raises(ValueError, match="sketch: required one of rows in parallel"):
        cpu_unfused.SPACE.apply(cpu_unfused.SPACE.formulations(problem, target)[0], target, Plan("none"))
