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


@functools.lru_cache(maxsize=2)
def case_of(problem: Problem, batch: int = 1, formulation: str = "") -> Case:
    """:func:`make_case` on the CPU, the last of which are kept."""
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


@make_case.register
def _(problem: BackwardProblem, batch: int, device: str, formulation: str = "") -> Case:
    return make_backward_case(problem, batch, device)


@make_case.register
def _(problem: UnfusedProblem, batch: int, device: str, formulation: str = "") -> Case:
    return make_unfused_case(problem, batch, device)


@make_case.register
def _(problem: DenseProblem, batch: int, device: str, formulation: str = "") -> Case:
    return make_dense_case(problem, batch, formulation)


def budget_of(problem: Problem) -> float:
    """The largest relative error of a kernel's outputs."""

    own = GRADIENT_BUDGET if isinstance(problem, (BackwardProblem, UnfusedProblem)) else {}
    return own.get(problem.dtype, ERROR_BUDGET[problem.dtype])


def _expected(problem: NAProblem, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Output and, where the problem has it, log-sum-exp; one sample and head after the other, since the reference
    gathers every window."""
    import torch

    with torch.inference_mode():
        found = [_of_sample(problem, inputs, n) for n in range(len(inputs[0]))]
        out, lse = (torch.cat(parts) for parts in zip(*found, strict=True))
    return (out, lse) if problem.return_lse else (out,)


def _of_sample(problem: NAProblem, inputs: tuple[Tensor, ...], sample: int) -> tuple[Tensor, Tensor]:
    import torch

    from tvm_na.reference import attention as reference

    query, key, value = (t[sample : sample + 1].double() for t in inputs[:3])
    scale, *rpb = (t.double() for t in inputs[3:])
    group = problem.heads // problem.heads_kv
    one = dataclasses.replace(problem, heads=group, heads_kv=1)
    found = []
    for head in range(problem.heads_kv):
        q = query[..., head * group : (head + 1) * group, :]
        k, v = (t[..., head : head + 1, :] for t in (key, value))
        bias = rpb[0][head * group : (head + 1) * group] if rpb else None
        found.append(reference.neighborhood_attention(one, q, k, v, float(scale), bias))
    out, lse = (torch.cat(parts, dim=3) for parts in zip(*found, strict=True))
    return out, lse
