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

    from tvm_na.te.dense.product import DenseTile


def make_dense_case(problem: DenseProblem, batch: int, device: str, formulation: str = "") -> Case:
    """Random inputs for ``problem``, the same every time, on the CPU, which alone has such kernels.

    The formulation of a kernel, as canonical JSON, says how weights are packed.
    """
    import torch

    from tvm_na.te.dense.product import DenseTile

    fields = json.loads(formulation)
    del fields["formulation"]
    drawn, expected = _drawn(problem, min(batch, DISTINCT))
    samples = torch.arange(batch) % len(expected)
    inputs = {**drawn, "weight": packed(drawn["weight"], problem, DenseTile(**fields))}
    with_batch = {a.name for a in problem.arguments() if a.has_batch}
    return Case(problem, tuple(t[samples] if name in with_batch else t for name, t in inputs.items()), (expected,))


def packed(weight: Tensor, problem: DenseProblem, tile: DenseTile) -> Tensor:
    """What :func:`tvm_na.te.dense.product.pack_weight` makes of a tensor, aligned as kernels want it."""
    import torch

    from tvm_na.te.dense.product import pack_weight

    bits = weight.view(torch.uint16) if weight.dtype == torch.bfloat16 else weight  # NumPy has no bfloat16
    return torch.from_numpy(pack_weight(bits.numpy(), problem, tile)).clone()


@functools.lru_cache(maxsize=2)
def _drawn(problem: DenseProblem, batch: int) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of a batch by name, and the output in float64, whose numbers are about as large as the input's."""
    import torch

    inputs = [a for a in problem.arguments() if a.role == "input"]
    tensors = draw(inputs, batch, "cpu", torch.Generator().manual_seed(0))
    drawn = {a.name: tensor for a, tensor in zip(inputs, tensors, strict=True)}
    small = math.prod(problem.weight_shape[1:]) ** -0.5
    if "weight_scale" not in drawn:
        drawn["weight"] = drawn["weight"] * small
    else:
        drawn["weight_scale"] = drawn["weight_scale"] * (small / 127)
    return drawn, reference(problem, **drawn)


def reference(
    problem: DenseProblem,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> Tensor:
    """The output, by PyTorch in float64.

    Args:
        problem: What is to be computed.
        x: ``[batch, *spatial, in]``.
        weight: ``[out, *kernel, in]``.
        bias: ``[out]`` or None.
        residual: ``[batch, *out_spatial, out]`` or None.
        weight_scale: ``[out]`` or None.
    """
    import torch
    from torch.nn import functional

    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[problem.rank - 1]
    with torch.inference_mode():
        wide = weight.double().movedim(-1, 1)
        if weight_scale is not None:
            wide = wide * weight_scale.double().view(-1, *(1,) * (wide.ndim - 1))
        sums = convolve(
            x.double().movedim(-1, 1),
            wide,
            None if bias is None else bias.double(),
            problem.stride,
            problem.padding,
        ).movedim(1, -1)
        out = functional.gelu(sums) if problem.activation == "gelu" else sums
        return out if residual is None else out + residual.double()
