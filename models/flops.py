"""The work of a model's forward pass, in the convention of the papers' tables."""

from __future__ import annotations

import math

from torch import Tensor, nn

from tvm_na.models.isotropic import FullAttention2D
from tvm_na.models.meta_trace import ATTENTION, visit_layers
from tvm_na.models.problems import problem_of_module

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: What the tables count for an element of a LayerNorm.
_PER_NORMED = 5


def flops(model: nn.Module, input_size: int | tuple[int, int]) -> int:
    """The multiply-adds of a forward pass of one image, which the NAT papers call FLOPs.

    Counted are convolutions and linear layers, in attention the products with keys and values (``2 * N * C * k**2`` for
    N positions and C channels) and the relative position bias (``N * heads * k**2``), and 5 for each element of a
    LayerNorm; nothing else: no softmax, activation, sum or mean, and as in the tables not the bias of ViT-rpb, where it
    is a sum. Attention over a map smaller than its window counts with the padding. Nothing is computed: a copy of the
    model without storage runs on the meta device.

    Args:
        model: As :func:`problems_of`.
        input_size: As :func:`problems_of`.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    counts: list[int] = []
    visit_layers(model, input_size, lambda module, x, out: counts.append(_flops_of(module, x, out)))
    return sum(counts)


def _flops_of(module: nn.Module, x: Tensor, out: Tensor) -> int:
    if isinstance(module, ATTENTION):
        return _flops_of_attention(module, x)
    if isinstance(module, _CONVOLUTIONS):
        return out.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return out.numel() * module.in_features
    return _PER_NORMED * out.numel() if isinstance(module, nn.LayerNorm) else 0


def _flops_of_attention(module: nn.Module, x: Tensor) -> int:
    """Of projections, which see the map as it is, and of products and bias, which see the padding too."""
    problem = problem_of_module(module, x.shape)
    channels = problem.heads * problem.head_dim
    pairs = x.shape[0] * math.prod(problem.spatial) * math.prod(problem.kernel_size)
    counts_bias = problem.bias and not isinstance(module, FullAttention2D)
    per_pair = 2 * channels + (problem.heads if counts_bias else 0)
    return 4 * x.numel() * channels + pairs * per_pair
