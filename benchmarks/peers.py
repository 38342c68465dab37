"""Other ways to compute neighborhood attention in PyTorch, each prepared as its users would.

Everything that does not depend on the tensors' values (gather indices, masks, block masks, compilation) and the
layout that a peer likes (mostly ``[batch, heads, tokens, head_dim]``, contiguous) is made before the clock runs.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tvm_na.problems.attention import NAProblem
from tvm_na.reference.attention import axis_neighbors

#: From query, key and value to the output, all in the layout of a peer.
Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def heads_first(t: Tensor) -> Tensor:
    """``[batch, *spatial, heads, head_dim]`` to contiguous ``[batch, heads, tokens, head_dim]``."""
    return t.flatten(1, -3).transpose(1, 2).contiguous()


def tokens_first(out: Tensor, problem: NAProblem) -> Tensor:
    """The other way round."""
    return out.transpose(1, 2).unflatten(1, problem.spatial)


@dataclass(frozen=True)
class Peer:
    """A way to compute neighborhood attention.

    Attributes:
        what: What it is, for the line below a table.
        prepare: From a problem, a device and the bias of a problem that has one to what is timed.
        layout: From ``[batch, *spatial, heads, head_dim]`` to what it takes.
        back: The other way round, for its output.
    """

    name: str
    what: str
    prepare: Callable[[NAProblem, str, Tensor | None], Call]
    layout: Callable[[Tensor], Tensor] = heads_first
    back: Callable[[Tensor, NAProblem], Tensor] = tokens_first


def _axes(problem: NAProblem) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [axis_neighbors(*axis) for axis in problem.axes]


def _require_plain(problem: NAProblem) -> None:
    if any(problem.is_causal) or problem.heads != problem.heads_kv:
        raise NotImplementedError(f"required a problem without causal masking and GQA, got {problem}")


def _flat(of_axes: list[Tensor], join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """One matrix ``[a0 * a1 * ..., b0 * b1 * ...]`` of those of the axes ``[..., ai, bi]``, joined pair by pair."""
    found = of_axes[0]
    for axis in of_axes[1:]:
        rows, columns = found.shape[-2] * axis.shape[-2], found.shape[-1] * axis.shape[-1]
        joined = join(found[..., :, None, :, None], axis[..., None, :, None, :])
        found = joined.reshape(*joined.shape[:-4], rows, columns)
    return found


def dense_mask(problem: NAProblem) -> Tensor:
    """Which key a query sees: bool ``[tokens, tokens]``."""
    allowed = []
    for positions, _, exists in _axes(problem):
        axis = torch.zeros(positions.shape[0], positions.shape[0], dtype=torch.uint8)
        # scatter_reduce, since a missing neighbor is named as position 0, which may be a neighbor as well.
        axis.scatter_reduce_(1, positions, exists.to(torch.uint8), reduce="amax")
        allowed.append(axis.bool())
    return _flat(allowed, torch.logical_and)


def _of_bias(rpb: Tensor, problem: NAProblem, of_axes: list[Tensor]) -> Tensor:
    """The bias ``[heads, rows, columns]`` at indices ``[rows, columns]`` of each axis."""
    widths = iter([2 * k - 1 for k in problem.kernel_size[1:]])
    index = _flat(of_axes, lambda a, b: a * next(widths) + b)
    return rpb.flatten(1)[:, index.to(rpb.device)]


def dense_bias(rpb: Tensor, problem: NAProblem) -> Tensor:
    """The bias of every pair of tokens ``[heads, tokens, tokens]``; meaningless where there is no neighbor."""
    relative = []
    for n, k, d in zip(problem.spatial, problem.kernel_size, problem.dilation, strict=True):
        i = torch.arange(n)
        relative.append(((i - i[:, None]) // d + k - 1).clamp(0, 2 * k - 2))
    return _of_bias(rpb, problem, relative)


def _coordinates(problem: NAProblem, token: Tensor) -> list[Tensor]:
    """Where a token lies along each axis."""
    found = []
    for size in reversed(problem.spatial[1:]):
        found.append(token % size)
        token = token // size
    return [token, *reversed(found)]


def bias_mod(rpb: Tensor, problem: NAProblem) -> Callable[..., Tensor]:
    """flex_attention's ``score_mod`` that adds the bias; where there is no neighbor, any other."""

    def biased(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        pairs = zip(_coordinates(problem, q), _coordinates(problem, k), strict=True)
        index = []
        for (a, b), d, size in zip(pairs, problem.dilation, problem.kernel_size, strict=True):
            index.append(torch.clamp(b // d - a // d + (size - 1), 0, 2 * size - 2))
        return score + rpb[(head, *index)]

    return biased


def gather_einsum(problem: NAProblem, device: str, rpb: Tensor | None = None) -> Call:
    """Gather every window of keys and values, then two einsums around a softmax."""
    _require_plain(problem)
    axes, scale, sizes = _axes(problem), problem.head_dim**-0.5, iter(problem.spatial[1:])
    neighbors = _flat([positions for positions, _, _ in axes], lambda a, b: a * next(sizes) + b).to(device)
    bias = 0.0 if rpb is None else _of_bias(rpb, problem, [relative for _, relative, _ in axes])

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = torch.einsum("bhnd,bhnkd->bhnk", query * scale, key[:, :, neighbors]) + bias
        return torch.einsum("bhnk,bhnkd->bhnd", scores.softmax(-1), value[:, :, neighbors])

    return call


def masked_sdpa(problem: NAProblem, device: str, rpb: Tensor | None = None) -> Call:
    """``scaled_dot_product_attention`` over all tokens with a dense mask.

    On a GPU, and with a bias, numbers: the bias or 0, and minus infinity.
    """
    _require_plain(problem)
    mask = dense_mask(problem).to(device)
    if device != "cpu" or rpb is not None:
        shape, dtype = mask.shape, getattr(torch, problem.dtype)
        bias = torch.zeros(shape, dtype=dtype, device=device) if rpb is None else dense_bias(rpb, problem)
        mask = bias.masked_fill_(~mask, -math.inf)
    return lambda query, key, value: F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def window_mask_mod(problem: NAProblem) -> Callable[..., Tensor]:
    """flex_attention's ``mask_mod`` of a problem of stride 1: clamped windows, written as arithmetic."""
    _require_plain(problem)
    if set(problem.stride) != {1}:
        raise NotImplementedError(f"required stride 1, got {problem}")

    def sees(q: Tensor, k: Tensor, n: int, kernel: int, dilation: int) -> Tensor:
        residue = q % dilation
        group = (n - residue + dilation - 1) // dilation
        start = torch.minimum(torch.clamp(q // dilation - kernel // 2, min=0), group - kernel)
        offset = k // dilation - start
        return (k % dilation == residue) & (offset >= 0) & (offset < kernel)

    def mask_mod(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        pairs = zip(_coordinates(problem, q), _coordinates(problem, k), strict=True)
        axes = zip(pairs, problem.spatial, problem.kernel_size, problem.dilation, strict=True)
        return functools.reduce(torch.logical_and, [sees(*pair, *axis) for pair, *axis in axes])

    return mask_mod


_MANY = 16384  # tokens


def _compiled_flex(
    mask_mod: Callable[..., Tensor], problem: NAProblem, device: str, score_mod: Callable[..., Tensor] | None
) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tokens = math.prod(problem.spatial)
    # Eager, it makes the dense mask on the way; PyTorch's advice for many tokens is to compile it.
    make: Any = create_block_mask if tokens <= _MANY else torch.compile(create_block_mask)
    mask = make(mask_mod, None, None, tokens, tokens, device=device)
    compiled: Any = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return lambda query, key, value: compiled(query, key, value, score_mod=score_mod, block_mask=mask)


def flex(problem: NAProblem, device: str, rpb: Tensor | None = None) -> Call:
    """``torch.compile(flex_attention)`` with a block mask over tokens in the order of rows."""
    bias = None if rpb is None else bias_mod(rpb, problem)
    return _compiled_flex(window_mask_mod(problem), problem, device, bias)


_TILE = 8


def tile_order(problem: NAProblem) -> Tensor:
    """Tokens in the order of 8x8 tiles: ``[tokens]``, the row-major number of each."""
    height, width = problem.spatial
    number = torch.arange(height * width).reshape(height, width)
    tiles = [band.split(_TILE, dim=1) for band in number.split(_TILE, dim=0)]
    return torch.cat([tile.flatten() for band in tiles for tile in band])


def tiled_flex(problem: NAProblem, device: str, rpb: Tensor | None = None) -> Call:
    """The same over tokens in the order of 8x8 tiles, which makes more blocks of the mask empty.

    The tensors are reordered before the clock runs, as a model would that keeps its tokens in that order.
    """
    order, sees = tile_order(problem).to(device), window_mask_mod(problem)
    biased = None if rpb is None else bias_mod(rpb, problem)

    def sees_in_order(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return sees(batch, head, order[q], order[k])

    def biased_in_order(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert biased is not None
        return biased(score, batch, head, order[q], order[k])

    return _compiled_flex(sees_in_order, problem, device, None if biased is None else biased_in_order)


def _in_tiles(t: Tensor) -> Tensor:
    problem = NAProblem.make(tuple(t.shape[1:3]), 1, t.shape[3], t.shape[4])
    return heads_first(t)[:, :, tile_order(problem).to(t.device)].contiguous()


def _tiles_back(out: Tensor, problem: NAProblem) -> Tensor:
    return tokens_first(out[:, :, tile_order(problem).argsort().to(out.device)], problem)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise NotImplementedError(f"{error.name} is not installed") from None


def _of_library(library: Any, problem: NAProblem, rpb: Tensor | None) -> Call:
    if rpb is not None:
        raise NotImplementedError("required a problem without a bias")
    function = getattr(library, f"na{problem.rank}d")
    window = (problem.kernel_size, problem.stride, problem.dilation, problem.is_causal)
    return lambda query, key, value: function(query, key, value, *window)


def natten(problem: NAProblem, device: str, rpb: Tensor | None = None) -> Call:
    """NATTEN, the reference library, where it is installed; it has no bias since 0.20, and on CPUs flex_attention."""
    return _of_library(_library("natten"), problem, rpb)


def natten_mps(problem: NAProblem, device: str, rpb: Tensor | None = None) -> Call:
    """natten-mps where it is installed: on CPUs its backend of PyTorch's operators."""
    library = _library("natten_mps")
    library.set_backend("pure")
    return _of_library(library, problem, rpb)


def _as_it_is(t: Tensor, problem: NAProblem | None = None) -> Tensor:
    return t


_SDPA = Peer("SDPA", "scaled_dot_product_attention with a dense mask", masked_sdpa)
_FLEX = Peer("flex", "torch.compile(flex_attention) with a block mask", flex)
_NATTEN = Peer("natten", "the reference library", natten, _as_it_is, _as_it_is)
#: What is compared with, by device.
PEERS = {
    "cpu": (
        Peer("gather", "gathered windows and einsum", gather_einsum),
        _SDPA,
        _FLEX,
        _NATTEN,
        Peer("natten-mps", "another library's backend of PyTorch's operators", natten_mps, _as_it_is, _as_it_is),
    ),
    "cuda": (
        _FLEX,
        Peer("flex, tiled", "the same over tokens in 8x8 tiles", tiled_flex, _in_tiles, _tiles_back),
        _SDPA,
        _NATTEN,
    ),
}
