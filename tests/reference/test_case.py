"""Inputs and what is right, against which kernels are checked before they are timed."""

from __future__ import annotations

import random

import pytest
import torch

from tests.helpers import random_problem, relative_error
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference
from tvm_na.reference.case import DISTINCT, Case, WrongNumbers
from tvm_na.reference.cases import case_of, make_case


@pytest.mark.parametrize("seed", range(6))
def test_a_case_has_what_the_reference_computes(seed: int) -> None:
    rank, lse = 1 + seed % 3, bool(seed % 2)
    problem = random_problem(random.Random(seed), rank=rank, sizes=(4, 9), bias=True, return_lse=lse)
    case = case_of(problem)
    query, key, value, scale, rpb = (t.double() for t in case.inputs)
    right = reference.neighborhood_attention(problem, query, key, value, float(scale), rpb)
    assert len(case.expected) == 1 + problem.return_lse
    assert all(relative_error(found, wanted) < 1e-14 for found, wanted in zip(case.expected, right, strict=False))
    assert [t.shape for t in case.outputs()] == [t.shape for t in case.expected]
    assert all(t.isnan().all() for t in case.outputs())


def test_a_case_refuses_wrong_numbers_and_nan() -> None:
    right = torch.rand(3, dtype=torch.float64)
    case = Case(NAProblem.make(3, 1, 1, 1), (), (right,))
    case.check([right.float()], 1e-6)
    with pytest.raises(WrongNumbers, match="out: required a relative error <= 1e-06, got"):
        case.check([right.float() + 1e-3], 1e-6)
    with pytest.raises(WrongNumbers):
        case.check([torch.full((3,), torch.nan)], 1e-6)


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_a_batch_repeats_a_few_samples_and_all_of_it_is_checked(batch: int) -> None:
    problem = NAProblem.make((5, 6), 3, 2, 8, bias=True, return_lse=True)
    case = make_case(problem, batch, "cpu")
    query, key, value, scale, rpb = (t.double() for t in case.inputs)
    out, lse = reference.neighborhood_attention(problem, query, key, value, float(scale), rpb)
    assert [len(t) for t in case.expected] == [min(batch, DISTINCT)] * 2
    assert [len(t) for t in case.outputs()] == [batch] * 2
    assert not torch.equal(query[0], query[1])
    case.check([out, lse], 1e-13)
    for sample in range(batch):
        wrong = out.clone()
        wrong[sample, 0, 0, 0, 0] += 1.0
        with pytest.raises(WrongNumbers, match="out"):
            case.check([wrong, lse], 1e-13)
        with pytest.raises(WrongNumbers, match="lse"):
            case.check([out, lse.roll(1, dims=0) if batch % DISTINCT else lse + 1], 1e-13)


def test_halves_are_drawn_as_they_are_and_judged_in_float64() -> None:
    problem = NAProblem.make((5, 6), 3, 1, 8, dtype="float16", return_lse=True)
    case = case_of(problem, 2)
    assert [t.dtype for t in case.inputs] == [torch.float16] * 3 + [torch.float32]
    assert [t.dtype for t in case.outputs()] == [torch.float16, torch.float32]
    assert {t.dtype for t in case.expected} == {torch.float64}


def test_a_case_of_attention_is_the_same_for_every_formulation() -> None:
    """What is right takes long to make, and has nothing to do with how it is computed."""
    problem = NAProblem.make((9, 9), 3, 1, 8)
    assert case_of(problem, 1, '{"formulation": "lanes"}') is case_of(problem, 1, "") is case_of(problem)
