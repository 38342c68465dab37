"""NAProblem: a value with defaults, a text form and checks that say what was wrong."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest
import torch

from tests.helpers import assert_says, bad, random_problem
from tests.problems.bad_calls import BAD_WINDOWS
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.checks import check_scale, per_axis_ints

GOOD: dict[str, Any] = {"spatial": (8, 9), "kernel_size": 3, "heads": 4, "head_dim": 8}
FULL = NAProblem((8, 9), (3, 2), (1, 2), (2, 1), (False, True), 4, 2, 8, 6, "float16", True, True)


# --- the value


def test_defaults() -> None:
    problem = NAProblem.make((8, 9), 3, 4, 16)
    assert problem == NAProblem((8, 9), (3, 3), (1, 1), (1, 1), (False, False), 4, 4, 16, 16, "float32", False, False)
    assert NAProblem.make(7, 3, 1, 8).spatial == (7,)


def test_lists_become_tuples_and_equal_problems_hash_alike() -> None:
    of_lists = NAProblem([8, 9], [3, 2], [1, 2], [2, 1], [False, True], 4, 2, 8, 6, "float16", True, True)  # type: ignore[arg-type]
    assert of_lists == FULL
    assert len({of_lists, FULL}) == 1
    assert all(isinstance(getattr(of_lists, f), tuple) for f in ("spatial", "kernel_size", "stride", "is_causal"))


CHANGES: dict[str, Any] = {
    "spatial": (8, 10), "kernel_size": (3, 3), "stride": (1, 1), "dilation": (1, 1), "is_causal": (True, True),
    "heads": 8, "heads_kv": 4, "head_dim": 6, "head_dim_v": 8, "dtype": "float32", "bias": False, "return_lse": False,
}  # fmt: skip


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(NAProblem)])
def test_every_field_tells_problems_apart(field: str) -> None:
    other = dataclasses.replace(FULL, **{field: CHANGES[field]})
    assert other != FULL
    assert other.to_json() != FULL.to_json()
    assert str(other) != str(FULL)


def test_random_problems_draw_every_option() -> None:
    rng = random.Random(0)
    problems = [random_problem(rng) for _ in range(300)]
    assert {k for p in problems for k in p.kernel_size} == set(range(1, 10))
    assert {d for p in problems for d in p.dilation} >= {1, 2, 3, 4}
    assert {p.heads // p.heads_kv for p in problems} == {1, 2, 3}
    assert {(p.bias, p.return_lse) for p in problems} == {(a, b) for a in (True, False) for b in (True, False)}
    assert {p.is_causal for p in problems} == {(a, b) for a in (True, False) for b in (True, False)}
    assert any(p.head_dim != p.head_dim_v for p in problems)
    assert any(1 < s < k for p in problems for s, k in zip(p.stride, p.kernel_size, strict=True))


def test_random_problems_keep_what_is_fixed() -> None:
    rng = random.Random(0)
    fixed: dict[str, Any] = {"heads": 6, "kernel_size": (7, 4), "stride": 2, "dtype": "float16"}
    fixed |= {"head_dim": 32, "dilation": (1, 3)}
    for _ in range(50):
        problem = random_problem(rng, **fixed)
        assert (problem.heads, problem.head_dim, problem.dtype) == (6, 32, "float16")
        assert (problem.kernel_size, problem.stride, problem.dilation) == ((7, 4), (2, 2), (1, 3))
        assert random_problem(rng, spatial=(5, 6, 7)).spatial == (5, 6, 7)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (NAProblem.make((56, 56), 7, 2, 32), "56x56 heads 2 dim 32 k 7 float32"),
        (NAProblem.make(64, 8, 4, 12, stride=4, dilation=2), "64 heads 4 dim 12 k 8 stride 4 dil 2 float32"),
        (FULL, "8x9 heads 4 kv 2 dim 8/6 k 3x2 stride 1x2 dil 2x1 causal ny float16 rpb lse"),
    ],
    ids=["plain", "strided", "all"],
)
def test_str(problem: NAProblem, text: str) -> None:
    assert str(problem) == text


def test_derived_values() -> None:
    assert FULL.rank == 2
    assert FULL.bias_shape == (4, 5, 3)
    assert FULL.useful_flops == 2 * (8 * 9) * 4 * (3 * 2) * (8 + 6)
    accumulators = {d: dataclasses.replace(FULL, dtype=d).accum_dtype for d in ("float16", "bfloat16", "float32")}
    assert set(accumulators.values()) == {"float32"}
    assert dataclasses.replace(FULL, dtype="float64").accum_dtype == "float64"


# --- its parameters

BAD_PARAMETERS = [
    bad("spatial", (), ValueError, "1 to 3 sizes", "got ()"),
    bad("spatial", (8, 8, 8, 8), ValueError, "1 to 3 sizes", "(8, 8, 8, 8)"),
    bad("spatial", (8, 0), ValueError, ">= 1", "got 0"),
    bad("spatial", (8, 9.0), TypeError, "integer", "float 9.0"),
    bad("spatial", True, TypeError, "integer", "bool True"),
    bad("spatial", 8.0, TypeError, "integer", "float 8.0"),
    bad("heads", 0, ValueError, ">= 1", "got 0"),
    bad("heads", 2.0, TypeError, "integer", "float 2.0"),
    bad("heads", 4, ValueError, "multiple of heads_kv=3", "got 4", name="4-of-3", heads_kv=3),
    bad("heads", 2, ValueError, "multiple of heads_kv=4", "got 2", name="2-of-4", heads_kv=4),
    bad("heads_kv", True, TypeError, "integer", "bool True"),
    bad("heads_kv", 0, ValueError, ">= 1", "got 0"),
    bad("head_dim", -8, ValueError, ">= 1", "got -8"),
    bad("head_dim", "8", TypeError, "integer", "str '8'", head_dim_v=8),
    bad("head_dim_v", 0, ValueError, ">= 1", "got 0"),
    bad("dtype", "float", ValueError, "float16, bfloat16, float32, float64", "'float'"),
    bad("dtype", "int8", ValueError, "float16, bfloat16, float32, float64", "'int8'"),
    bad("dtype", torch.float32, ValueError, "float16, bfloat16, float32, float64", "torch.float32"),
    bad("bias", 1, TypeError, "bool", "1"),
    bad("return_lse", None, TypeError, "bool", "None"),
]


@pytest.mark.parametrize(("argument", "arguments", "error", "says"), BAD_PARAMETERS + BAD_WINDOWS)
def test_bad_parameter(argument: str, arguments: dict[str, Any], error: type[Exception], says: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        NAProblem.make(**{**GOOD, **arguments})
    assert_says(caught, argument, error, says)


@pytest.mark.parametrize("spatial", [8, None, torch.zeros(2)], ids=["int", "none", "tensor"])
def test_the_fields_themselves_are_sequences(spatial: Any) -> None:
    with pytest.raises(ValueError, match=r"^spatial: required 1 to 3 sizes, got "):
        NAProblem(spatial, 3, 1, 1, False, 4, 4, 8, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["stride", "kernel_size"])
def test_the_border_of_what_is_legal(field: str) -> None:
    exact = NAProblem.make(12, 4, 1, 8, dilation=3, stride=4)
    larger: dict[str, Any] = {field: 5}
    with pytest.raises(ValueError, match=f"^{field}: .*got 5"):
        dataclasses.replace(exact, **larger)


def test_per_axis_ints_with_another_minimum() -> None:
    assert per_axis_ints("padding", 0, 2, minimum=0) == (0, 0)
    with pytest.raises(ValueError, match=r"^padding: required an integer >= 0, got -1$"):
        per_axis_ints("padding", (0, -1), 2, minimum=0)


# --- the scale


def test_scale() -> None:
    assert check_scale(None, 16) == 0.25
    assert check_scale(None, 24) == 24**-0.5
    assert check_scale(0, 16) == 0.0
    assert check_scale(-2, 16) == -2.0
    assert isinstance(check_scale(2, 16), float)


@pytest.mark.parametrize(
    ("scale", "error", "says"),
    [
        pytest.param(value, error, says, id=str(value))
        for value, error, says in [
            (math.nan, ValueError, "got nan"),
            (math.inf, ValueError, "got inf"),
            (-math.inf, ValueError, "got -inf"),
            ("0.5", TypeError, "str '0.5'"),
            (True, TypeError, "bool True"),
            (1j, TypeError, "complex 1j"),
            (torch.tensor(0.5), TypeError, "Tensor"),
        ]
    ],
)
def test_bad_scale(scale: Any, error: type[Exception], says: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        check_scale(scale, 8)
    assert_says(caught, "scale", error, [says])
