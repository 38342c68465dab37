"""The eager definition of the unfused operators: any rank, dtype, device; differentiable; the oracle of their kernels.

Windows are those of :mod:`tvm_na.reference.attention`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tvm_na.reference import attention as reference

if TYPE_CHECKING:
    from tvm_na.problems.attention import NAProblem


def qk(problem: NAProblem, query: Tensor, key: Tensor, scale: float, rpb: Tensor | None = None) -> Tensor:
    """Scores of each query with the keys of its window, minus infinity where there is none.

    Args:
        problem: The validated workload; its head_dim_v does not matter.
        query: ``[batch, *spatial, heads, head_dim]``.
        key: ``[batch, *spatial, heads_kv, head_dim]``.
        scale: Factor of the products.
        rpb: ``[heads, 2*kernel_size-1, ...]``, added to the scaled products.

    Returns:
        ``[batch, *spatial, heads, prod(kernel_size)]`` in the inputs' dtype.
    """
    neighbor, relative, exists = reference.windows(problem, query.device)
    accum = reference.accum_dtype(query)
    keys = reference.in_windows(key, problem, neighbor, exists, accum)
    found = reference.window_scores(reference.per_query(query, problem, accum), keys, rpb, scale, relative, exists)
    return _at_queries(found, problem, query.dtype)


def av(problem: NAProblem, attn: Tensor, value: Tensor) -> Tensor:
    """Sums of the values of each query's window, weighted; a weight without a key counts nothing, whatever it is.

    Args:
        problem: The validated workload; its head_dim does not matter.
        attn: ``[batch, *spatial, heads, prod(kernel_size)]``.
        value: ``[batch, *spatial, heads_kv, head_dim_v]``.

    Returns:
        ``[batch, *spatial, heads, head_dim_v]`` in the inputs' dtype.
    """
    neighbor, _, exists = reference.windows(problem, attn.device)
    accum = reference.accum_dtype(attn)
    weights = reference.per_query(attn, problem, accum).masked_fill(~exists, 0.0)
    values = reference.in_windows(value, problem, neighbor, exists, accum)
    return _at_queries(torch.einsum("bhnk,bhnkd->bhnd", weights, values), problem, attn.dtype)


def bias_gather(problem: NAProblem, rpb: Tensor) -> Tensor:
    """The bias of each query and key of its window, 0 where there is no key.

    Args:
        problem: The validated workload; head dimensions do not matter.
        rpb: ``[heads, 2*kernel_size-1, ...]``.

    Returns:
        ``[*spatial, heads, prod(kernel_size)]``.
    """
    _, relative, exists = reference.windows(problem, rpb.device)
    found = rpb.flatten(1)[:, relative].masked_fill(~exists, 0.0)
    return found.transpose(0, 1).reshape(*problem.spatial, *found.shape[::2])


def _at_queries(t: Tensor, problem: NAProblem, dtype: torch.dtype) -> Tensor:
    """``[batch, heads, tokens, n]`` as ``[batch, *spatial, heads, n]``."""
    return t.transpose(1, 2).reshape(t.shape[0], *problem.spatial, problem.heads, t.shape[-1]).to(dtype)
