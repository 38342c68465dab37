"""An oracle for the oracle: neighborhood attention from its definition, as plainly and slowly as it reads.

The neighbors of every query are listed in plain Python; all else is dense softmax attention under a mask.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from tvm_na.problems.attention import NAProblem


def same_residue(i: int, length: int, dilation: int) -> list[int]:
    """The positions of ``i``'s dilation group, in order."""
    return [p for p in range(length) if p % dilation == i % dilation]


def nearest(i: int, length: int, kernel_size: int, dilation: int) -> list[int]:
    """The ``kernel_size`` positions of ``i``'s group that are nearest to it (the NAT papers; odd kernels)."""
    return sorted(sorted(same_residue(i, length, dilation), key=lambda p: abs(p - i))[:kernel_size])


def by_formula(i: int, length: int, kernel_size: int, stride: int, dilation: int, is_causal: bool) -> list[int]:
    """The neighbors of ``i`` by the formulas of docs/design/expressions.md."""
    group = same_residue(i, length, dilation)
    j = group.index(i)
    first = j - j % stride
    if is_causal:
        leader = min(first + stride - 1, len(group) - 1)
        return group[max(leader - kernel_size + 1, 0) : j + 1]
    leader = min(first + stride // 2, len(group) - 1)
    start = min(max(leader - kernel_size // 2, 0), len(group) - kernel_size)
    return group[start : start + kernel_size]


def neighbors(i: int, length: int, kernel_size: int, stride: int, dilation: int, is_causal: bool) -> list[int]:
    """The neighbors of ``i``; where the papers define them too, both definitions agree."""
    found = by_formula(i, length, kernel_size, stride, dilation, is_causal)
    if stride == 1 and not is_causal and kernel_size % 2 == 1:
        assert found == nearest(i, length, kernel_size, dilation)
    return found


def dense(problem: NAProblem) -> tuple[Tensor, Tensor]:
    """``mask`` ``[tokens, tokens]``, whether a query sees a key, and ``index``, the flat index into the bias."""
    positions = list(itertools.product(*(range(size) for size in problem.spatial)))
    flat = {position: n for n, position in enumerate(positions)}
    mask = torch.zeros(len(positions), len(positions), dtype=torch.bool)
    index = torch.zeros(len(positions), len(positions), dtype=torch.int64)
    for query in positions:
        for key in itertools.product(*(neighbors(i, *axis) for i, axis in zip(query, problem.axes, strict=True))):
            n = 0
            for i, p, (_, k, _, d, _) in zip(query, key, problem.axes, strict=True):
                assert (p - i) % d == 0
                n = n * (2 * k - 1) + (p - i) // d + k - 1
            mask[flat[query], flat[key]] = True
            index[flat[query], flat[key]] = n
    return mask, index


def attention(
    problem: NAProblem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    rpb: Tensor | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp in float64, with the operator's layouts."""
    mask, index = dense(problem)
    tokens, group = len(mask), problem.heads // problem.heads_kv
    kv_head = [h // group for h in range(problem.heads)]
    q = query.double().reshape(-1, tokens, problem.heads, problem.head_dim)
    k = key.double().reshape(-1, tokens, problem.heads_kv, problem.head_dim)[:, :, kv_head]
    v = value.double().reshape(-1, tokens, problem.heads_kv, problem.head_dim_v)[:, :, kv_head]
    scores = scale * torch.einsum("bihd,bjhd->bhij", q, k)
    if rpb is not None:
        scores = scores + rpb.double().flatten(1)[:, index]
    scores = scores.masked_fill(~mask, -math.inf)
    if additional_keys is not None and additional_values is not None:
        more = scale * torch.einsum("bihd,bjhd->bhij", q, additional_keys.double()[:, :, kv_head])
        scores = torch.cat([scores, more], dim=-1)
        v = torch.cat([v, additional_values.double()[:, :, kv_head]], dim=1)
    # Of only minus infinity the sum of weights is 0; then the output is 0 and its logarithm minus infinity.
    largest = scores.amax(dim=-1, keepdim=True).clamp(min=-torch.finfo(torch.float64).max)
    weights = torch.exp(scores - largest)
    total = weights.sum(dim=-1, keepdim=True)
    out = torch.einsum("bhij,bjhd->bihd", weights / torch.where(total == 0, 1.0, total), v)
    lse = (largest + torch.log(total))[..., 0].transpose(1, 2)
    shape = (len(query), *problem.spatial, problem.heads)
    return out.reshape(*shape, problem.head_dim_v), lse.reshape(shape)
