"""Values at the edge, by the operator as it is called: compiled for this CPU, and the reference, in every dtype."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from tests import edges
from tests.conftest import TOLERANCE
from tests.helpers import random_additional, relative_error
from tests.ops.gradients import NAMES
from tvm_na import merge_attentions, na2d, na2d_av, na2d_qk
from tvm_na.problems.attention import NAProblem
from tvm_na.reference.attention import softmax_and_lse


def run(problem: NAProblem, tensors: edges.Tensors, scale: float, backend: str = "compiled") -> edges.Tensors:
    """Results and gradients by name."""
    leaves = [tensors[name].requires_grad_() for name in edges.INPUTS[:4]]
    results = na2d(*leaves[:3], *problem.window, scale, rpb=leaves[3], return_lse=True, backend=backend)
    found = torch.autograd.grad(results, leaves, [tensors["d_out"], tensors["d_lse"]])
    return {"out": results[0].detach(), "lse": results[1].detach(), **dict(zip(NAMES, found, strict=True))}


@pytest.mark.parametrize("dtype", edges.DTYPES)
@pytest.mark.parametrize("edge", edges.EDGES)
@pytest.mark.parametrize("size", edges.SIZES)
def test_finite_answers(size: str, edge: str, dtype: str) -> None:
    problem = edges.problem_of(size, dtype)
    edges.assert_edge(problem, edge, functools.partial(run, problem))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("name", edges.INPUTS)
@pytest.mark.parametrize("size", edges.SIZES)
def test_how_far_a_bad_number_reaches(size: str, name: str, poison: float) -> None:
    for dtype in ("float32", "float16", "bfloat16"):
        problem = edges.problem_of(size, dtype)
        edges.assert_reach(problem, name, poison, functools.partial(run, problem))


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_a_bad_value_in_a_window_without_scores_acts_on_all_of_that_window(backend: str) -> None:
    """Weights of 0 times its NaN, as autograd and the gradients that are written out both have it."""
    problem = edges.problem_of("plain", "float32")
    tensors = edges.tensors_of(problem)
    tensors["rpb"][:] = -math.inf
    tensors["value"][0, 3, 3, 0, 5] = math.nan
    wanted = edges.right(problem, tensors, 0.5)
    for name, found in run(problem, {n: t.clone() for n, t in tensors.items()}, 0.5, backend).items():
        assert torch.equal(found.isnan(), wanted[name].isnan()), name
    assert wanted["d_key"].isnan()[0, 2:5, 2:5, 0].all()


# --- in two steps


def in_steps(problem: NAProblem, tensors: edges.Tensors, scale: float) -> edges.Tensors:
    """The same through scores and weights."""
    query, key, value, rpb = leaves = [tensors[name].requires_grad_() for name in edges.INPUTS[:4]]
    weights, lse = softmax_and_lse(na2d_qk(query, key, *problem.window, scale, rpb=rpb, backend="compiled"))
    out = na2d_av(weights, value, *problem.window, backend="compiled")
    found = torch.autograd.grad([out, lse], leaves, [tensors["d_out"], tensors["d_lse"]])
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(NAMES, found, strict=True))}


@pytest.mark.parametrize("dtype", ["float32", "float64"])  # halves round scores and weights between the steps
@pytest.mark.parametrize("size", edges.SIZES)
def test_finite_answers_in_steps(size: str, dtype: str) -> None:
    problem = edges.problem_of(size, dtype)
    for edge in edges.EDGES:
        edges.assert_edge(problem, edge, functools.partial(in_steps, problem))


@pytest.mark.parametrize("name", edges.INPUTS)
@pytest.mark.parametrize("size", edges.SIZES)
def test_how_far_a_bad_number_reaches_in_steps(size: str, name: str) -> None:
    for dtype in ("float32", "bfloat16"):
        problem = edges.problem_of(size, dtype)
        for poison in (math.nan, math.inf, -math.inf):
            edges.assert_reach(problem, name, poison, functools.partial(in_steps, problem))


# --- merged


@pytest.mark.parametrize("edge", ["no scores", "no scores in a corner"])
def test_additional_keys_beside_windows_without_scores(edge: str) -> None:
    """Queries see these keys alone; where they have no scores either, there are zeros, and no gradients."""
    problem = edges.problem_of("plain", "float64")
    tensors = edges.tensors_of(problem)
    edges.EDGES[edge].change(tensors)
    tensors["query"][..., 0] = tensors["query"][..., 0].abs()
    keys, values = random_additional(problem, 1, 2, 0)
    results = {}
    for first in (0.5, -math.inf):
        keys[..., 0] = first
        for backend in ("compiled", "reference"):
            leaves = [tensors[name].clone().requires_grad_() for name in ("value", "rpb")]
            given = (tensors["query"], tensors["key"], leaves[0], 3)
            options = {"additional_keys": keys, "additional_values": values, "backend": backend}
            out, lse = na2d(*given, scale=0.5, rpb=leaves[1], return_lse=True, **options)
            found = torch.autograd.grad([out, lse], leaves, [tensors["d_out"], tensors["d_lse"]])
            results[backend] = (out, lse.nan_to_num(neginf=0.0), *found)
            assert lse.isneginf().any() == (first == -math.inf)
        for compiled, wanted in zip(results["compiled"], results["reference"], strict=True):
            assert relative_error(compiled, wanted) <= TOLERANCE["float64"]


def test_parts_without_keys_add_nothing() -> None:
    out, lse = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3)
    none = torch.zeros_like(out), torch.full_like(lse, -math.inf)
    lse[0, 0] = -math.inf
    out[0, 0] = 0.0
    leaves = out.requires_grad_(), lse.requires_grad_()
    merged = merge_attentions([out, none[0]], [lse, none[1]])
    assert torch.equal(merged[0], out)
    assert torch.equal(merged[1], lse)
    gradients = torch.autograd.grad(merged, leaves, [torch.ones_like(out), torch.ones_like(lse)])
    for gradient, like in zip(gradients, (lse[..., None].expand_as(out), lse), strict=True):
        assert relative_error(gradient, like.isfinite().float()) <= TOLERANCE["float32"]
