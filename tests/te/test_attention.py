"""The tensor expressions that serve every problem, compiled as they stand, against the reference."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import edges
from tests.conftest import TOLERANCE
from tests.helpers import Inputs, random_inputs, random_problem, reference64, relative_error
from tests.te.expressions import assert_local, assert_signature, call, compiled
from tvm_na.problems.attention import NAProblem

ALL: dict[str, Any] = {"bias": True, "return_lse": True}
PROBLEMS = {
    "1d": NAProblem.make(7, 3, 2, 4),
    "1d-k1": NAProblem.make(5, 1, 1, 4, **ALL),
    "1d-whole": NAProblem.make(6, 6, 1, 4, is_causal=True, **ALL),
    "1d-causal-dilated": NAProblem.make(11, 3, 2, 4, dilation=3, stride=2, is_causal=True, dtype="float64", **ALL),
    "2d": NAProblem.make((5, 6), 3, 2, 4, dtype="float64"),
    "2d-bias": NAProblem.make((5, 6), 3, 2, 4, bias=True),
    "2d-lse": NAProblem.make((5, 6), 3, 2, 4, return_lse=True),
    "2d-even": NAProblem.make((5, 6), (4, 2), 2, 4, stride=(3, 2), dtype="float64", **ALL),
    "2d-gqa": NAProblem.make((5, 6), 3, 6, 4, heads_kv=2, head_dim_v=3, dtype="float64", **ALL),
    "2d-dilated": NAProblem.make((7, 9), 3, 2, 4, dilation=(2, 3), stride=2, dtype="float64", **ALL),
    "2d-causal": NAProblem.make((7, 6), (3, 4), 1, 4, dilation=(2, 1), stride=(1, 3), is_causal=True, **ALL),
    "2d-half-causal": NAProblem.make((5, 7), 3, 2, 4, dilation=(1, 2), is_causal=(False, True), dtype="float64"),
    "2d-float16": NAProblem.make((5, 6), 3, 2, 12, dtype="float16", **ALL),
    "2d-bfloat16": NAProblem.make((5, 6), 3, 2, 12, dtype="bfloat16", **ALL),
    "3d": NAProblem.make((3, 4, 3), 3, 1, 4, dtype="float64"),
    "3d-all": NAProblem.make(
        (4, 3, 5),
        (2, 3, 2),
        4,
        4,
        stride=(2, 1, 2),
        dilation=(2, 1, 2),
        is_causal=(True, False, True),
        heads_kv=2,
        head_dim_v=5,
        **ALL,
    ),
}


#: By name: the parts of a dot product and the lanes of the gather formulation, None for the natural one.
FORMS: dict[str, tuple[int, int] | None] = {"natural": None, "gather": (4, 0), "gather in lanes": (1, 4)}


def expression(form: str, problem: NAProblem) -> Any:
    from tvm_na.te.attention import definition, gather
    from tvm_na.te.attention.gather_tile import GatherTile

    sizes = FORMS[form]
    return definition.forward(problem) if sizes is None else gather.forward(problem, GatherTile(*sizes))


@functools.cache
def kernel_of(form: str, problem: NAProblem) -> Any:
    return compiled(expression(form, problem))


def run(form: str, problem: NAProblem, inputs: Inputs, scale: float) -> tuple[Tensor, Tensor | None]:
    """Output and log-sum-exp (None if the problem has none), written over NaN; the inputs stay as they are."""
    query, key, value, rpb = inputs
    accum = getattr(torch, problem.accum_dtype)
    out = torch.full((*query.shape[:-1], problem.head_dim_v), math.nan, dtype=query.dtype)
    lse = torch.full(query.shape[:-1], math.nan, dtype=accum) if problem.return_lse else None
    arguments = [query, key, value, torch.tensor([scale], dtype=accum), rpb]
    call(kernel_of(form, problem), arguments, [out, lse])
    return out, lse


def assert_right(form: str, problem: NAProblem, batch: int, scale: float) -> None:
    inputs = random_inputs(problem, batch, seed=batch)
    out, lse = run(form, problem, inputs, scale)
    ref_out, ref_lse = reference64(problem, inputs, scale)
    assert relative_error(out, ref_out) <= TOLERANCE[problem.dtype]
    if lse is not None:
        assert relative_error(lse, ref_lse) <= TOLERANCE[problem.accum_dtype]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("name", PROBLEMS)
def test_one_kernel_serves_every_batch(form: str, name: str) -> None:
    for batch in (1, 3):
        assert_right(form, PROBLEMS[name], batch, 0.6)


@pytest.mark.parametrize("seed", range(6))
def test_random_problems(form: str, seed: int) -> None:
    rng = random.Random(seed)
    dtype = rng.choice(["float32", "float64"])
    problem = random_problem(
        rng, rank=1 + seed % 3, sizes=(3, 6), head_dim=4, head_dim_v=rng.choice([4, 12]), dtype=dtype
    )
    assert_right(form, problem, 2, 0.5)


@pytest.mark.parametrize("scale", [0.0, -1.5, 30.0])
def test_any_scale(form: str, scale: float) -> None:
    """Zero, negative, and so large that a softmax without its shift would overflow."""
    assert_right(form, PROBLEMS["2d-lse"], 1, scale)
    assert_right(form, PROBLEMS["2d-half-causal"], 1, scale)


def test_corners_on_their_own(form: str) -> None:
    """The corner tokens see the clamped window, each token of which has the same weight at scale 0."""
    problem = PROBLEMS["2d-lse"]
    query, key, value, _ = random_inputs(problem, batch=1, seed=0)
    out, lse = run(form, problem, (query, key, value, None), 0.0)
    assert lse is not None
    corners = {(0, 0): (0, 0), (0, 5): (0, 3), (4, 0): (2, 0), (4, 5): (2, 3)}
    for (y, x), (top, left) in corners.items():
        mean = value[:, top : top + 3, left : left + 3].mean(dim=(1, 2))
        assert relative_error(out[:, y, x], mean) <= TOLERANCE["float32"], (y, x)
        assert relative_error(lse[:, y, x], torch.full((1, 2), math.log(9))) <= TOLERANCE["float32"], (y, x)


@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("name", ["1d-causal-dilated", "2d-dilated", "2d-causal", "2d-half-causal", "3d-all"])
def test_what_lies_outside_a_window_does_not_act(form: str, name: str, poison: float) -> None:
    assert_local(PROBLEMS[name], lambda inputs: run(form, PROBLEMS[name], inputs, 0.6), poison)


def at_edges(form: str, problem: NAProblem, tensors: edges.Tensors, scale: float) -> edges.Tensors:
    query, key, value, rpb = (tensors[name] for name in edges.INPUTS[:4])
    out, lse = run(form, problem, (query, key, value, rpb), scale)
    assert lse is not None
    return {"out": out, "lse": lse}


@pytest.mark.parametrize("dtype", edges.DTYPES)
def test_values_at_the_edge(form: str, dtype: str) -> None:
    problem = edges.problem_of("causal, dilated", dtype)
    for edge in edges.EDGES:
        edges.assert_edge(problem, edge, functools.partial(at_edges, form, problem))


@pytest.mark.parametrize("name", edges.INPUTS[:4])
def test_how_far_a_bad_number_reaches(form: str, name: str) -> None:
    problem = edges.problem_of("causal, dilated", "float32")
    for poison in (math.nan, math.inf, -math.inf):
        edges.assert_reach(problem, name, poison, functools.partial(at_edges, form, problem))


def test_parts_divide_the_head_dimension() -> None:
    from tvm_na.te.attention.gather import forward
    from tvm_na.te.attention.gather_tile import GatherTile

    with pytest.raises(ValueError, match="parts: required a divisor of head_dim 4, got 3"):
        forward(PROBLEMS["2d"], GatherTile(3))


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "rpb"])
@pytest.mark.parametrize("return_lse", [False, True], ids=["out", "lse"])
def test_signature(bias: bool, return_lse: bool) -> None:
    from tvm_na.te.attention.definition import forward

    problem = dataclasses.replace(PROBLEMS["2d-gqa"], bias=bias, return_lse=return_lse, dtype="float16")
    tokens = ["batch", "5", "6"]
    shapes = {
        "query": [*tokens, "6", "4"], "key": [*tokens, "2", "4"], "value": [*tokens, "2", "3"], "scale": ["1"],
        "rpb": ["6", "5", "5"], "out": [*tokens, "6", "3"], "lse": [*tokens, "6"],
    }  # fmt: skip
    wanted = {name: s for name, s in shapes.items() if (bias or name != "rpb") and (return_lse or name != "lse")}
    assert_signature(forward(problem), problem, wanted, {"scale", "lse"})
