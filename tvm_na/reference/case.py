"""Random inputs of a problem, and what is right: what a kernel must compute before its time counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm_na.problems.attention import NAProblem

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Samples of a batch that differ; the others repeat them. No power of two, as strides of a kernel are: a kernel that
#: takes one sample for another does not take it for its equal.
DISTINCT = 3

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
        from tvm_na.reference.accuracy import relative_error

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


def draw_inputs(problem: NAProblem, batch: int, device: str, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random query, key and value, the scale and, with a bias, rpb, in the shapes of a kernel's arguments."""
    import torch

    tokens, kv = ((batch, *problem.spatial, heads) for heads in (problem.heads, problem.heads_kv))
    shapes = [(*tokens, problem.head_dim), (*kv, problem.head_dim), (*kv, problem.head_dim_v)]
    shapes += [problem.bias_shape] if problem.bias else []
    dtype, accum = getattr(torch, problem.tensor_dtype), getattr(torch, problem.accum_dtype)
    query, key, value, *rpb = (torch.randn(s, generator=generator, dtype=dtype).to(device) for s in shapes)
    return query, key, value, torch.tensor([problem.head_dim**-0.5], dtype=accum).to(device), *rpb
