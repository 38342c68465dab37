"""Random inputs of a linear layer or a convolution, and what is right."""

from __future__ import annotations

import functools
import json
import math
from typing import TYPE_CHECKING

from tvm_na.problems.dense import DenseProblem
from tvm_na.reference.case import DISTINCT, Case, draw

if TYPE_CHECKING:
    from torch import Tensor


def make_dense_case(problem: DenseProblem, batch: int, device: str, formulation: str = "") -> Case:
    """Random inputs for ``problem``, the same every time, on the CPU, which alone has such kernels.

    The formulation of a kernel, as canonical JSON, says how weights are packed.
    """
    import torch

    from tvm_na.te.dense.product import DenseTile, pack_weight

    fields = json.loads(formulation)
    del fields["formulation"]
    x, weight, bias, residual, expected = _drawn(problem, min(batch, DISTINCT))
    packed = torch.from_numpy(pack_weight(weight.numpy(), problem, DenseTile(**fields)))
    samples = torch.arange(batch) % len(x)
    inputs = [x[samples], packed.clone()]  # clones start where kernels want tensors to
    inputs += [] if bias is None else [bias]
    inputs += [] if residual is None else [residual[samples]]
    return Case(problem, tuple(inputs), (expected,))


@functools.lru_cache(maxsize=2)
def _drawn(problem: DenseProblem, batch: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
    """Input, weight, bias and residual of a batch, and the output in float64."""
    import torch

    inputs = (a for a in problem.arguments() if a.role == "input")
    x, weight, *others = draw(inputs, batch, "cpu", torch.Generator().manual_seed(0))
    weight = weight * math.prod(problem.weight_shape[1:]) ** -0.5
    bias = others.pop(0) if problem.bias else None
    residual = others.pop(0) if problem.residual else None
    return x, weight, bias, residual, reference(problem, x, weight, bias, residual)


def reference(problem: DenseProblem, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """The output, by PyTorch in float64.

    Args:
        problem: What is to be computed.
        x: ``[batch, *spatial, in]``.
        weight: ``[out, *kernel, in]``.
        bias: ``[out]`` or None.
        residual: ``[batch, *out_spatial, out]`` or None.
    """
    import torch
    from torch.nn import functional

    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[problem.rank - 1]
    with torch.inference_mode():
        sums = convolve(
            x.double().movedim(-1, 1),
            weight.double().movedim(-1, 1),
            None if bias is None else bias.double(),
            problem.stride,
            problem.padding,
        ).movedim(1, -1)
        out = functional.gelu(sums) if problem.activation == "gelu" else sums
        return out if residual is None else out + residual.double()
