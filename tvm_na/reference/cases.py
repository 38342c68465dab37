"""Random inputs of a problem of any operator, and what is right, with the budget of its error."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.dense import DenseProblem
from tvm_na.problems.registry import Problem
from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.reference.accuracy import ERROR_BUDGET
from tvm_na.reference.backward_case import make_backward_case
from tvm_na.reference.case import DISTINCT, Case, draw_inputs
from tvm_na.reference.dense_case import make_dense_case
from tvm_na.reference.unfused_case import make_unfused_case

if TYPE_CHECKING:
    from torch import Tensor

#: The largest relative error of right gradients, where it is more than ``ERROR_BUDGET`` has for the operator:
#: sums of sums.
GRADIENT_BUDGET = {"float32": 5e-6}


def case_of(problem: Problem, batch: int = 1, formulation: str = "") -> Case:
    """:func:`make_case` on the CPU, the last of which are kept."""
    return _kept(problem, batch, formulation if problem.packs_weights else "")


@functools.lru_cache(maxsize=2)
def _kept(problem: Problem, batch: int, formulation: str) -> Case:
    return make_case(problem, batch, "cpu", formulation)


@functools.singledispatch
def make_case(problem: Problem, batch: int, device: str, formulation: str = "") -> Case:
    """Random inputs for ``problem``, the same every time, on a device of PyTorch's.

    A kernel's formulation, as canonical JSON, says how its weights are packed, where it has any.
    """
    raise TypeError(f"problem: required one with random inputs, got {type(problem).__name__}")


@make_case.register
def _(problem: NAProblem, batch: int, device: str, formulation: str = "") -> Case:
    import torch

    distinct = min(batch, DISTINCT)
    drawn = draw_inputs(problem, distinct, device, torch.Generator().manual_seed(0))
    samples = torch.arange(batch, device=device) % distinct
    return Case(problem, (*(t[samples] for t in drawn[:3]), *drawn[3:]), _expected(problem, drawn))


make_case.register(BackwardProblem, make_backward_case)
make_case.register(UnfusedProblem, make_unfused_case)
make_case.register(DenseProblem, make_dense_case)


def budget_of(problem: Problem) -> float:
    """The largest relative error of a kernel's outputs."""
    own = GRADIENT_BUDGET if isinstance(problem, (BackwardProblem, UnfusedProblem)) else {}
    return own.get(problem.dtype, ERROR_BUDGET[problem.dtype])


def _expected(problem: NAProblem, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Output and, where the problem has it, log-sum-exp; one sample and head after the other, since the reference
    gathers every window."""
    import torch

    from tvm_na.reference import attention as reference

    query, key, value, scale, *rpb = inputs
    group = problem.heads // problem.heads_kv
    one = dataclasses.replace(problem, heads=group, heads_kv=1)
    samples = []
    with torch.inference_mode():
        for n in range(len(query)):
            of_heads = []
            for head in range(problem.heads_kv):
                queries, keys = slice(head * group, (head + 1) * group), slice(head, head + 1)
                q, k, v = (t[n : n + 1, ..., h, :].double() for t, h in ((query, queries), (key, keys), (value, keys)))
                bias = rpb[0][queries].double() if rpb else None
                of_heads.append(reference.neighborhood_attention(one, q, k, v, float(scale), bias))
            samples.append([torch.cat(parts, dim=problem.rank + 1) for parts in zip(*of_heads, strict=True)])
        out, lse = (torch.cat(parts) for parts in zip(*samples, strict=True))
    return (out, lse) if problem.return_lse else (out,)
