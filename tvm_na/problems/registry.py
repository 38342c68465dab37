"""What a kernel can compute: the problems of every operator, as one type."""

from __future__ import annotations

import json
import math

from tvm_na.problems import backward, dense
from tvm_na.problems import unfused as unfused_problem
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.dense import DenseProblem
from tvm_na.problems.unfused import UnfusedProblem

#: What a kernel can compute.
Problem = NAProblem | BackwardProblem | DenseProblem | UnfusedProblem

#: The classes of problems by the key ``operator`` of their JSON; attention has none.
PROBLEMS: dict[str | None, type[NAProblem] | type[BackwardProblem] | type[DenseProblem] | type[UnfusedProblem]] = {
    None: NAProblem,
    backward.OPERATOR: BackwardProblem,
    dense.OPERATOR: DenseProblem,
    unfused_problem.OPERATOR: UnfusedProblem,
}


def problem_from_json(text: str) -> Problem:
    """The problem, of whichever operator, that ``to_json`` wrote.

    Raises:
        ValueError: it is of an operator that this version does not know.
    """
    fields = json.loads(text)
    operator = fields.get("operator") if isinstance(fields, dict) else None
    if operator not in PROBLEMS:
        raise ValueError(f"operator: required one of {', '.join(filter(None, PROBLEMS))}, or none, got {operator!r}")
    return PROBLEMS[operator].from_json(text)


def arguments_with_batch(problem: Problem) -> tuple[bool, ...]:
    """Which arguments of a kernel have a batch, in their order, outputs last."""
    if isinstance(problem, DenseProblem):  # x, weight, bias, residual, out
        return (True, False, *[False] * problem.bias, *[True] * problem.residual, True)
    if isinstance(problem, UnfusedProblem):
        if problem.kind == "bias_sums":  # attn, d_rpb
            return (True, False)
        if problem.kind == "bias_parts":  # attn, parts
            return (True, True)
        return (True, True, False, *[False] * problem.forward.bias, True)  # two tensors, scale, rpb, out
    attention = problem.forward if isinstance(problem, BackwardProblem) else problem
    inputs = (True, True, True, False, *[False] * attention.bias)  # query, key, value, scale, rpb
    if isinstance(problem, BackwardProblem):  # lse, d_out, d_lse; d_query, d_key, d_value, d_rpb
        return (*inputs, True, True, *[True] * attention.return_lse, True, True, True, *[False] * attention.bias)
    return (*inputs, True, *[True] * attention.return_lse)  # out, lse


_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "tf32": 4, "float32": 4, "float64": 8}


def bytes_of(problem: Problem) -> int:
    """Bytes of query, key, value and output for a batch of one, each once; of other operators, of all arguments.

    Gradients read the output's gradient and write those of query, key and value.
    """
    if isinstance(problem, DenseProblem):
        return sum(dense.elements_of(problem).values()) * _ITEM_BYTES[problem.dtype]
    if isinstance(problem, UnfusedProblem):
        return sum(problem.elements.values()) * _ITEM_BYTES[problem.dtype]
    attention = problem.forward if isinstance(problem, BackwardProblem) else problem
    channels = attention.heads * (attention.head_dim + attention.head_dim_v)
    channels += attention.heads_kv * (attention.head_dim + attention.head_dim_v)
    if isinstance(problem, BackwardProblem):
        channels += attention.heads * attention.head_dim
        channels += attention.heads_kv * (attention.head_dim + attention.head_dim_v)
    return math.prod(problem.spatial) * channels * _ITEM_BYTES[problem.dtype]
