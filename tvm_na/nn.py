"""Neighborhood attention modules: projection, attention over the neighborhood, projection.

Argument names follow NATTEN's modules; ``rel_pos_bias`` is the relative position bias of the NAT papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_na import unfused
from tvm_na.functional import Backend, na1d, na2d, na3d
from tvm_na.ops import autocast
from tvm_na.problems.checks import check_scale, per_axis_bools, per_axis_ints

_ATTENTION = {1: na1d, 2: na2d, 3: na3d}
_QK = {1: unfused.na1d_qk, 2: unfused.na2d_qk, 3: unfused.na3d_qk}
_AV = {1: unfused.na1d_av, 2: unfused.na2d_av, 3: unfused.na3d_av}


def has_hooks(module: nn.Module) -> bool:
    """Whether something watches a module's calls."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _extended(projected: Tensor, bias: Tensor | None, missing: Sequence[int]) -> Tensor:
    """What x with so many zeros behind each axis is projected to; zeros give the bias, which needs no product."""
    for axis, more in enumerate(missing, start=1):
        if more:
            shape = (*projected.shape[:axis], more, *projected.shape[axis + 1 :])
            zeros = projected.new_zeros(()).expand(shape) if bias is None else bias.to(projected.dtype).expand(shape)
            projected = torch.cat([projected, zeros], dim=axis)
    return projected


class _NeighborhoodAttention(nn.Module):
    rank: ClassVar[int]

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        dilation: int | tuple[int, ...] = 1,
        is_causal: bool | tuple[bool, ...] = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        *,
        rel_pos_bias: bool = False,
        attn_drop: float = 0.0,
        backend: Backend | str = Backend.AUTO,
    ) -> None:
        super().__init__()
        (embed_dim,) = per_axis_ints("embed_dim", embed_dim, 1)
        (num_heads,) = per_axis_ints("num_heads", num_heads, 1)
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim: required a multiple of num_heads={num_heads}, got {embed_dim}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kernel_size = per_axis_ints("kernel_size", kernel_size, self.rank)
        self.stride = per_axis_ints("stride", stride, self.rank)
        self.dilation = per_axis_ints("dilation", dilation, self.rank)
        self.is_causal = per_axis_bools("is_causal", is_causal, self.rank)
        for s, k in zip(self.stride, self.kernel_size, strict=True):
            if s > k:
                raise ValueError(f"stride: required stride <= kernel_size on every axis, got {s} > {k}")
        self.scale = check_scale(qk_scale, self.head_dim)
        self.backend = Backend.of(backend)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.rpb: nn.Parameter | None = None
        if rel_pos_bias:
            self.rpb = nn.Parameter(torch.zeros(num_heads, *(2 * k - 1 for k in self.kernel_size)))
            nn.init.trunc_normal_(self.rpb, std=0.02)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, return_attention: bool = False) -> Any:
        """Attend over ``x`` ``[batch, *spatial, embed_dim]``; the same shape comes back.

        With ``return_attention`` the attention weights ``[batch, *spatial, heads, prod(kernel_size)]`` come too, before
        dropout: positions of a window in row-major order, 0 where a causal window has no key.

        A map smaller than ``kernel_size * dilation`` counts as zero-padded right and bottom before the projection
        of queries, keys and values, is attended over whole, and cropped, as NATTEN <= 0.15 did.
        """
        if x.ndim != self.rank + 2 or x.shape[-1] != self.embed_dim:
            wanted = f"[batch, {self.rank} spatial axes, {self.embed_dim}]"
            raise ValueError(f"x: required shape {wanted}, got {tuple(x.shape)}")
        sizes = x.shape[1:-1]
        missing = [max(0, k * d - n) for k, d, n in zip(self.kernel_size, self.dilation, sizes, strict=True)]
        query, key, value = self._project(x, missing)
        weights = None
        if return_attention:
            out, weights = self._attend_in_steps(query, key, value)
        else:
            out = self._attend(query, key, value)
        if any(missing):
            for axis, n in enumerate(sizes, start=1):
                out = out.narrow(axis, 0, n)
                weights = None if weights is None else weights.narrow(axis, 0, n)
        out = self.proj_drop(self.proj(out.flatten(-2)))
        return out if weights is None else (out, weights)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of tensors ``[batch, *spatial, heads, head_dim]``; what a subclass with another one overrides."""
        if self.training and self.attn_drop.p:  # the fused operator has no weights to drop
            return self._attend_in_steps(query, key, value)[0]
        window = (self.kernel_size, self.stride, self.dilation, self.is_causal)
        out: Tensor = _ATTENTION[self.rank](query, key, value, *window, self.scale, rpb=self.rpb, backend=self.backend)
        return out

    def _attend_in_steps(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The same through scores and weights, which come too; the output is of those that dropout leaves."""
        window = (self.kernel_size, self.stride, self.dilation, self.is_causal)
        scores = _QK[self.rank](query, key, *window, self.scale, rpb=self.rpb, backend=self.backend)
        weights = scores.softmax(dim=-1)
        return _AV[self.rank](self.attn_drop(weights), value, *window, backend=self.backend), weights

    def _project(self, x: Tensor, missing: Sequence[int] = ()) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[batch, *spatial, heads, head_dim]`` of x with so many zeros behind each axis."""
        heads = (self.num_heads, self.head_dim)
        if type(self.qkv) is not nn.Linear or has_hooks(self.qkv):
            if any(missing):
                x = F.pad(x, [0, 0] + [p for m in reversed(missing) for p in (0, m)])
            query, key, value = self.qkv(x).unflatten(-1, (3, *heads)).unbind(-3)
            return query, key, value
        if autocast.is_on(x):  # once, not in each of three products
            (x,) = autocast.cast(x.device, x)
        # Three products with thirds of the weight write what one product would leave to be copied apart:
        # measured on 56x56x64 on 2 cores, 0.8 ms instead of 4.0 ms.
        weights = self.qkv.weight.chunk(3)
        biases = (None, None, None) if self.qkv.bias is None else self.qkv.bias.chunk(3)
        query, key, value = (
            _extended(F.linear(x, w, b), b, missing).unflatten(-1, heads) for w, b in zip(weights, biases, strict=True)
        )
        return query, key, value

    def extra_repr(self) -> str:
        parts: dict[str, Any] = {"heads": self.num_heads, "kernel_size": self.kernel_size, "stride": self.stride}
        parts |= {"dilation": self.dilation, "is_causal": self.is_causal, "rel_pos_bias": self.rpb is not None}
        return ", ".join(f"{name}={value}" for name, value in parts.items())


class NeighborhoodAttention1D(_NeighborhoodAttention):
    """Neighborhood attention over ``[batch, length, embed_dim]``."""

    rank = 1


class NeighborhoodAttention2D(_NeighborhoodAttention):
    """Neighborhood attention over ``[batch, height, width, embed_dim]`` (arXiv 2204.07143).

    Args:
        embed_dim: Channels, a multiple of ``num_heads``.
        num_heads: Attention heads.
        kernel_size: Window length, an integer or one per axis.
        stride: Queries per shared window; 1 is neighborhood attention, ``kernel_size`` blocked attention.
        dilation: Step between neighbors (arXiv 2209.15001).
        is_causal: Whether a query sees only what is at or before it, per axis.
        qkv_bias: Whether the projection of queries, keys and values has a bias.
        qk_scale: Factor of the scores; ``head_dim ** -0.5`` if None.
        proj_drop: Dropout after the output projection.
        rel_pos_bias: Whether there is a learned relative position bias ``rpb`` ``[heads, 2k-1, 2k-1]``.
        attn_drop: Dropout of attention weights while training, which then takes the unfused operators.
        backend: ``auto``, ``compiled`` or ``reference``.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """

    rank = 2


class NeighborhoodAttention3D(_NeighborhoodAttention):
    """Neighborhood attention over ``[batch, depth, height, width, embed_dim]``."""

    rank = 3
