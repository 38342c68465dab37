"""Random inputs of a problem, and what is right: what a kernel must compute before its time counts."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm_na.dense import DenseProblem
from tvm_na.operators import Problem
from tvm_na.problem import NAProblem

if TYPE_CHECKING:
    from torch import Tensor

#: Samples of a batch that differ; the others repeat them. No power of two, as strides of a kernel are: a kernel that
#: takes one sample for another does not take it for its equal.
DISTINCT = 3


class WrongNumbers(Exception):
    """A kernel computed something else than the reference."""


@dataclass(frozen=True)
class Case:
    """Inputs of a problem, and what is right.

    Attributes:
        inputs: Query, key, value, scale and, with a bias, rpb; of other operators, what their kernels read.
        expected: Output and, where the problem has it, log-sum-exp, by the reference in float64, of the first samples;
            those after them repeat them in turns.
    """

    inputs: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]

    def outputs(self) -> list[Tensor]:
        """Outputs for a kernel to write, NaN before it does."""
        import torch

        first = self.inputs[0]
        accum = first.dtype if first.dtype is torch.float64 else torch.float32  # of a log-sum-exp
        shapes = [(first.shape[0], *e.shape[1:]) for e in self.expected]
        return [
            torch.full(shape, math.nan, dtype=dtype, device=first.device)
            for shape, dtype in zip(shapes, (first.dtype, accum), strict=False)
        ]

    def check(self, outputs: Sequence[Tensor], budget: float) -> None:
        """WrongNumbers if ``outputs`` are farther than ``budget``, relative, from what is right."""
        from tvm_na.benchmark import relative_error

        for name, out, expected in zip(("out", "lse"), outputs, self.expected, strict=False):
            for first in range(0, len(out), len(expected)):
                some = out[first : first + len(expected)]
                error = relative_error(some, expected[: len(some)])
                if not error <= budget:  # NaN is wrong too
                    where = f"{name}, samples from {first}" if len(out) > len(expected) else name
                    raise WrongNumbers(f"{where}: required a relative error <= {budget:.0e}, got {error:.1e}")


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

    generator = torch.Generator().manual_seed(0)
    dtype, accum = getattr(torch, problem.dtype), getattr(torch, problem.accum_dtype)
    distinct = min(batch, DISTINCT)
    kv = (distinct, *problem.spatial, problem.heads_kv)
    shapes = [
        (distinct, *problem.spatial, problem.heads, problem.head_dim),
        (*kv, problem.head_dim),
        (*kv, problem.head_dim_v),
    ]
    shapes += [problem.bias_shape] if problem.bias else []
    drawn = (torch.randn(shape, generator=generator, dtype=dtype).to(device) for shape in shapes)
    query, key, value, *rpb = drawn
    scale = torch.tensor([problem.head_dim**-0.5], dtype=accum).to(device)
    expected = _expected(problem, (query, key, value, scale, *rpb))
    samples = torch.arange(batch, device=device) % distinct
    return Case((query[samples], key[samples], value[samples], scale, *rpb), expected)


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
