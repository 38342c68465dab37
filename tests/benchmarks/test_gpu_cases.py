"""What kernels are compared with in the nine-minute run, where every window cannot be gathered."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.gpu import cases
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference
from tvm_na.reference.case import WrongNumbers

PROBLEMS = (
    NAProblem.make((9, 11), (3, 5), 2, 8, dilation=(2, 1), dtype="float64"),
    NAProblem.make(
        (7, 6, 5), (3, 4, 5), 4, 8, heads_kv=2, head_dim_v=4, is_causal=(True, False, True), dtype="float64"
    ),
)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_some_queries_are_those_of_the_definition(problem: NAProblem) -> None:
    case = cases.sampled_case(problem, 2, "cpu")
    query, key, value, scale = case.inputs
    right, _ = reference.neighborhood_attention(problem, query, key, value, float(scale))
    assert {0, math.prod(problem.spatial) - 1} <= set(case.queries.tolist())
    assert torch.allclose(case.expected[0], right[-1].flatten(0, -3)[case.queries], atol=1e-13, rtol=0)
    case.check([right], 1e-13)
    for where, number in ((0, math.nan), (case.queries[3], 9.0)):  # NaN anywhere, and another number where one looks
        wrong = right.clone()
        wrong.flatten(1, -3)[-1 if number == 9 else 0, where, 0, 0] = number
        with pytest.raises(WrongNumbers, match="^out, 8 queries: "):
            case.check([wrong], 1e-13)
