"""The eager PyTorch definition of neighborhood attention: any rank, dtype and device; differentiable.

It is the oracle of every kernel, so it shares no code with them: the windows are spelled out here from
the definition (arXiv 2204.07143, 2209.15001; stride and causal masking as in NATTEN).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tvm_na.problem import NAProblem


def axis_neighbors(
    size: int, kernel_size: int, stride: int, dilation: int, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The neighbors of every position of one axis.

    Returns:
        ``positions`` ``[size, kernel_size]`` int64, the keys' positions (0 where there is none);
        ``relative`` of the same shape, the index ``(key - query) / dilation + kernel_size - 1`` into a
        relative position bias; ``exists`` of the same shape, bool.
    """
    i = torch.arange(size)
    residue, j = i % dilation, i // dilation
    group = (size - residue + dilation - 1) // dilation  # positions that share i's residue
    base = j // stride * stride
    if is_causal:
        leader = torch.minimum(base + stride - 1, group - 1)
        start = (leader - kernel_size + 1).clamp(min=0)
        end = j + 1
    else:
        leader = torch.minimum(base + stride // 2, group - 1)
        start = torch.minimum((leader - kernel_size // 2).clamp(min=0), group - kernel_size)
        end = start + kernel_size
    t = start[:, None] + torch.arange(kernel_size)
    exists = t < end[:, None]
    relative = t - j[:, None] + kernel_size - 1
    positions = residue[:, None] + dilation * t
    return positions * exists, relative * exists, exists


def _windows(problem: NAProblem, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """``neighbor`` ``[tokens, window]`` flat key positions, ``relative`` flat bias indices, ``exists``."""
    neighbor = torch.zeros(1, 1, dtype=torch.int64)
    relative = torch.zeros(1, 1, dtype=torch.int64)
    exists = torch.ones(1, 1, dtype=torch.bool)
    for size, k, s, d, causal in zip(
        problem.spatial, problem.kernel_size, problem.stride, problem.dilation, problem.is_causal, strict=True
    ):
        positions, rel, ok = axis_neighbors(size, k, s, d, causal)
        shape = (neighbor.shape[0] * size, neighbor.shape[1] * k)
        neighbor = (neighbor[:, None, :, None] * size + positions[None, :, None, :]).reshape(shape)
        relative = (relative[:, None, :, None] * (2 * k - 1) + rel[None, :, None, :]).reshape(shape)
        exists = (exists[:, None, :, None] & ok[None, :, None, :]).reshape(shape)
    return neighbor.to(device), relative.to(device), exists.to(device)


def neighborhood_attention(
    problem: NAProblem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    rpb: Tensor | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of neighborhood attention, by gathering every window.

    Args:
        problem: The validated workload.
        query: ``[batch, *spatial, heads, head_dim]``.
        key: ``[batch, *spatial, heads_kv, head_dim]``.
        value: ``[batch, *spatial, heads_kv, head_dim_v]``.
        scale: Factor of the scores.
        rpb: ``[heads, 2*kernel_size-1, ...]``, added to the scaled scores.
        additional_keys: ``[batch, extra, heads_kv, head_dim]``, seen by every query.
        additional_values: ``[batch, extra, heads_kv, head_dim_v]``.

    Returns:
        ``out`` ``[batch, *spatial, heads, head_dim_v]`` in the inputs' dtype and ``lse``
        ``[batch, *spatial, heads]``, natural logarithm, in float32 (float64 for float64).
    """
    accum = torch.float64 if query.dtype == torch.float64 else torch.float32
    neighbor, relative, exists = _windows(problem, query.device)
    batch, group = query.shape[0], problem.heads // problem.heads_kv
    tokens, window = neighbor.shape

    def per_query_head(t: Tensor) -> Tensor:  # [batch, n, heads_kv, d] -> [batch, heads, n, d]
        return t.to(accum).transpose(1, 2).repeat_interleave(group, dim=1)

    def windows(t: Tensor) -> Tensor:  # [batch, heads, tokens, d] -> [batch, heads, tokens, window, d]
        # A missing key stands for position 0, which may hold inf or NaN; zero times that is not zero, neither in
        # the output nor in the gradients.
        gathered = t[:, :, neighbor]
        return gathered.masked_fill(~exists[..., None], 0.0) if any(problem.is_causal) else gathered

    q = query.to(accum).reshape(batch, tokens, problem.heads, problem.head_dim).transpose(1, 2)
    k = per_query_head(key.reshape(batch, tokens, problem.heads_kv, problem.head_dim))
    v = per_query_head(value.reshape(batch, tokens, problem.heads_kv, problem.head_dim_v))
    scores = torch.einsum("bhnd,bhnkd->bhnk", q, windows(k)) * scale
    if rpb is not None:
        scores = scores + rpb.to(accum).reshape(problem.heads, -1)[:, relative]
    scores = scores.masked_fill(~exists, -math.inf)
    if additional_keys is not None:
        extra = torch.einsum("bhnd,bhed->bhne", q, per_query_head(additional_keys)) * scale
        scores = torch.cat([scores, extra], dim=-1)
    lse = torch.logsumexp(scores, dim=-1)
    p = torch.softmax(scores, dim=-1)
    out = torch.einsum("bhnk,bhnkd->bhnd", p[..., :window], windows(v))
    if additional_values is not None:
        out = out + torch.einsum("bhne,bhed->bhnd", p[..., window:], per_query_head(additional_values))
    out = out.transpose(1, 2).reshape(batch, *problem.spatial, problem.heads, problem.head_dim_v)
    return out.to(query.dtype), lse.transpose(1, 2).reshape(batch, *problem.spatial, problem.heads)
