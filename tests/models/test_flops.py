"""The work of the named models is what the papers' tables say; that of single layers is what their formulas say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tvm_na.models import create_model, flops
from tvm_na.nn import NeighborhoodAttention2D

# In units of 1e9, at the size in pixels: the digits that are published.
PUBLISHED = {
    ("nat_mini", 224): "2.71",
    ("nat_tiny", 224): "4.32",
    ("nat_small", 224): "7.81",
    ("nat_base", 224): "13.73",
    ("dinat_mini", 224): "2.71",
    ("dinat_base", 224): "13.73",
    ("dinat_large", 224): "30.53",
    ("dinat_large_384", 384): "89.73",
    ("dinat_large_384_11x11", 384): "92.35",
    ("dinat_s_tiny", 224): "4.51",
    ("dinat_s_small", 224): "8.77",
    ("dinat_s_base", 224): "15.47",
    ("dinat_s_large", 224): "34.54",
    ("dinat_s_large_384", 384): "101.5",
    ("nat_isotropic_small", 224): "4.32",
    ("nat_isotropic_base", 224): "16.96",
    ("dinat_isotropic_small", 224): "4.32",
    ("dinat_isotropic_base", 224): "16.96",
    ("vitrpb_small", 224): "4.58",
    ("vitrpb_base", 224): "17.49",
}


@pytest.mark.parametrize(("name", "size"), PUBLISHED)
def test_models_have_the_published_work(name, size):
    with torch.device("meta"):
        model = create_model(name)
    published = PUBLISHED[name, size]
    assert f"{flops(model, size) / 1e9:.{len(published.split('.')[1])}f}" == published


class Attending(nn.Module):
    """One attention over the pixels, as tokens of ``in_chans`` channels."""

    in_chans = 8

    def __init__(self, **options) -> None:
        super().__init__()
        self.attention = NeighborhoodAttention2D(8, 2, 3, **options)

    def forward(self, x):
        return self.attention(x.permute(0, 2, 3, 1))


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
    assert flops(Attending(**options), size) == expected


def test_other_layers():
    layers = nn.Sequential(
        nn.Conv2d(3, 6, (3, 5), stride=2, padding=(1, 2), groups=3), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 7)
    )
    convolution, norm, linear = 6 * 4 * 4 * 15, 5 * 6 * 4 * 4, 6 * 4 * 4 * 7
    assert flops(layers, 8) == convolution + norm + linear


def test_a_layer_counts_as_often_as_it_is_used():
    shared = nn.Conv2d(3, 3, 1)
    assert flops(nn.Sequential(shared, shared), (4, 5)) == 2 * flops(shared, (4, 5)) == 2 * 20 * 9


def test_the_model_is_left_as_it_is():
    model = create_model("nat_pico", backend="reference").train()
    before = torch.random.get_rng_state()
    assert flops(model, 32) == flops(model, (32, 32)) < flops(model, (32, 64))
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert "forward" not in vars(model.levels[0].blocks[0].attn)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="^model: required a torch.nn.Module, got str"):
        flops("nat_mini", 224)
    with pytest.raises(ValueError, match="^input_size: required .*got 0"):
        flops(nn.Conv2d(3, 3, 1), 0)
    with pytest.raises(TypeError, match="^module: required parameters of dtype .*got float8"):
        flops(Attending().to(torch.float8_e5m2), 8)
