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
    from tvm_na.problems.attention import NAProblem


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


def windows(problem: NAProblem, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """``neighbor`` ``[tokens, window]`` flat key positions, ``relative`` flat bias indices, ``exists``."""
    neighbor = torch.zeros(1, 1, dtype=torch.int64)
    relative = torch.zeros(1, 1, dtype=torch.int64)
    exists = torch.ones(1, 1, dtype=torch.bool)
    for size, k, s, d, causal in problem.axes:
        positions, rel, ok = axis_neighbors(size, k, s, d, causal)
        shape = (neighbor.shape[0] * size, neighbor.shape[1] * k)
        neighbor = (neighbor[:, None, :, None] * size + positions[None, :, None, :]).reshape(shape)
        relative = (relative[:, None, :, None] * (2 * k - 1) + rel[None, :, None, :]).reshape(shape)
        exists = (exists[:, None, :, None] & ok[None, :, None, :]).reshape(shape)
    return neighbor.to(device), relative.to(device), exists.to(device)


def accum_dtype(query: Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32


def _per_head(t: Tensor, problem: NAProblem, accum: torch.dtype) -> Tensor:
    """``[batch, n, heads_kv, d]`` as ``[batch, heads, n, d]``."""
    return t.to(accum).transpose(1, 2).repeat_interleave(problem.heads // problem.heads_kv, dim=1)


def in_windows(t: Tensor, problem: NAProblem, neighbor: Tensor, exists: Tensor, accum: torch.dtype) -> Tensor:
    """``[batch, *spatial, heads_kv, d]`` as ``[batch, heads, tokens, window, d]``, zero where there is no key."""
    gathered = _per_head(t.flatten(1, problem.rank), problem, accum)[:, :, neighbor]
    # A missing key stands for position 0, which may hold inf or NaN; zero times that is not zero, neither in the
    # output nor in the gradients.
    return gathered.masked_fill(~exists[..., None], 0.0) if any(problem.is_causal) else gathered


def per_query(t: Tensor, problem: NAProblem, accum: torch.dtype) -> Tensor:
    """``[batch, *spatial, heads, ...]`` as ``[batch, heads, tokens, ...]``."""
    return t.to(accum).reshape(t.shape[0], math.prod(problem.spatial), *t.shape[problem.rank + 1 :]).transpose(1, 2)


def window_scores(
    query: Tensor, keys: Tensor, rpb: Tensor | None, scale: float, relative: Tensor, exists: Tensor
) -> Tensor:
    """``[batch, heads, tokens, window]``, minus infinity where there is no key."""
    scores = torch.einsum("bhnd,bhnkd->bhnk", query, keys) * scale
    if rpb is not None:
        scores = scores + rpb.to(query.dtype).flatten(1)[:, relative]
    return scores.masked_fill(~exists, -math.inf)


def softmax_and_lse(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax and log-sum-exp over the last axis; where all scores are minus infinity, 0 and minus infinity.

    The latter add nothing to a merged attention, and their gradients are 0 times those of the weights. PyTorch's
    ``flex_attention`` gives the same.
    """
    # A constant, so that derivatives are by the weights themselves; PyTorch's of logsumexp are by its rounded value.
    shift = torch.logsumexp(scores.detach(), dim=-1, keepdim=True)
    none = shift == -math.inf
    shift = shift.masked_fill(none, 0.0)
    powers = torch.exp(scores - shift)
    total = powers.sum(dim=-1, keepdim=True) + none.to(powers.dtype)
    return powers / total, (shift + total.log()).masked_fill(none, -math.inf).squeeze(-1)


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
        ``[batch, *spatial, heads]``, natural logarithm, in float32 (float64 for float64). Where all scores are minus
        infinity they are 0 and minus infinity.
    """
    accum = accum_dtype(query)
    neighbor, relative, exists = windows(problem, query.device)
    batch, window = query.shape[0], neighbor.shape[1]
    q = per_query(query, problem, accum)
    scores = window_scores(q, in_windows(key, problem, neighbor, exists, accum), rpb, scale, relative, exists)
    if additional_keys is not None:
        extra = torch.einsum("bhnd,bhed->bhne", q, _per_head(additional_keys, problem, accum)) * scale
        scores = torch.cat([scores, extra], dim=-1)
    p, lse = softmax_and_lse(scores)
    out = torch.einsum("bhnk,bhnkd->bhnd", p[..., :window], in_windows(value, problem, neighbor, exists, accum))
    if additional_values is not None:
        out = out + torch.einsum("bhne,bhed->bhnd", p[..., window:], _per_head(additional_values, problem, accum))
    out = out.transpose(1, 2).reshape(batch, *problem.spatial, problem.heads, problem.head_dim_v)
    return out.to(query.dtype), lse.transpose(1, 2).reshape(batch, *problem.spatial, problem.heads)


def gradients(
    problem: NAProblem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    rpb: Tensor | None,
    d_out: Tensor,
    d_lse: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of query, key, value and rpb, written out in operations that are differentiable themselves.

    Args:
        problem: The validated workload; whether it has a log-sum-exp does not matter.
        query: ``[batch, *spatial, heads, head_dim]``.
        key: ``[batch, *spatial, heads_kv, head_dim]``.
        value: ``[batch, *spatial, heads_kv, head_dim_v]``.
        scale: Factor of the scores.
        rpb: ``[heads, 2*kernel_size-1, ...]`` or None.
        d_out: The gradient of the output, ``[batch, *spatial, heads, head_dim_v]``.
        d_lse: The gradient of the log-sum-exp, or None.

    Returns:
        The gradients in the shapes and the dtype of the inputs; None for rpb if it is None.
    """
    neighbor, relative, exists = windows(problem, query.device)
    accum, group = accum_dtype(query), (problem.heads_kv, problem.heads // problem.heads_kv)

    def to_keys(t: Tensor) -> Tensor:  # what queries add, [batch, heads, tokens, window, d], in the layout of key
        t = t.masked_fill(~exists[..., None], 0.0) if any(problem.is_causal) else t
        batch, heads, tokens, _, width = t.shape
        summed = t.new_zeros(batch, heads, tokens, width)
        summed = summed.index_add(2, neighbor.flatten(), t.reshape(batch, heads, -1, width))
        summed = summed.reshape(batch, *group, tokens, width).sum(2)
        return summed.transpose(1, 2).reshape(*key.shape[:-1], width).to(key.dtype)

    q, d = per_query(query, problem, accum), per_query(d_out, problem, accum)
    keys, values = (in_windows(t, problem, neighbor, exists, accum) for t in (key, value))
    scores = window_scores(q, keys, rpb, scale, relative, exists)
    p, _ = softmax_and_lse(scores)
    d_p = (values * d[:, :, :, None]).sum(-1)
    d_scores = p * (d_p - (p * d_p).sum(-1, keepdim=True))
    if d_lse is not None:
        d_scores = d_scores + p * per_query(d_lse, problem, accum)[..., None]
    d_query = (d_scores[..., None] * keys).sum(-2) * scale
    d_key = to_keys(d_scores[..., None] * q[:, :, :, None] * scale)
    d_value = to_keys(p[..., None] * d[:, :, :, None])
    d_rpb = None
    if rpb is not None:
        summed = d_scores.new_zeros(problem.heads, rpb[0].numel())
        summed = summed.index_add(1, relative.flatten(), d_scores.sum(0).reshape(problem.heads, -1))
        d_rpb = summed.reshape(rpb.shape).to(rpb.dtype)
    return d_query.transpose(1, 2).reshape(query.shape).to(query.dtype), d_key, d_value, d_rpb
