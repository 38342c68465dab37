"""Views that hold the same numbers as a tensor, each otherwise than kernels want them: what launchers must see to."""

from __future__ import annotations

import torch
from torch import Tensor


def as_it_is(t: Tensor) -> Tensor:
    return t


def strided(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def channels_first(t: Tensor) -> Tensor:
    return t.movedim(-1, 1).contiguous().movedim(1, -1)


def sliced(t: Tensor) -> Tensor:
    return torch.cat([t, torch.full_like(t, torch.nan)], dim=-1)[..., : t.shape[-1]]


def misaligned(t: Tensor, by: int = 1) -> Tensor:
    """``by`` elements behind an aligned address."""
    return torch.empty(t.numel() + by, dtype=t.dtype, device=t.device)[by:].view(t.shape).copy_(t)


def negated(t: Tensor) -> Tensor:
    return torch._neg_view(-t)


def parameter(t: Tensor) -> Tensor:
    return torch.nn.Parameter(t, requires_grad=False)


def expanded(t: Tensor) -> Tensor:
    """Of the first sample alone."""
    return t[:1].expand(t.shape)
