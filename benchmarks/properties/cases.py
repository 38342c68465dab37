"""The three properties of neighborhood attention (arXiv 2204.07143) as numbers: what it costs beside self-attention,
how far its output is from self-attention's, and how far a shift of the output is from the output of a shift.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers import heads_first
from tvm_na import na1d, na2d, na3d
from tvm_na.problems.attention import NAProblem

Tensors = tuple[Tensor, Tensor, Tensor, "Tensor | None"]  # query, key, value, rpb


def dense_flops(problem: NAProblem) -> int:
    """Multiply-adds, times two, of self-attention on the map of ``problem``, for a batch of one."""
    tokens = math.prod(problem.spatial)
    return 2 * tokens * tokens * problem.heads * (problem.head_dim + problem.head_dim_v)


def drawn(problem: NAProblem, spatial: tuple[int, ...], batch: int, seed: int) -> Tensors:
    """Normally distributed query, key, value and bias (None without one) of ``problem`` on a map of another size."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(getattr(torch, problem.dtype))

    query = draw(batch, *spatial, problem.heads, problem.head_dim)
    key = draw(batch, *spatial, problem.heads_kv, problem.head_dim)
    value = draw(batch, *spatial, problem.heads_kv, problem.head_dim_v)
    return query, key, value, draw(*problem.bias_shape) if problem.bias else None


def attend(problem: NAProblem, query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None = None) -> Tensor:
    """The compiled operator; ``problem`` says the window, the tensors everything else."""
    front = (na1d, na2d, na3d)[problem.rank - 1]
    out: Tensor = front(query, key, value, *problem.window, rpb=rpb, backend="compiled")
    return out


def self_attention(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """PyTorch's attention of every query to every key.

    Args:
        query: ``[batch, *spatial, heads, head_dim]``.
        key: ``[batch, *spatial, heads_kv, head_dim]``.
        value: ``[batch, *spatial, heads_kv, head_dim_v]``.
        mask: What is added to the scores ``[tokens, tokens]``, or ``[heads, tokens, tokens]``.
        is_causal: Whether a token sees none behind it, in the order of the flattened axes.

    Returns:
        ``[batch, *spatial, heads, head_dim_v]``.
    """
    group = query.shape[-2] // key.shape[-2]
    keys, values = (heads_first(t).repeat_interleave(group, dim=1) for t in (key, value))
    out = F.scaled_dot_product_attention(heads_first(query), keys, values, mask, is_causal=is_causal)
    return out.transpose(1, 2).reshape(*query.shape[:-1], value.shape[-1])


def distance_to_self_attention(problem: NAProblem, seed: int = 0) -> float:
    """The root mean square of what the operator's output lacks to self-attention's, over that of self-attention's."""
    query, key, value, _ = drawn(problem, problem.spatial, 1, seed)
    right = self_attention(query.double(), key.double(), value.double())
    difference = attend(problem, query, key, value).double() - right
    return (difference.square().mean().sqrt() / right.square().mean().sqrt()).item()


def shift_errors(problem: NAProblem, shift: tuple[int, ...], seed: int = 0) -> Tensor:
    """How far the output of a shifted map is from the shifted output.

    Two maps are cut out of a larger one, the second ``shift`` positions further, so that what one has beyond the border
    of the other is no padding but more of the same.

    Args:
        problem: The attention; its batch is two.
        shift: Positions along each axis, none negative, each less than the map.
        seed: Of the larger map.

    Returns:
        Float64 ``[*spatial - shift]``: the largest difference at each position that both maps have, over the largest
        output; its first position is the first of the shifted map.
    """
    spatial = problem.spatial
    *tensors, rpb = drawn(problem, tuple(n + by for n, by in zip(spatial, shift, strict=True)), 2, seed)

    def cut(first: tuple[int, ...]) -> Tensor:
        part = (slice(None), *(slice(at, at + n) for at, n in zip(first, spatial, strict=True)))
        query, key, value = (t[part] for t in tensors if t is not None)
        return attend(problem, query, key, value, rpb).double()

    still, moved = cut((0,) * len(spatial)), cut(shift)
    shifted_output = still[(slice(None), *(slice(by, None) for by in shift))]
    of_shifted = moved[(slice(None), *(slice(0, n - by) for n, by in zip(spatial, shift, strict=True)))]
    difference = (of_shifted - shifted_output).abs().amax(dim=(0, -2, -1))
    return difference / still.abs().max()


def interior(problem: NAProblem, shift: tuple[int, ...]) -> tuple[slice, ...]:
    """Where in :func:`shift_errors` no window is cut off by a border of either map, with stride 1.

    That is as far from the border as the window reaches: ``dilation * (kernel_size // 2)`` before a position, what the
    window has left behind it; ``dilation * (kernel_size - 1)`` and nothing along a causal axis.
    """
    if set(problem.stride) != {1}:
        raise ValueError(f"stride: required 1 along each axis, got {problem.stride}")
    found = []
    for (n, k, _, d, causal), by in zip(problem.axes, shift, strict=True):
        before = d * (k - 1 if causal else k // 2)
        behind = 0 if causal else d * (k - 1) - before
        found.append(slice(before, n - by - behind))
    return tuple(found)
