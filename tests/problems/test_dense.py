"""``DenseProblem``: what it says, what it refuses, its JSON, and how near two of them are."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

import pytest
import torch

from tests.helpers import assert_says, bad
from tests.te.dense_kernels import random_problem
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.dense import DenseProblem
from tvm_na.records import select

CONV = DenseProblem.make((14, 15), 3, 10, kernel_size=3, stride=(2, 1), padding=(1, 0), activation="gelu")
LINEAR = DenseProblem.make(49, 64, 192, residual=True)


def test_it_says_what_it_is() -> None:
    assert (CONV.rank, CONV.out_spatial, CONV.weight_shape) == (2, (7, 13), (10, 3, 3, 3))
    assert CONV.useful_flops == 2 * 7 * 13 * 10 * 27
    assert (LINEAR.rank, LINEAR.out_spatial, LINEAR.useful_flops) == (1, (49,), 2 * 49 * 64 * 192)
    assert str(CONV) == "14x15 channels 3->10 k 3 stride 2x1 pad 1x0 float32 bias gelu"
    assert str(LINEAR) == "49 channels 64->192 float32 bias residual"
    assert dataclasses.replace(LINEAR, dtype="float64").accum_dtype == "float64"


def test_sizes_are_those_of_pytorch() -> None:
    rng = random.Random(0)
    for _ in range(50):
        problem = random_problem(rng)
        x = torch.empty(1, problem.in_channels, *problem.spatial, device="meta")
        weight = torch.empty(problem.out_channels, problem.in_channels, *problem.kernel_size, device="meta")
        convolve = getattr(torch.nn.functional, f"conv{problem.rank}d")
        out = convolve(x, weight, stride=problem.stride, padding=problem.padding)
        assert tuple(out.shape[2:]) == problem.out_spatial


GOOD: dict[str, Any] = {"spatial": (14, 14), "in_channels": 8, "out_channels": 16, "kernel_size": 3, "padding": 1}


@pytest.mark.parametrize(
    ("argument", "arguments", "error", "says"),
    [
        bad("spatial", (), ValueError, "1 to 3 sizes", "()"),
        bad("spatial", (1, 2, 3, 4), ValueError, "1 to 3 sizes"),
        bad("spatial", (14, 0), ValueError, ">= 1", "got 0"),
        bad("spatial", (14, 1.5), TypeError, "an integer", "float 1.5"),
        bad("in_channels", 0, ValueError, ">= 1", "got 0"),
        bad("in_channels", "3", TypeError, "an integer", "str '3'"),
        bad("out_channels", True, TypeError, "an integer", "bool True"),
        bad("kernel_size", (3, 3, 3), ValueError, "2 values", "got 3"),
        bad("kernel_size", 0, ValueError, ">= 1", "got 0"),
        bad("kernel_size", 20, ValueError, "kernel_size <= size + 2 * padding on axis 0", "20 > 14 + 2 * 1"),
        bad("stride", 0, ValueError, ">= 1"),
        bad("padding", -1, ValueError, ">= 0", "got -1"),
        bad("padding", 3, ValueError, "padding < kernel_size on axis 0", "3 >= 3"),
        bad("bias", 1, TypeError, "bool", "int 1"),
        bad("residual", None, TypeError, "bool", "None"),
        bad("activation", "relu", ValueError, "one of none, gelu", "'relu'"),
        bad("dtype", "int32", ValueError, "one of float32, float64, float16, bfloat16", "'int32'"),
        bad("weight_dtype", "int4", ValueError, "one of None, int8", "'int4'"),
    ],
)
def test_bad_arguments(argument: str, arguments: dict[str, Any], error: type[Exception], says: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        DenseProblem.make(**{**GOOD, **arguments})
    assert_says(caught, argument, error, says)


def test_arguments_and_their_sizes() -> None:
    assert [a.has_batch for a in LINEAR.arguments()] == [True, False, False, True, True]
    assert [a.has_batch for a in dataclasses.replace(CONV, bias=False).arguments()] == [True, False, True]
    attention = NAProblem.make((9, 9), 3, 1, 8, bias=True, return_lse=True)
    assert [a.has_batch for a in attention.arguments()] == [True, True, True, False, False, True, True]
    elements, outputs = {a.name: a.elements for a in LINEAR.arguments()}, 49 * 192
    assert elements == {"x": 49 * 64, "weight": 64 * 192, "bias": 192, "residual": outputs, "out": outputs}


def test_narrow_weights_are_told_where_there_are_some() -> None:
    """Records of other problems name those without the field."""
    narrow = dataclasses.replace(CONV, weight_dtype="int8")
    assert "weight_dtype" not in CONV.to_json() and '"weight_dtype":"int8"' in narrow.to_json()
    for problem in (CONV, narrow):
        assert DenseProblem.from_json(problem.to_json()) == problem
    assert str(narrow) == "14x15 channels 3->10 k 3 stride 2x1 pad 1x0 float32 int8 weights bias gelu"
    arguments = {a.name: (a.shape, a.dtype) for a in narrow.arguments()}
    assert arguments["weight"] == ((10, 3, 3, 3), "int8") and arguments["weight_scale"] == ((10,), "float32")
    assert CONV.bytes - narrow.bytes == 3 * 10 * 27 - 4 * 10
    assert CONV.distance(narrow) is None is narrow.distance(CONV)


def test_the_distance() -> None:
    rng = random.Random(2)
    problems = [random_problem(rng) for _ in range(30)]
    for one, other in itertools.combinations(problems, 2):
        there, back = one.distance(other), other.distance(one)
        assert there == pytest.approx(back) if there is not None else back is None
        assert (there is None) == (one.rank != other.rank)
        assert one.distance(one) == 0
    assert LINEAR.distance(LINEAR.with_dtype("float64")) is None
    near = LINEAR.distance(dataclasses.replace(LINEAR, residual=False))
    far = LINEAR.distance(dataclasses.replace(LINEAR, spatial=(196,), in_channels=128))
    assert near is not None and far is not None and 0 < near < 1 < far < select.FARTHEST
