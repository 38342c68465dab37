"""The reference at the edge: against brute force, whose gradients are PyTorch's, and itself in every dtype."""

from __future__ import annotations

import math

import pytest
import torch

from tests import brute, edges
from tests.conftest import TOLERANCE
from tests.helpers import relative_error
from tests.ops.gradients import NAMES
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference


def autograd(problem: NAProblem, tensors: edges.Tensors, scale: float) -> edges.Tensors:
    leaves = [tensors[name].requires_grad_() for name in edges.INPUTS[:4]]
    results = reference.neighborhood_attention(problem, *leaves[:3], scale, leaves[3])
    found = torch.autograd.grad(results, leaves, [tensors["d_out"], tensors["d_lse"]])
    return {"out": results[0].detach(), "lse": results[1].detach(), **dict(zip(NAMES, found, strict=True))}


def written_out(problem: NAProblem, tensors: edges.Tensors, scale: float) -> edges.Tensors:
    """The gradients without autograd."""
    query, key, value, rpb, d_out, d_lse = (tensors[name] for name in edges.INPUTS)
    found = reference.gradients(problem, query, key, value, scale, rpb, d_out, d_lse)
    return {name: t for name, t in zip(NAMES, found, strict=True) if t is not None}


@pytest.mark.parametrize("edge", ["no scores", "no scores in a corner", "some scores", "large negative biases"])
@pytest.mark.parametrize("size", edges.SIZES)
def test_against_brute_force(size: str, edge: str) -> None:
    problem = edges.problem_of(size, "float64")
    tensors = edges.tensors_of(problem)
    edges.EDGES[edge].change(tensors)
    wanted = edges.right(problem, tensors, 0.5)
    leaves = [tensors[name].requires_grad_() for name in edges.INPUTS[:4]]
    out, lse = brute.attention(problem, *leaves[:3], 0.5, leaves[3])
    assert relative_error(out, wanted["out"]) <= TOLERANCE["float64"]
    assert torch.equal(lse.isneginf(), wanted["lse"].isneginf())
    there = lse.isfinite()
    assert not there.any() or relative_error(lse[there], wanted["lse"][there]) <= TOLERANCE["float64"]
    found = torch.autograd.grad(out, leaves, tensors["d_out"])
    tensors["d_lse"] = torch.zeros_like(tensors["d_lse"])
    for name, gradient in edges.right(problem, tensors, 0.5).items():
        if name in NAMES:
            assert relative_error(found[NAMES.index(name)], gradient) <= TOLERANCE["float64"], name


@pytest.mark.parametrize("dtype", edges.DTYPES)
@pytest.mark.parametrize("edge", edges.EDGES)
def test_finite_answers(edge: str, dtype: str) -> None:
    problem = edges.problem_of("plain", dtype)
    edges.assert_edge(problem, edge, lambda tensors, scale: autograd(problem, tensors, scale))
    edges.assert_edge(problem, edge, lambda tensors, scale: written_out(problem, tensors, scale))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("name", edges.INPUTS)
@pytest.mark.parametrize("size", edges.SIZES)
def test_how_far_a_bad_number_reaches(size: str, name: str, poison: float) -> None:
    problem = edges.problem_of(size, "float32")
    edges.assert_reach(problem, name, poison, lambda tensors, scale: autograd(problem, tensors, scale))
