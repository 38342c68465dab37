"""Random inputs of a problem, and what is right: what a kernel must compute before its time counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.base import Argument, Problem

if TYPE_CHECKING:
    import torch
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
        problem: What is computed.
        inputs: What kernels read, in the order of ``problem.arguments()``.
        expected: What is right, by the reference in float64, in the order of the outputs: of those with a batch the
            first samples; the samples after them repeat them in turns.
    """

    problem: Problem
    inputs: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]

    def outputs(self) -> list[Tensor]:
        """Outputs for a kernel to write, NaN before it does."""
        import torch

        batch, device = len(self.inputs[0]), self.inputs[0].device
        return [
            torch.full(output.shape_for(batch), math.nan, dtype=getattr(torch, output.dtype), device=device)
            for output in self.problem.outputs()
        ]

    def check(self, outputs: Sequence[Tensor], budget: float) -> None:
        """WrongNumbers if ``outputs`` are farther than ``budget``, relative, from what is right."""
        from tvm_na.reference.accuracy import relative_error

        for argument, out, expected in zip(self.problem.outputs(), outputs, self.expected, strict=True):
            name = argument.name
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


def draw(arguments: Iterable[Argument], batch: int, device: str, generator: torch.Generator) -> list[Tensor]:
    """Random tensors for arguments, drawn on the CPU one after the other."""
    import torch

    def drawn(a: Argument) -> Tensor:
        shape = a.shape_for(batch)
        if a.dtype == "int8":
            return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
        return torch.randn(shape, generator=generator, dtype=getattr(torch, a.dtype))

    return [drawn(a).to(device) for a in arguments]


def draw_inputs(problem: NAProblem, batch: int, device: str, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random query, key and value, the scale and, with a bias, rpb, as a kernel takes them."""
    import torch

    drawn = draw((a for a in problem.inputs() if a.role != "scale"), batch, device, generator)
    scale = torch.tensor([problem.head_dim**-0.5], dtype=getattr(torch, problem.accum_dtype)).to(device)
    return (*drawn[:3], scale, *drawn[3:])
