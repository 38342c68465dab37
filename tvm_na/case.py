"""Random inputs of a problem, and what is right: what a kernel must compute before its time counts."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm_na.backward import BackwardProblem
from tvm_na.dense import DenseProblem
from tvm_na.operators import Problem
from tvm_na.problem import NAProblem
from tvm_na.unfused_problem import UnfusedProblem

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Samples of a batch that differ; the others repeat them. No power of two, as strides of a kernel are: a kernel that
#: takes one sample for another does not take it for its equal.
DISTINCT = 3

#: The largest relative error of right gradients, where it is more than ``benchmark.ERROR_BUDGET`` has for the operator:
#: sums of sums.
GRADIENT_BUDGET = {"float32": 5e-6}

# Outputs that add up over the batch, and those that have the dtype of sums.
_OF_THE_BATCH = {"d_rpb"}
_ACCUMULATED = {"lse", "parts"}


class WrongNumbers(Exception):
    """A kernel computed something else than the reference."""


@dataclass(frozen=True)
class Case:
    """Inputs of a problem, and what is right.

    Attributes:
        inputs: Query, key, value, scale and, with a bias, rpb; of other operators, what their kernels read.
        expected: Output and, where the problem has it, log-sum-exp, by the reference in float64, of the first samples;
            those after them repeat them in turns. Of gradients, what the outputs ``names`` are.
        names: Of what is expected; there may be more of them.
    """

    inputs: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]
    names: tuple[str, ...] = ("out", "lse")

    def outputs(self) -> list[Tensor]:
        """Outputs for a kernel to write, NaN before it does."""
        import torch

        first = self.inputs[0]
        accum = first.dtype if first.dtype is torch.float64 else torch.float32
        found = []
        for name, expected in zip(self.names, self.expected, strict=False):
            shape = expected.shape if name in _OF_THE_BATCH else (len(first), *expected.shape[1:])
            dtype = accum if name in _ACCUMULATED else first.dtype
            found.append(torch.full(shape, math.nan, dtype=dtype, device=first.device))
        return found

    def check(self, outputs: Sequence[Tensor], budget: float) -> None:
        """WrongNumbers if ``outputs`` are farther than ``budget``, relative, from what is right."""
        from tvm_na.benchmark import relative_error

        for name, out, expected in zip(self.names, outputs, self.expected, strict=False):
            for first in range(0, len(out), len(expected)):
                some = out[first : first + len(expected)]
                error = relative_error(*_without_same_infinities(some, expected[: len(some)]))
                if not error <= budget:  # NaN is wrong too
                    where = f"{name}, samples from {first}" if len(out) > len(expected) else name
                    raise WrongNumbers(f"{where}: required a relative error <= {budget:.0e}, got {error:.1e}")


def _without_same_infinities(out: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Both, 0 where what is right is infinite and ``out`` is equal to it."""
    same = expected.isinf() & (out == expected)
    return (out.masked_fill(same, 0.0), expected.masked_fill(same, 0.0)) if same.any() else (out, expected)


def case_of(problem: Problem, batch: int = 1, formulation: str = "") -> Case:
    """:func:`make_case` on the CPU, the last of which are kept."""
    return _kept(problem, batch, formulation if isinstance(problem, DenseProblem) else "")


@functools.lru_cache(maxsize=2)
def _kept(problem: Problem, batch: int, formulation: str) -> Case:
    return make_case(problem, batch, "cpu", formulation)


def make_case(problem: Problem, batch: int, device: str, formulation: str = "") -> Case:
    """Random inputs for ``problem``, the same every time, on a device of PyTorch's.

    A kernel's formulation, as canonical JSON, says how its weights are packed, where it has any.
    """
    import torch

    if isinstance(problem, DenseProblem):
        from tvm_na.dense_case import make_dense_case

        return make_dense_case(problem, batch, formulation)
    if isinstance(problem, BackwardProblem):
        from tvm_na.backward_case import make_backward_case

        return make_backward_case(problem, batch, device)
    if isinstance(problem, UnfusedProblem):
        from tvm_na.unfused_case import make_unfused_case

        return make_unfused_case(problem, batch, device)

    distinct = min(batch, DISTINCT)
    drawn = draw_inputs(problem, distinct, device, torch.Generator().manual_seed(0))
    samples = torch.arange(batch, device=device) % distinct
    return Case((*(t[samples] for t in drawn[:3]), *drawn[3:]), _expected(problem, drawn))


def draw_inputs(problem: NAProblem, batch: int, device: str, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random query, key and value, the scale and, with a bias, rpb, in the shapes of a kernel's arguments."""
    import torch

    tokens, kv = ((batch, *problem.spatial, heads) for heads in (problem.heads, problem.heads_kv))
    shapes = [(*tokens, problem.head_dim), (*kv, problem.head_dim), (*kv, problem.head_dim_v)]
    shapes += [problem.bias_shape] if problem.bias else []
    dtype, accum = getattr(torch, problem.tensor_dtype), getattr(torch, problem.accum_dtype)
    query, key, value, *rpb = (torch.randn(s, generator=generator, dtype=dtype).to(device) for s in shapes)
    return query, key, value, torch.tensor([problem.head_dim**-0.5], dtype=accum).to(device), *rpb


def budget_of(problem: Problem) -> float:
    """The largest relative error of a kernel's outputs."""
    from tvm_na.benchmark import ERROR_BUDGET

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

    from tvm_na import reference

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
