"""The layers that the models share: a block against the paper's formulas, and stochastic depth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tvm_na.models.layers import DropPath, NABlock


def plain_block(block: nn.Module, x: Tensor) -> Tensor:
    """A block by the paper's formulas over a map whose window is the whole map (7x7, k 7: full attention + rpb)."""
    attn, (batch, h, w, c) = block.attn, x.shape
    heads = attn.num_heads
    q, k, v = attn.qkv(block.norm1(x)).view(batch, h * w, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    row, col = torch.arange(h * w) // w, torch.arange(h * w) % w
    bias = attn.rpb[:, row[None] - row[:, None] + h - 1, col[None] - col[:, None] + w - 1]
    weights = (q @ k.mT * (c // heads) ** -0.5 + bias).softmax(-1)
    x = x + block.gamma1 * attn.proj((weights @ v).transpose(1, 2).reshape(x.shape))
    return x + block.gamma2 * block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.norm2(x))))


def test_block_is_the_papers_formula():
    block = NABlock(32, 2, 7, layer_scale=0.7, backend="reference").double()
    x = torch.randn(2, 7, 7, 32, dtype=torch.float64)
    torch.testing.assert_close(block(x), plain_block(block, x))


def test_map_smaller_than_the_window_is_padded_after_norm_and_cropped():
    block = NABlock(64, 4, 7, backend="reference").double()
    x = torch.randn(1, 5, 3, 64, dtype=torch.float64)
    padded = nn.functional.pad(block.norm1(x), (0, 0, 0, 4, 0, 2))
    attended = x + block.attn(padded)[:, :5, :3]
    torch.testing.assert_close(block(x), attended + block.mlp(block.norm2(attended)))


def test_drop_path_zeroes_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = DropPath(0.25).train(), torch.ones(4000, 2, 3)
    y = drop(x)
    kept = y[:, 0, 0] != 0
    assert (y[kept] == 1 / 0.75).all() and (y[~kept] == 0).all()
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert drop.eval()(x) is x
    assert DropPath(0.0).train()(x) is x
