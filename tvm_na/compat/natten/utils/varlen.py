"""``natten.utils.varlen``: sequences of different lengths, packed behind each other in a batch of one."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

_INTEGERS = (torch.int32, torch.int64)


def _check_lengths(argument: str, lengths: Any) -> None:
    if not isinstance(lengths, Tensor) or lengths.dtype not in _INTEGERS:
        kind = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"{argument}: required a tensor of int32 or int64, got {kind}")
    if lengths.ndim != 1 or not len(lengths):
        raise ValueError(f"{argument}: required one dimension with an element or more, got {tuple(lengths.shape)}")


def check_packed(query: Tensor, key: Tensor, value: Tensor) -> None:
    """ValueError unless query, key and value are a batch of one."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.shape[0] != 1:
            raise ValueError(f"{name}: required a batch of one for packed sequences, got {tensor.shape[0]}")


def generate_varlen_parameters(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seqlens_Q: Tensor | None = None,
    seqlens_KV: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, int, int]:
    """What :func:`natten.attention` wants to know of packed sequences.

    Args:
        query: ``[1, sum of lengths, heads, head_dim]``.
        key, value: ``[1, sum of lengths, heads_kv, ...]``.
        seqlens_Q, seqlens_KV: Lengths of the sequences ``[sequences]``, int32 or int64; both or none.

    Returns:
        ``cumulative_seqlen_Q`` and ``cumulative_seqlen_KV`` ``[sequences + 1]`` int32, which begin with 0, and the
        largest lengths; ``(None, None, 0, 0)`` without lengths.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    if seqlens_Q is None and seqlens_KV is None:
        return None, None, 0, 0
    if seqlens_Q is None or seqlens_KV is None:
        missing = "seqlens_Q" if seqlens_Q is None else "seqlens_KV"
        raise ValueError(f"{missing}: required together with its counterpart, got None")
    _check_lengths("seqlens_Q", seqlens_Q)
    _check_lengths("seqlens_KV", seqlens_KV)
    if len(seqlens_Q) != len(seqlens_KV):
        raise ValueError(f"seqlens_KV: required as many as seqlens_Q, {len(seqlens_Q)}, got {len(seqlens_KV)}")
    check_packed(query, key, value)
    offsets = [torch.nn.functional.pad(n.cumsum(0), (1, 0)).to(torch.int32) for n in (seqlens_Q, seqlens_KV)]
    return offsets[0], offsets[1], int(seqlens_Q.max()), int(seqlens_KV.max())


def bounds(argument: str, cumulative: Any, tokens: int, largest: int | None) -> list[int]:
    """Where sequences begin, and where the last one ends, of ``cumulative_seqlen_*``, checked.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    _check_lengths(argument, cumulative)
    at: list[int] = cumulative.tolist()
    lengths = [b - a for a, b in itertools.pairwise(at)]
    if not lengths or at[0] != 0 or at[-1] != tokens or min(lengths) < 0:
        raise ValueError(f"{argument}: required 0, then sums of lengths up to {tokens}, got {at}")
    if largest is not None and largest < max(lengths):
        name = argument.replace("cumulative", "max")
        raise ValueError(f"{name}: required the largest length, {max(lengths)}, or more, got {largest}")
    return at
