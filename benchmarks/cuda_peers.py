"""Other ways to compute neighborhood attention on an NVIDIA GPU, each prepared as its users would."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers import dense_mask, heads_first, window_mask_mod
from tvm_na.problems.attention import NAProblem

#: Computes what :attr:`CudaPeer.back` turns into ``[batch, *spatial, heads, head_dim]``.
Call = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CudaPeer:
    """A way to compute neighborhood attention.

    Attributes:
        name: Short, for tables.
        prepare: From a problem to ``call(query, key, value)``, all that does not depend on the tensors made before.
        layout: From ``[batch, *spatial, heads, head_dim]`` to what it takes.
        back: The other way round, for its output.
    """

    name: str
    prepare: Callable[[NAProblem], Call]
    layout: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, NAProblem], Tensor]


def _tokens_back(out: Tensor, problem: NAProblem) -> Tensor:
    return out.transpose(1, 2).unflatten(1, problem.spatial)


def flex(problem: NAProblem) -> Call:
    """``torch.compile(flex_attention)`` with a block mask over tokens in the order of rows."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tokens = math.prod(problem.spatial)
    mask = create_block_mask(window_mask_mod(problem), None, None, tokens, tokens, device="cuda")
    compiled: Any = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return lambda query, key, value: compiled(query, key, value, block_mask=mask)


_TILE = 8


def tile_order(problem: NAProblem) -> Tensor:
    """Tokens in the order of 8x8 tiles: ``[tokens]``, the row-major number of each."""
    height, width = problem.spatial
    number = torch.arange(height * width).reshape(height, width)
    tiles = [band.split(_TILE, dim=1) for band in number.split(_TILE, dim=0)]
    return torch.cat([tile.flatten() for band in tiles for tile in band])


def tiled_flex(problem: NAProblem) -> Call:
    """The same over tokens in the order of 8x8 tiles, which makes more blocks of the mask empty.

    The tensors are reordered before the clock runs, as a model would that keeps its tokens in that order.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    order, sees = tile_order(problem).to("cuda"), window_mask_mod(problem)
    tokens = math.prod(problem.spatial)

    def mask_mod(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return sees(batch, head, order[q], order[k])

    mask = create_block_mask(mask_mod, None, None, tokens, tokens, device="cuda")
    compiled: Any = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return lambda query, key, value: compiled(query, key, value, block_mask=mask)


def dense_sdpa(problem: NAProblem) -> Call:
    """``scaled_dot_product_attention`` over all tokens with a dense bias of 0 and minus infinity."""
    dtype = getattr(torch, problem.dtype)
    seen = dense_mask(problem)
    bias = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -math.inf).to("cuda")
    return lambda query, key, value: F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def natten(problem: NAProblem) -> Call:
    """NATTEN, the reference library, where it is installed."""
    if importlib.util.find_spec("natten") is None:
        raise NotImplementedError("natten is not installed")
    import natten as library

    return lambda query, key, value: library.na2d(query, key, value, problem.kernel_size, dilation=problem.dilation)


def _in_tiles(t: Tensor) -> Tensor:
    problem = NAProblem.make(tuple(t.shape[1:3]), 1, t.shape[3], t.shape[4])
    return heads_first(t)[:, :, tile_order(problem).to(t.device)].contiguous()


def _tiles_back(out: Tensor, problem: NAProblem) -> Tensor:
    return _tokens_back(out[:, :, tile_order(problem).argsort().to(out.device)], problem)


PEERS = (
    CudaPeer("flex", flex, heads_first, _tokens_back),
    CudaPeer("flex, tiled", tiled_flex, _in_tiles, _tiles_back),
    CudaPeer("SDPA", dense_sdpa, heads_first, _tokens_back),
    CudaPeer("natten", natten, lambda t: t, lambda out, _: out),
)
