"""Formulations and sketches on a real GPU, in 16 bits and TF32; the way there is rehearsed in the emulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.schedules.cuda_kernels import TARGET, kernel_of
from tests.schedules.gpu_points import BACKWARD, BATCH, FORWARD, built, by_name, points_of, wrong_points
from tvm_na.jit.build import target_for
from tvm_na.jit.scratch import with_scratch
from tvm_na.problems.registry import Problem
from tvm_na.schedules.base import Scheduled
from tvm_na.schedules.cuda.band_sizes import AT_ONCE, COLUMNS_IN_TURN, HEADS_IN_TURN


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORWARD)
def test_gpu_points_are_right(name: str, tmp_path: Path) -> None:
    target = target_for("cuda", 0)
    assert wrong_points(FORWARD[name], target, built(target, tmp_path), "cuda") == {}


@pytest.mark.gpu
@pytest.mark.parametrize("name", BACKWARD)
def test_gpu_points_of_gradients_are_right(name: str, tmp_path: Path) -> None:
    target = target_for("cuda", 0)
    assert wrong_points(BACKWARD[name], target, built(target, tmp_path), "cuda") == {}


# --- without a GPU


def emulated(problem: Problem, points: Sequence[Scheduled]) -> Iterator[Callable[..., None]]:
    for point in points:
        kernel = kernel_of(problem, point)
        yield with_scratch(lambda *t, kernel=kernel: kernel.launch(by_name(problem, t), BATCH), problem)


@pytest.mark.parametrize("problem", [FORWARD["shared_keys-tf32"], BACKWARD["shared_keys-bfloat16"]], ids=str)
def test_points_are_compared(problem: Problem) -> None:
    assert wrong_points(problem, TARGET, emulated, "cpu") == {}


def test_a_point_with_wrong_numbers_is_told_by_name() -> None:
    problem = FORWARD["shared_keys-tf32"]

    def kernels(problem: Problem, points: Sequence[Scheduled]) -> Iterator[Callable[..., None]]:
        (right,) = emulated(problem, points[:1])

        def nearly(*tensors: Any) -> None:
            right(*tensors)
            tensors[-1][2, 0].mul_(1.01)

        yield from (lambda *_: None, nearly, *[right] * (len(points) - 2))

    first, second, *_ = points_of(problem, TARGET)
    wrong = wrong_points(problem, TARGET, kernels, "cpu")
    assert list(wrong) == [first, second] and "got inf" in wrong[first] and "out" in wrong[second]


def test_every_formulation_and_sketch_is_among_the_points() -> None:
    points = list(points_of(FORWARD["nat-float16"], TARGET))
    for sketch in (AT_ONCE, COLUMNS_IN_TURN, HEADS_IN_TURN):
        assert f"cuda-band, formulation 0, {sketch}" in points
    assert {point.split(",")[0] for point in points} == {"cuda-strip", "cuda-band", "cuda-flash", "cuda-gather"}
    gradients = points_of(BACKWARD["nat-float16"], TARGET)
    assert {point.split(",")[0] for point in gradients} == {"cuda-flash-backward", "cuda-backward"}
