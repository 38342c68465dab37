"""The tensor expression of the gradients, compiled as it stands, against autograd of the reference in float64."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import edges
from tests.conftest import TOLERANCE
from tests.helpers import Inputs, random_inputs, random_problem, relative_error
from tests.ops.gradients import assert_as_exact_as_pytorch, random_gradients, wanted_by_name
from tests.te.expressions import assert_gradients_local, assert_signature, compiled, gradients_by
from tests.te.test_attention import PROBLEMS
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem

#: d_out, and d_lse or None.
Gradients = tuple[Tensor, Tensor | None]


@functools.cache
def kernel_of(problem: NAProblem) -> Any:
    from tvm_na.te.backward.definition import backward

    return compiled(backward(BackwardProblem(problem)))


def run(problem: NAProblem, inputs: Inputs, gradients: Gradients, scale: float) -> dict[str, Tensor]:
    return gradients_by(kernel_of(problem), problem, inputs, gradients, scale)


def assert_right(problem: NAProblem, batch: int, scale: float) -> None:
    inputs, gradients = random_inputs(problem, batch, seed=batch), random_gradients(problem, batch)
    found = run(problem, inputs, gradients, scale)
    wanted = wanted_by_name(problem, inputs, gradients, scale)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert relative_error(gradient, wanted[name]) <= TOLERANCE[problem.dtype], name


@pytest.mark.parametrize("name", PROBLEMS)
def test_one_kernel_serves_every_batch(name: str) -> None:
    for batch in (1, 3):
        assert_right(PROBLEMS[name], batch, 0.6)


@pytest.mark.parametrize("seed", range(15))
def test_random_problems(seed: int) -> None:
    rng = random.Random(seed)
    dtype = rng.choice(["float32", "float64", "float64", "float16", "bfloat16"])
    rank = 1 + seed % 3
    sizes = {1: (3, 17), 2: (3, 8), 3: (2, 5)}[rank]
    head_dim_v = rng.choice([4, 3, 5])
    assert_right(random_problem(rng, rank=rank, sizes=sizes, head_dim=4, head_dim_v=head_dim_v, dtype=dtype), 2, 0.5)


@pytest.mark.parametrize("scale", [0.0, -1.5, 10.0])
def test_any_scale(scale: float) -> None:
    """Zero, negative, and so large that a window is all but one key."""
    assert_right(PROBLEMS["2d-even"], 1, scale)
    assert_right(PROBLEMS["2d-half-causal"], 1, scale)


@pytest.mark.parametrize("name", ["2d-lse", "2d-bias"])
def test_large_scores(name: str) -> None:
    problem = PROBLEMS[name]
    assert_as_exact_as_pytorch(problem, functools.partial(run, problem))


def test_corner_keys_on_their_own() -> None:
    """Keys at a border are seen by fewer queries than a window has keys; at scale 0 all weights are the same."""
    problem = PROBLEMS["2d-lse"]
    inputs, (d_out, d_lse) = random_inputs(problem, batch=1, seed=0), random_gradients(problem, 1)
    found = run(problem, inputs, (d_out, d_lse), 0.0)
    rows, columns = {0: (0, 2), 1: (0, 3), 2: (0, 5), 4: (3, 5)}, {0: (0, 2), 1: (0, 3), 2: (0, 4), 5: (4, 6)}
    for y, (top, bottom) in rows.items():
        for x, (left, right) in columns.items():
            wanted = d_out[:, top:bottom, left:right].sum(dim=(1, 2)) / 9
            assert relative_error(found["d_value"][:, y, x], wanted) <= TOLERANCE["float32"], (y, x)
    assert not found["d_query"].any() and not found["d_key"].any()


def test_the_corner_of_the_bias_on_its_own() -> None:
    """Its first entry serves one pair alone: the last query and the first key of its window; the last, the opposite."""
    problem = PROBLEMS["2d-bias"]
    query, key, value, rpb = random_inputs(problem, batch=1, seed=0)
    assert rpb is not None
    d_out, _ = random_gradients(problem, 1)
    found = run(problem, (query, key, value, torch.zeros_like(rpb)), (d_out, None), 0.0)["d_rpb"]
    pairs = {(0, 0): ((4, 5), (2, 3)), (0, 4): ((4, 0), (2, 2)), (4, 0): ((0, 5), (2, 3)), (4, 4): ((0, 0), (2, 2))}
    for (e, f), ((y, x), (j, i)) in pairs.items():
        window = value[0, min(y, 2) : min(y, 2) + 3, min(x, 3) : min(x, 3) + 3].double()
        d_weights = (d_out[0, y, x].double() * window).sum(-1)
        wanted = ((d_out[0, y, x].double() * value[0, j, i]).sum(-1) - d_weights.mean(dim=(0, 1))) / 9
        assert relative_error(found[:, e, f], wanted) <= TOLERANCE["float32"], (e, f)


@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize(
    "name", ["1d-causal-dilated", "2d-dilated", "2d-even", "2d-gqa", "2d-causal", "2d-half-causal", "3d-all"]
)
def test_what_a_query_does_not_see_does_not_act(name: str, poison: float) -> None:
    problem = PROBLEMS[name]
    assert_gradients_local(problem, lambda inputs, gradients: run(problem, inputs, gradients, 0.6), poison)


def at_edges(problem: NAProblem, tensors: edges.Tensors, scale: float) -> edges.Tensors:
    query, key, value, rpb, d_out, d_lse = (tensors[name] for name in edges.INPUTS)
    return run(problem, (query, key, value, rpb), (d_out, d_lse), scale)


@pytest.mark.parametrize("dtype", edges.DTYPES)
def test_values_at_the_edge(dtype: str) -> None:
    problem = edges.problem_of("causal, dilated", dtype)
    for edge in edges.EDGES:
        edges.assert_edge(problem, edge, functools.partial(at_edges, problem))


@pytest.mark.parametrize("name", edges.INPUTS)
def test_how_far_a_bad_number_reaches(name: str) -> None:
    problem = edges.problem_of("causal, dilated", "float32")
    for poison in (math.nan, math.inf, -math.inf):
        edges.assert_reach(problem, name, poison, functools.partial(at_edges, problem))


def test_an_empty_batch_has_a_bias_gradient_of_zero() -> None:
    problem = PROBLEMS["2d-bias"]
    found = run(problem, random_inputs(problem, 0, seed=0), random_gradients(problem, 0), 0.6)
    assert torch.equal(found["d_rpb"], torch.zeros(problem.bias_shape))


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "rpb"])
@pytest.mark.parametrize("return_lse", [False, True], ids=["out", "lse"])
def test_signature(bias: bool, return_lse: bool) -> None:
    from tvm_na.te.backward.definition import backward

    options: dict[str, Any] = {"dtype": "float16", "bias": bias, "return_lse": return_lse}
    problem = BackwardProblem.make((5, 6), 3, 6, 4, heads_kv=2, head_dim_v=3, **options)
    tokens = ["batch", "5", "6"]
    shapes = {
        "query": [*tokens, "6", "4"], "key": [*tokens, "2", "4"], "value": [*tokens, "2", "3"], "scale": ["1"],
        "rpb": ["6", "5", "5"], "lse": [*tokens, "6"], "d_out": [*tokens, "6", "3"], "d_lse": [*tokens, "6"],
    }  # fmt: skip
    shapes |= {f"d_{name}": shapes[name] for name in ("query", "key", "value", "rpb")}
    left_out = ({"rpb", "d_rpb"} if not bias else set()) | ({"d_lse"} if not return_lse else set())
    wanted = {name: shape for name, shape in shapes.items() if name not in left_out}
    assert_signature(backward(problem), problem, wanted, {"scale", "lse", "d_lse"})
