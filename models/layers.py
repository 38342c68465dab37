"""Layers that the models share, and the checks of their arguments. All maps are channels-last ``[B, H, W, C]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_na.functional import Backend
from tvm_na.models import frozen
from tvm_na.nn import NeighborhoodAttention2D
from tvm_na.problems.attention import DTYPES
from tvm_na.problems.checks import check_int


def check_ints(argument: str, values: Any, length: int | None = None, minimum: int = 1) -> tuple[int, ...]:
    """A sequence of integers (``length`` of them, unless None) as a tuple; a bool is no integer."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{argument}: required a sequence of integers, got {type(values).__name__} {values!r}")
    if not values or (length is not None and len(values) != length):
        raise ValueError(f"{argument}: required {length or 'at least one'} values, got {len(values)}: {values!r}")
    return tuple(check_int(argument, value, minimum) for value in values)


def check_rate(argument: str, value: Any) -> float:
    """``value`` as a float if it is a probability below 1."""
    if not 0.0 <= _check_number(argument, value) < 1.0:
        raise ValueError(f"{argument}: required 0 <= {argument} < 1, got {value}")
    return float(value)


def check_positive(argument: str, value: Any) -> float:
    """``value`` as a float if it is finite and above 0."""
    if not 0.0 < _check_number(argument, value) < float("inf"):
        raise ValueError(f"{argument}: required a finite number > 0, got {value}")
    return float(value)


def check_dtype(argument: str, value: Any) -> torch.dtype:
    """A dtype that kernels compute in, by itself or by its name, such as ``bfloat16``."""
    if not isinstance(value, (str, torch.dtype)):
        raise TypeError(f"{argument}: required a torch.dtype or its name, got {type(value).__name__} {value!r}")
    name = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
    if name not in DTYPES:
        raise ValueError(f"{argument}: required {', '.join(DTYPES)}, got {value!r}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _check_number(argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument}: required a number, got {type(value).__name__} {value!r}")
    return value


def init_weights(module: nn.Module) -> None:
    """Fill a Linear as the authors do: truncated normal of std 0.02, zero bias. Other modules keep PyTorch's."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, zeroes whole samples with probability ``rate``.

    What is kept is divided by ``1 - rate``, so that the expectation stays. Takes any shape ``[B, ...]``.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = check_rate("rate", rate)

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask.div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class ConvTokenizer(nn.Module):
    """Two 3x3 convolutions of stride 2 and a LayerNorm: ``[B, in_chans, H, W]`` to ``[B, ceil(H/4), ceil(W/4), C]``."""

    def __init__(self, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        if embed_dim % 2:
            raise ValueError(f"embed_dim: required an even integer, got {embed_dim}")
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, embed_dim // 2, 3, stride=2, padding=1),
            nn.Conv2d(embed_dim // 2, embed_dim, 3, stride=2, padding=1),
        )
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return out


class PatchEmbed(nn.Module):
    """A convolution over patches and a LayerNorm: ``[B, in_chans, H, W]`` to ``[B, ceil(H/p), ceil(W/p), C]``.

    The image is padded with zeros, right and bottom, to whole patches.
    """

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int = 4) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        bottom, right = (-size % self.patch_size for size in x.shape[2:])
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        out: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return out


class ConvDownsampler(nn.Module):
    """A 3x3 convolution of stride 2 and a LayerNorm: ``[B, H, W, C]`` to ``[B, ceil(H/2), ceil(W/2), 2C]``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return out


class Mlp(nn.Module):
    """Linear, GELU, Linear over the last axis, with dropout after each Linear."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        return out


class NABlock(nn.Module):
    """Pre-norm neighborhood attention, then MLP, each residual, with optional LayerScale and DropPath.

    Takes and returns ``[B, H, W, dim]``. ``layer_scale`` is the initial scale, or None for no such parameters.
    """

    gamma1: nn.Parameter | None
    gamma2: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int | tuple[int, int],
        *,
        dilation: int = 1,
        mlp_ratio: float = 3.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        backend: Backend | str = Backend.AUTO,
        attention: type[NeighborhoodAttention2D] = NeighborhoodAttention2D,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention(
            dim, num_heads, kernel_size, dilation=dilation, proj_drop=drop, rel_pos_bias=True, backend=backend
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.drop_path = DropPath(drop_path)
        for name in ("gamma1", "gamma2"):
            gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
            self.register_parameter(name, gamma)

    def forward(self, x: Tensor) -> Tensor:
        known = frozen.run(self, x) if type(self.mlp) is Mlp else None
        if known is not None:
            return known
        x = x + self.drop_path(_scaled(self.attn(self.norm1(x)), self.gamma1))
        out: Tensor = x + self.drop_path(_scaled(self.mlp(self.norm2(x)), self.gamma2))
        return out


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    """What LayerScale gives, in the dtype of x: under autocast a float32 scale would widen whatever comes after it."""
    if gamma is None:
        return x
    return (gamma if gamma.dtype == x.dtype else gamma.to(x.dtype)) * x


class NALevel(nn.Module):
    """One stage: ``[B, H, W, C]`` to its own map and what the next stage takes (the same map without a downsampler)."""

    def __init__(self, blocks: Sequence[NABlock], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            x = block(x)
        return x, x if self.downsample is None else self.downsample(x)
