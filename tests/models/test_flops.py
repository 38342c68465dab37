"""The work of single layers is what their formulas say; test_models.py has that of the named models."""

from __future__ import annotations

import pytest
from torch import nn

from tests.helpers import Function
from tvm_na.models import flops
from tvm_na.nn import NeighborhoodAttention2D


def attending(**options) -> nn.Module:
    """One attention over the pixels, as tokens of ``in_chans`` channels."""
    model = Function(lambda m, x: m.attn(x.permute(0, 2, 3, 1)), attn=NeighborhoodAttention2D(8, 2, 3, **options))
    model.in_chans = 8
    return model


@pytest.mark.parametrize(
    ("options", "size", "expected"),
    [
        ({}, (5, 6), 30 * (4 * 8 * 8 + 2 * 8 * 9)),
        ({"rel_pos_bias": True}, (5, 6), 30 * (4 * 8 * 8 + 2 * 8 * 9 + 2 * 9)),
        # 2x5 is padded to 6x6: the projections need no product for the padding, the attention does.
        ({"dilation": 2}, (2, 5), 10 * 4 * 8 * 8 + 36 * 2 * 8 * 9),
    ],
)
def test_attention(options, size, expected):
    assert flops(attending(**options), size) == expected


def test_other_layers():
    layers = nn.Sequential(
        nn.Conv2d(3, 6, (3, 5), stride=2, padding=(1, 2), groups=3), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 7)
    )
    convolution, norm, linear = 6 * 4 * 4 * 15, 5 * 6 * 4 * 4, 6 * 4 * 4 * 7
    assert flops(layers, 8) == convolution + norm + linear


def test_a_layer_counts_as_often_as_it_is_used():
    shared = nn.Conv2d(3, 3, 1)
    assert flops(nn.Sequential(shared, shared), (4, 5)) == 2 * flops(shared, (4, 5)) == 2 * 20 * 9
