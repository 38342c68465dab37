"""Isotropic models: outputs, and ViT-rpb against attention written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.models.random_models import made
from tvm_na.models import NATIsotropic, ViTRPB, problems_of
from tvm_na.models.isotropic import FullAttention2D, relative_position_index

SMALL = {"embed_dim": 16, "num_heads": 2, "depth": 3, "patch_size": 8}


def small(**arguments) -> NATIsotropic:
    return made(NATIsotropic, **SMALL | {"kernel_size": 3} | arguments)


def small_vit(**arguments) -> ViTRPB:
    return made(ViTRPB, **SMALL | {"img_size": 40} | arguments)


def test_forward_is_tokens_layers_and_the_mean():
    model = small(dilations=(1, 2, 1)).double()
    x = torch.randn(2, 3, 50, 61, dtype=torch.float64)
    y = model.patch_embed(x)
    assert y.shape == (2, 7, 8, 16)
    for layer in model.layers:
        y = y + layer.attn(layer.norm1(y))
        y = y + layer.mlp(layer.norm2(y))
    torch.testing.assert_close(model(x), model.head(model.norm(y).mean((1, 2))), rtol=0, atol=1e-12)
    assert [layer.attn.dilation for layer in model.layers] == [(1, 1), (2, 2), (1, 1)]


def test_each_layer_is_an_output():
    model = small(features_only=True, out_indices=(0, 1), drop_path_rate=0.2)
    assert len(model.layers) == 2 and model.layers[1].drop_path.rate == pytest.approx(0.1)
    maps = model(torch.randn(2, 3, 40, 33))
    assert [tuple(m.shape) for m in maps] == [(2, 16, 5, 5)] * 2
    assert model.feature_info == [
        {"num_chs": 16, "reduction": 8, "module": f"layers.{layer}"} for layer in (0, 1)
    ]  # fmt: skip
    full = small()
    full.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(1, 3, 40, 40)
    first = full.layers[0](full.patch_embed(x))
    torch.testing.assert_close(model(x)[0], model.norm0(first).permute(0, 3, 1, 2))
    assert len(small(features_only=True)(x)) == 3


# --- ViT-rpb


def full_attention(module: FullAttention2D, x: Tensor) -> Tensor:
    """Every position attends to all, by the index that is in the checkpoint."""
    batch, height, width, channels = x.shape
    q, k, v = module.qkv(x).view(batch, height * width, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
    bias = module.rpb.flatten(1)[:, module.relative_position_index]
    weights = (q @ k.mT * (channels // module.num_heads) ** -0.5 + bias).softmax(-1)
    return module.proj((weights @ v).transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("side", [4, 5, 14])
def test_full_attention_is_the_authors(side):
    torch.manual_seed(0)
    module = FullAttention2D(16, 2, side, rel_pos_bias=True, backend="reference").double()
    nn.init.normal_(module.rpb)
    x = torch.randn(2, side, side, 16, dtype=torch.float64)
    torch.testing.assert_close(module(x), full_attention(module, x), rtol=0, atol=1e-13)


def test_full_attention_refuses_another_map():
    module = FullAttention2D(16, 2, 4, rel_pos_bias=True)
    for shape in ((1, 4, 5, 16), (1, 3, 4, 16)):
        with pytest.raises(ValueError, match=r"^x: required a map of \(4, 4\), got shape"):
            module(torch.zeros(shape))


def test_position_index_counts_from_the_query():
    index = relative_position_index(3)
    assert index.shape == (9, 9)
    assert index[4].tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]  # the center sees one step to each side
    assert index[0, 8] == 24 and index[8, 0] == 0
    # As the authors compute it: offsets of queries from keys, the table turned by half.
    rows, columns = torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")
    flat = torch.stack([rows.flatten(), columns.flatten()])
    offsets = flat[:, :, None] - flat[:, None, :] + 2
    assert torch.equal(index, (5 * offsets[0] + offsets[1]).rot90(2))


def test_vit_sees_the_whole_image():
    model = small_vit(depth=1).double()
    x = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    features = model.forward_features(x)
    x[..., -1, -1] += 1.0
    assert ((model.forward_features(x) - features).abs().amax(-1) > 1e-9).all()


@pytest.mark.parametrize("size", [(40, 48), (32, 40), (224, 224)])
def test_vit_refuses_another_map(size):
    message = rf"^x: required an image of 40x40 pixels \(5x5 patches\), got {size[0]}x{size[1]}$"
    with pytest.raises(ValueError, match=message):
        small_vit()(torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match=r"^x: required shape \[batch, 3, height, width\]"):
        small_vit()(torch.zeros(1, 4, 40, 40))
    with pytest.raises(ValueError, match=message):
        problems_of(small_vit(), size)
    assert small_vit()(torch.zeros(1, 3, 38, 33)).shape == (1, 10)  # padded to as many patches


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"depth": 0}, ValueError, "depth: required"),
        ({"num_heads": 3}, ValueError, "embed_dim: required a multiple of num_heads=3"),
        ({"num_heads": (2,)}, TypeError, "num_heads: required an integer"),
        ({"patch_size": 0}, ValueError, "patch_size: required"),
        ({"dilations": (1, 2)}, ValueError, "dilations: required 3 values, got 2"),
        ({"dilations": 0}, ValueError, "dilations: required an integer >= 1"),
        ({"dilations": "12"}, TypeError, "dilations: required a sequence"),
        ({"out_indices": (3,), "features_only": True}, ValueError, "out_indices: required ascending stages in 0..2"),
        ({"mlp_ratio": 0}, ValueError, "mlp_ratio: required"),
        ({"backend": "tvm"}, ValueError, "backend: required"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_wrong_arguments_are_named(arguments, error, says):
    with pytest.raises(error, match=f"^{says}"):
        small(**arguments)


def test_wrong_arguments_of_vit_are_named():
    with pytest.raises(ValueError, match="^img_size: required an integer >= 1, got 0"):
        small_vit(img_size=0)
    with pytest.raises(ValueError, match="^patch_size: required"):
        small_vit(patch_size=0)
    with pytest.raises(TypeError, match="kernel_size"):
        small_vit(kernel_size=3)
