"""Other ways to compute neighborhood attention in PyTorch, each prepared as its users would.

Everything that does not depend on the tensors' values (gather indices, masks, block masks, compilation) and the
layout that a peer likes (``[batch, heads, tokens, head_dim]``, contiguous) is made before the clock runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_na.nn import NeighborhoodAttention2D
from tvm_na.problems.attention import NAProblem
from tvm_na.reference.attention import axis_neighbors

Tensors = tuple[Tensor, Tensor, Tensor]
#: Computes ``[batch, heads, tokens, head_dim]``.
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Peer:
    """A way to compute neighborhood attention.

    Attributes:
        name: Short, for tables.
        what: What it is, for the line below a table.
        prepare: Takes a problem and query, key, value ``[batch, heads, tokens, head_dim]``; gives what is timed.
    """

    name: str
    what: str
    prepare: Callable[[NAProblem, Tensors], Run]


def heads_first(t: Tensor) -> Tensor:
    """``[batch, *spatial, heads, head_dim]`` to contiguous ``[batch, heads, tokens, head_dim]``."""
    return t.flatten(1, -3).transpose(1, 2).contiguous()


def _axes(problem: NAProblem) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [
        axis_neighbors(n, k, s, d, causal)
        for n, k, s, d, causal in zip(
            problem.spatial, problem.kernel_size, problem.stride, problem.dilation, problem.is_causal, strict=True
        )
    ]


def _require_plain(problem: NAProblem) -> None:
    if problem.rank != 2 or any(problem.is_causal) or problem.heads != problem.heads_kv or problem.bias:
        raise NotImplementedError(f"required a 2D problem without causal masking, GQA and bias, got {problem}")


def dense_mask(problem: NAProblem) -> Tensor:
    """Which key a query sees: bool ``[tokens, tokens]``, of a 2D problem."""
    allowed = []
    for positions, _, exists in _axes(problem):
        axis = torch.zeros(positions.shape[0], positions.shape[0], dtype=torch.uint8)
        # scatter_reduce, since a missing neighbor is named as position 0, which may be a neighbor as well.
        axis.scatter_reduce_(1, positions, exists.to(torch.uint8), reduce="amax")
        allowed.append(axis.bool())
    rows, columns = allowed
    tokens = math.prod(problem.spatial)
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(tokens, tokens)


def gather_einsum(problem: NAProblem, tensors: Tensors) -> Run:
    """Gather every window of keys and values, then two einsums around a softmax."""
    _require_plain(problem)
    query, key, value = tensors
    (rows, _, _), (columns, _, _) = _axes(problem)
    window = math.prod(problem.kernel_size)
    neighbors = (rows[:, None, :, None] * problem.spatial[1] + columns[None, :, None, :]).reshape(-1, window)
    scale = problem.head_dim**-0.5

    def run() -> Tensor:
        scores = torch.einsum("bhnd,bhnkd->bhnk", query * scale, key[:, :, neighbors])
        return torch.einsum("bhnk,bhnkd->bhnd", scores.softmax(-1), value[:, :, neighbors])

    return run


def masked_sdpa(problem: NAProblem, tensors: Tensors) -> Run:
    """``scaled_dot_product_attention`` over all tokens with a dense boolean mask."""
    _require_plain(problem)
    mask = dense_mask(problem)
    return lambda: F.scaled_dot_product_attention(*tensors, attn_mask=mask)


def window_mask_mod(problem: NAProblem) -> Callable[..., Tensor]:
    """flex_attention's ``mask_mod`` of a problem of stride 1: clamped windows, written as arithmetic."""
    _require_plain(problem)
    if set(problem.stride) != {1}:
        raise NotImplementedError(f"required stride 1, got {problem}")
    (height, width), (kh, kw), (dh, dw) = problem.spatial, problem.kernel_size, problem.dilation

    def sees(q: Tensor, k: Tensor, n: int, kernel: int, dilation: int) -> Tensor:
        residue = q % dilation
        group = (n - residue + dilation - 1) // dilation
        start = torch.minimum(torch.clamp(q // dilation - kernel // 2, min=0), group - kernel)
        offset = k // dilation - start
        return (k % dilation == residue) & (offset >= 0) & (offset < kernel)

    def mask_mod(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return sees(q // width, k // width, height, kh, dh) & sees(q % width, k % width, width, kw, dw)

    return mask_mod


def compiled_flex(problem: NAProblem, tensors: Tensors) -> Run:
    """``torch.compile(flex_attention)`` with a block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tokens = math.prod(problem.spatial)
    mask = create_block_mask(window_mask_mod(problem), None, None, tokens, tokens, device="cpu")
    compiled: Any = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    query, key, value = tensors
    return lambda: compiled(query, key, value, block_mask=mask)


PEERS = (
    Peer("gather", "gathered windows and einsum", gather_einsum),
    Peer("SDPA", "scaled_dot_product_attention with a dense boolean mask", masked_sdpa),
    Peer("flex", "torch.compile(flex_attention) with a block mask", compiled_flex),
)


class DenseMaskAttention(nn.Module):
    """A :class:`NeighborhoodAttention2D` by SDPA with a dense mask that holds the bias, for one input size."""

    mask: Tensor

    def __init__(self, module: NeighborhoodAttention2D, problem: NAProblem) -> None:
        super().__init__()
        self.module = module
        tokens = math.prod(problem.spatial)
        mask = torch.full((problem.heads, tokens, tokens), -math.inf)
        if module.rpb is None:
            mask.masked_fill_(dense_mask(problem), 0.0)
        else:
            mask = torch.where(dense_mask(problem), self._dense_bias(module.rpb.detach(), problem), mask)
        self.register_buffer("mask", mask, persistent=False)

    @staticmethod
    def _dense_bias(rpb: Tensor, problem: NAProblem) -> Tensor:
        """The bias of every pair of tokens ``[heads, tokens, tokens]``; meaningless where the mask is False."""
        relative = []
        for n, k, d in zip(problem.spatial, problem.kernel_size, problem.dilation, strict=True):
            i = torch.arange(n)
            relative.append(((i - i[:, None]) // d + k - 1).clamp(0, 2 * k - 2))
        rows, columns = relative
        tokens = math.prod(problem.spatial)
        return rpb[:, rows[:, None, :, None], columns[None, :, None, :]].reshape(-1, tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, H, W, embed_dim]`` to the same shape; H and W are the problem's."""
        query, key, value = (t.flatten(1, 2).transpose(1, 2) for t in self.module._project(x))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask, scale=self.module.scale)
        projected: Tensor = self.module.proj(out.transpose(1, 2).reshape(x.shape))
        return projected
