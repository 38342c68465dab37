"""Inputs of kernels for gradients and for dense layers, and what is right."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from tests.conftest import GRADIENT_TOLERANCE, TOLERANCE
from tests.helpers import random_problem, relative_error
from tests.te.dense_kernels import compile_all, scheduled
from tests.tune.test_operators import CONV, LINEAR
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.reference import attention as reference
from tvm_na.reference.case import Case, WrongNumbers
from tvm_na.reference.cases import budget_of, case_of, make_case


def test_a_case_has_weights_as_the_kernel_wants_them() -> None:
    for problem in (LINEAR, CONV):
        tile, point = scheduled(problem)
        case = case_of(problem, 2, tile.to_json())
        (kernel,) = compile_all([point])
        outputs = case.outputs()
        kernel(*case.inputs, *outputs)
        case.check(outputs, 2e-6)
        outputs[0][-1, -1, ..., -1] += 1
        with pytest.raises(WrongNumbers, match="out: required a relative error"):
            case.check(outputs, 2e-6)
        assert torch.equal(case_of(problem, 2, tile.to_json()).inputs[0], case.inputs[0])


def gradients(problem: BackwardProblem, case: Case) -> list[Tensor]:
    """The log-sum-exp and the gradients of a whole case, by autograd of the reference in float64."""
    forward = problem.forward
    query, key, value, scale, *others = (t.double() for t in case.inputs)
    rpb = [others.pop(0)] if forward.bias else []
    leaves = [t.clone().requires_grad_() for t in (query, key, value, *rpb)]
    out, lse = reference.neighborhood_attention(forward, *leaves[:3], float(scale), *leaves[3:])
    results = [out, lse][: 1 + forward.return_lse]
    return [lse.detach(), *torch.autograd.grad(results, leaves, others[1:])]


@pytest.mark.parametrize(("seed", "batch"), [(0, 1), (1, 2), (2, 3), (3, 5), (4, 7)])
def test_a_case_has_what_autograd_computes(seed: int, batch: int) -> None:
    forward = random_problem(
        random.Random(seed), sizes=(4, 9), bias=seed % 3 != 1, return_lse=bool(seed % 2), head_dim=4, dtype="float64"
    )
    problem = BackwardProblem(forward)
    case = make_case(problem, batch, "cpu")
    lse, *right = gradients(problem, case)
    assert relative_error(case.inputs[4 + forward.bias], lse) < 1e-14
    assert [t.shape for t in case.outputs()] == [t.shape for t in right]
    assert all(t.isnan().all() for t in case.outputs())
    case.check(right, 1e-13)
    names = [argument.name for argument in problem.arguments() if argument.role == "output"]
    for number, name in enumerate(names):
        wrong = [t.clone(memory_format=torch.contiguous_format) for t in right]
        wrong[number].view(-1)[-1] += 0.5 * right[number].abs().max()
        with pytest.raises(WrongNumbers, match=f"{name}.*: required a relative error"):
            case.check(wrong, 1e-13)
        wrong[number] = right[number] * torch.nan
        with pytest.raises(WrongNumbers, match=name):
            case.check(wrong, 1e-13)


def test_halves_are_drawn_as_they_are_and_judged_in_float64() -> None:
    problem = BackwardProblem.make((5, 6), 3, 1, 8, dtype="bfloat16", bias=True, return_lse=True)
    case = case_of(problem, 2)
    low, single = torch.bfloat16, torch.float32
    assert [t.dtype for t in case.inputs] == [low, low, low, single, low, single, low, single]
    assert [t.dtype for t in case.outputs()] == [low] * 4
    assert {t.dtype for t in case.expected} == {torch.float64}
    case.check(gradients(problem, case)[1:], 1e-3)  # of a log-sum-exp in float32


def test_budgets() -> None:
    assert budget_of(NAProblem.make(9, 3, 1, 8)) == TOLERANCE["float32"]
    for dtype, tolerance in (TOLERANCE | GRADIENT_TOLERANCE).items():
        assert budget_of(BackwardProblem.make(9, 3, 1, 8, dtype=dtype)) == tolerance
