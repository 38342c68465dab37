"""Dense problems at random, their kernels, and how far those are from PyTorch in float64."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from tests.helpers import relative_error
from tvm_na import settings
from tvm_na.problems.dense import DenseProblem
from tvm_na.reference.case import draw
from tvm_na.reference.dense_case import packed, reference
from tvm_na.schedules.base import Plan, Scheduled
from tvm_na.schedules.cpu import dense as cpu_dense
from tvm_na.targets.target import detect_target
from tvm_na.te.dense.product import DenseTile

_CHANNELS = (1, 3, 8, 10, 16, 24, 31, 48, 64, 100)


def random_problem(rng: random.Random, dtype: str = "float32", weight_dtype: str | None = None) -> DenseProblem:
    """A linear layer or a convolution with any options."""
    rank = rng.choice([1, 1, 2, 2, 2, 3])
    kernel = tuple(rng.choice([1, 2, 3, 3, 5, 7]) for _ in range(rank)) if rank > 1 else (rng.choice([1, 1, 1, 3]),)
    most = {1: 120, 2: 24, 3: 9}[rank]
    return DenseProblem(
        tuple(rng.randint(k, most) for k in kernel),
        rng.choice(_CHANNELS),
        rng.choice(_CHANNELS),
        kernel,
        tuple(rng.randint(1, 4) for _ in kernel),
        tuple(rng.randint(0, k - 1) for k in kernel),
        rng.random() < 0.7,
        rng.choice(["none", "gelu"]),
        rng.random() < 0.5,
        dtype,
        weight_dtype,
    )


def scheduled(problem: DenseProblem, formulation: int = 0, plan: Plan = Plan()) -> tuple[DenseTile, Scheduled]:  # noqa: B008
    """A schedule of a problem for this machine, with a symbolic batch, and its tile."""
    target = detect_target()
    found = cpu_dense.SPACE.apply(cpu_dense.SPACE.formulations(problem, target)[formulation], target, plan)
    assert found is not None
    return cpu_dense.tiles(problem, target)[formulation], found


def compile_all(points: list[Scheduled]) -> list[Any]:
    """Their kernels, compiled on all cores."""
    import tvm

    target = detect_target().tvm_target()
    with ThreadPoolExecutor(settings.available_cores()) as pool:
        return list(pool.map(lambda point: tvm.compile(point.schedule.mod, target=target)["main"], points))


def error_of(problem: DenseProblem, tile: DenseTile, kernel: Any, batch: int, seed: int = 0) -> float:
    """The relative error of a kernel, whose output is NaN before the call."""
    inputs = [a for a in problem.arguments() if a.role == "input"]
    tensors = draw(inputs, batch, "cpu", torch.Generator().manual_seed(seed))
    drawn = {a.name: tensor for a, tensor in zip(inputs, tensors, strict=True)}
    (out,) = (torch.full(a.shape_for(batch), torch.nan, dtype=getattr(torch, a.dtype)) for a in problem.outputs())
    kernel(*(drawn | {"weight": packed(drawn["weight"], problem, tile)}).values(), out)
    return relative_error(out, reference(problem, **drawn))
