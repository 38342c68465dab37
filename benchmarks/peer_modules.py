"""Models that attend in the ways of peers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers import bias_mod, dense_bias, dense_mask, window_mask_mod
from tvm_na.models.problems import problem_of_module
from tvm_na.nn import NeighborhoodAttention2D
from tvm_na.problems.attention import NAProblem


def replaced(
    model: nn.Module, x: Tensor, replacement: Callable[[NeighborhoodAttention2D, NAProblem], nn.Module]
) -> nn.Module:
    """A copy of ``model`` with another module in place of each neighborhood attention, for inputs of ``x``'s size."""
    shapes: dict[str, torch.Size] = {}

    def note(name: str) -> torch.utils.hooks.RemovableHandle:
        module = model.get_submodule(name)
        return module.register_forward_pre_hook(lambda _, args: shapes.__setitem__(name, args[0].shape))

    names = [name for name, module in model.named_modules() if isinstance(module, NeighborhoodAttention2D)]
    hooks = [note(name) for name in names]
    model(x)
    for hook in hooks:
        hook.remove()
    peer = copy.deepcopy(model)
    for name in names:
        module = peer.get_submodule(name)
        assert isinstance(module, NeighborhoodAttention2D)
        peer.set_submodule(name, replacement(module, problem_of_module(module, shapes[name])))
    return peer


class PeerAttention(nn.Module):
    """A :class:`NeighborhoodAttention2D` that attends in another way, for one input size."""

    def __init__(self, module: NeighborhoodAttention2D, problem: NAProblem) -> None:
        super().__init__()
        self.module, self.problem = module, problem

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """From ``[batch, heads, tokens, head_dim]`` to the same."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, H, W, embed_dim]`` to the same shape; H and W are the problem's."""
        query, key, value = (t.flatten(1, 2).transpose(1, 2) for t in self.module._project(x))
        out = self.attend(query, key, value)
        projected: Tensor = self.module.proj(out.transpose(1, 2).reshape(x.shape))
        return projected


class DenseMaskAttention(PeerAttention):
    """By SDPA with a dense mask that holds the bias."""

    mask: Tensor

    def __init__(self, module: NeighborhoodAttention2D, problem: NAProblem) -> None:
        super().__init__(module, problem)
        tokens = math.prod(problem.spatial)
        mask = torch.full((problem.heads, tokens, tokens), -math.inf)
        if module.rpb is None:
            mask.masked_fill_(dense_mask(problem), 0.0)
        else:
            mask = torch.where(dense_mask(problem), dense_bias(module.rpb.detach(), problem), mask)
        self.register_buffer("mask", mask, persistent=False)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask, scale=self.module.scale)


class FlexAttention(PeerAttention):
    """By ``flex_attention``, compiled if wanted, with the bias as its ``score_mod``."""

    def __init__(self, module: NeighborhoodAttention2D, problem: NAProblem, compiled: bool = True) -> None:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        super().__init__(module, problem)
        tokens, device = math.prod(problem.spatial), str(module.proj.weight.device)
        plain = NAProblem.make(problem.spatial, problem.kernel_size, 1, 1, dilation=problem.dilation)
        self.block_mask = create_block_mask(window_mask_mod(plain), None, None, tokens, tokens, device=device)
        self.flex: Any = flex_attention
        if compiled:
            self.flex = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        bias = None if self.module.rpb is None else bias_mod(self.module.rpb, self.problem)
        out: Tensor = self.flex(query, key, value, score_mod=bias, block_mask=self.block_mask, scale=self.module.scale)
        return out
