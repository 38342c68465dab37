"""The named models: sizes and arguments. NAT: shapes, outputs, and what it refuses."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from tests.models.random_models import attentions, made
from tvm_na.models import NAT, create_model, flops, list_models, problems_of, training_problems_of
from tvm_na.models.dilations import alternating_dilations, per_layer_dilations
from tvm_na.models.layers import DropPath
from tvm_na.models.registry import SPECS

#: Parameters, and the published digits of the work in 1e9 operations, where there are any.
PUBLISHED = {
    "nat_pico": (576_294, ""),
    "nat_mini": (19_984_174, "2.71"),
    "nat_tiny": (27_901_582, "4.32"),
    "nat_small": (50_743_297, "7.81"),
    "nat_base": (89_769_652, "13.73"),
    "dinat_mini": (19_984_174, "2.71"),
    "dinat_tiny": (27_901_582, ""),
    "dinat_small": (50_719_681, ""),
    "dinat_base": (89_769_652, "13.73"),
    "dinat_large": (200_943_514, "30.53"),
    "dinat_large_384": (200_943_514, "89.73"),
    "dinat_large_384_11x11": (201_144_250, "92.35"),
    "dinat_s_tiny": (28_288_354, "4.51"),
    "dinat_s_small": (49_606_258, "8.77"),
    "dinat_s_base": (87_768_224, "15.47"),
    "dinat_s_large": (196_532_476, "34.54"),
    "dinat_s_large_384": (196_532_476, "101.5"),
    "nat_isotropic_small": (21_999_736, "4.32"),
    "nat_isotropic_base": (86_465_800, "16.96"),
    "dinat_isotropic_small": (21_999_736, "4.32"),
    "dinat_isotropic_base": (86_465_800, "16.96"),
    "vitrpb_small": (22_080_376, "4.58"),
    "vitrpb_base": (86_627_080, "17.49"),
}
WITH_LAYER_SCALE = ("nat_small", "nat_base", "dinat_base")
SMALL = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}


def small(**arguments) -> NAT:
    return made(NAT, **SMALL | arguments)


# --- the named models


def test_listed_models_are_those_counted():
    assert list_models() == list(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_work_layer_scale_and_drop_path(name):
    spec, (parameters, work) = SPECS[name], PUBLISHED[name]
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters == spec.parameters
    if work:
        found = flops(model, 384 if "384" in name else 224) / 1e9
        assert f"{found:.{len(work.partition('.')[2])}f}" == work
    gammas = [key for key in model.state_dict() if "gamma" in key]
    assert len(gammas) == (2 * sum(spec.depths) if name in WITH_LAYER_SCALE else 0)
    rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx(torch.linspace(0, spec.drop_path_rate, sum(spec.depths)).tolist(), abs=1e-6)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"^name: required one of nat_pico,.*got 'nat-tiny' \(.* 'nat_tiny'\?\)$"):
        create_model("nat-tiny")
    with pytest.raises(ValueError, match="^name: .*got 'zzz'$"):
        create_model("zzz")
    with pytest.raises(TypeError, match="^name: .*int 3"):
        create_model(3)


def test_overrides_reach_the_model():
    with torch.device("meta"):
        model = create_model("nat_mini", num_classes=7, kernel_size=5, dilations=2, in_chans=1, layer_scale=0.1)
    assert model.head.out_features == 7
    assert {(a.kernel_size, a.dilation) for a in attentions(model)} == {((5, 5), (2, 2))}
    assert model.patch_embed.proj[0].in_channels == 1
    assert model.levels[0].blocks[0].gamma1 is not None
    with pytest.raises(TypeError, match="no_such_argument"):
        create_model("nat_mini", no_such_argument=1)


# --- forward


@pytest.mark.parametrize("size", [(224, 224), (97, 131), (1, 1)])
def test_forward_shape(size):
    model = small()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        features, logits = model.forward_features(x), model(x)
    assert features.shape == (2, math.ceil(size[0] / 32), math.ceil(size[1] / 32), 128)
    assert logits.shape == (2, 10) and logits.isfinite().all()
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((1, 2)))
    torch.testing.assert_close(logits, model.head(pooled))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 32)])
def test_forward_refuses_other_layouts(shape):
    with pytest.raises(ValueError, match=r"^x: required shape \[batch, 3, height, width\], got"):
        small()(torch.zeros(shape))


def test_dilations_reach_the_layers():
    model = small(depths=(2, 1, 1, 1), dilations=((1, 8), 4, [2], 1))
    assert [a.dilation for a in attentions(model)] == [(1, 1), (8, 8), (4, 4), (2, 2), (1, 1)]
    assert model(torch.randn(1, 3, 224, 224)).shape == (1, 10)
    assert per_layer_dilations(None, (1, 2)) == [(1,), (1, 1)]
    assert per_layer_dilations(3, (1, 2)) == [(3,), (3, 3)]


# Of a model's odd layers in each stage; even ones have 1.
DILATIONS = {
    "nat_mini": (1, 1, 1, 1),
    "nat_tiny": (1, 1, 1, 1),
    "nat_isotropic_small": (1,),
    "vitrpb_small": (1,),
    "dinat_mini": (8, 4, 2, 1),
    "dinat_large": (8, 4, 2, 1),
    "dinat_large_384": (13, 6, 3, 1),
    "dinat_large_384_11x11": (8, 4, 2, 1),
    "dinat_s_tiny": (8, 4, 2, 1),
    "dinat_s_large_384": (13, 6, 3, 1),
    "dinat_isotropic_small": (2,),
    "dinat_isotropic_base": (2,),
}


@pytest.mark.parametrize("name", DILATIONS)
def test_dilations_are_those_of_the_authors_and_reach_the_problems(name):
    size, window = 384 if "384" in name else 224, {"dinat_large_384_11x11": 11, "vitrpb_small": 14}.get(name, 7)
    with torch.device("meta"):
        model = create_model(name)
    layers = [
        (stage, dilation if layer % 2 else 1)
        for stage, (dilation, depth) in enumerate(zip(DILATIONS[name], SPECS[name].depths, strict=True))
        for layer in range(depth)
    ]
    assert [a.dilation for a in attentions(model)] == [(d, d) for _, d in layers]
    assert SPECS[name].preprocessing.input_size == size
    found, first = problems_of(model, size), size // (4 if len(DILATIONS[name]) == 4 else 16)
    heads = [a.num_heads for a in attentions(model)]
    maps = Counter((first >> stage, dilation, n) for (stage, dilation), n in zip(layers, heads, strict=True))
    assert [((*set(p.spatial), *set(p.dilation), p.heads), n) for p, n in found.items()] == list(maps.items())
    assert all((p.kernel_size, p.head_dim, p.bias) == ((window, window), 32, True) for p in found)
    assert sum(training_problems_of(model, size).values()) == 2 * len(layers)


def test_dilations_follow_the_overrides_or_are_given():
    with torch.device("meta"):
        shallow = create_model("dinat_mini", depths=(2, 1, 1, 2), kernel_size=(3, 5))
        plain = create_model("dinat_s_tiny", dilations=None)
        fine = create_model("dinat_isotropic_small", depth=3, patch_size=8)
    assert [a.dilation[0] for a in attentions(shallow)] == [1, 11, 1, 1, 1, 1]
    assert {a.dilation for a in attentions(plain)} == {(1, 1)}
    assert [a.dilation[0] for a in attentions(fine)] == [1, 4, 1]


def test_alternating_dilations():
    assert alternating_dilations(225, 7, (2, 3)) == [(1, 8), (1, 4, 1)]  # maps of 57 and 29
    assert alternating_dilations(32, 7, (2, 2)) == [(1, 1), (1, 1)]
    with pytest.raises(ValueError, match="^input_size: required an integer >= 1, got 0"):
        alternating_dilations(0, 7, (2,))
    with pytest.raises(TypeError, match="^depths: required"):
        alternating_dilations(224, 7, "22")
    with pytest.raises(ValueError, match="^kernel_size: required"):
        alternating_dilations(224, 0, (2,))


# --- features only


def test_features_only_maps():
    model = small(features_only=True)
    maps = model(torch.randn(2, 3, 90, 65))
    assert [tuple(m.shape) for m in maps] == [(2, 16, 23, 17), (2, 32, 12, 9), (2, 64, 6, 5), (2, 128, 3, 3)]
    assert all(m.is_contiguous() for m in maps)
    assert [f["num_chs"] for f in model.feature_info] == [16, 32, 64, 128]
    assert [f["reduction"] for f in model.feature_info] == [4, 8, 16, 32]
    outputs = [key for key in model.state_dict() if key.startswith(("norm", "head"))]
    assert outputs == [f"norm{i}.{p}" for i in range(4) for p in ("weight", "bias")]


def test_features_only_maps_are_those_before_the_downsampler_normed():
    model, backbone = small().double(), small(features_only=True, out_indices=(1, 3)).double()
    backbone.load_state_dict(model.state_dict(), strict=False)
    backbone.norm3.load_state_dict(model.norm.state_dict())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    stage1, stage3 = backbone(x)
    torch.testing.assert_close(stage3, model.forward_features(x).permute(0, 3, 1, 2))
    tokens = model.patch_embed(x)
    tokens = model.levels[0](tokens)[1]
    tokens = model.levels[1].blocks[0](tokens)
    torch.testing.assert_close(stage1, backbone.norm1(tokens).permute(0, 3, 1, 2))


def test_features_only_leaves_out_unused_stages():
    model = small(features_only=True, out_indices=(0, 2), drop_path_rate=0.3)
    assert len(model.levels) == 3 and model.levels[2].downsample is None and model.num_features == 64
    assert [f["module"] for f in model.feature_info] == ["levels.0", "levels.2"]
    assert [tuple(m.shape) for m in model(torch.randn(1, 3, 64, 64))] == [(1, 16, 16, 16), (1, 64, 4, 4)]
    rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2])
    model.train()(torch.randn(2, 3, 64, 64))[1].sum().backward()


def test_features_only_returns_every_stage_of_a_named_model():
    model = create_model("nat_pico", features_only=True, backend="reference")
    assert [tuple(m.shape) for m in model(torch.randn(1, 3, 32, 32))] == [(1, 32, 8, 8), (1, 64, 4, 4), (1, 128, 2, 2)]
    with torch.device("meta"):
        assert create_model("nat_mini", features_only=True).out_indices == (0, 1, 2, 3)
        assert create_model("nat_mini", features_only=True, out_indices=(1,)).out_indices == (1,)
    with pytest.raises(ValueError, match="^out_indices: required"):
        create_model("nat_mini", features_only=True, out_indices=())


@pytest.mark.parametrize("out_indices", [(), (0, 4), (-1,), (1, 0), (2, 2), 3, "01"])
def test_wrong_out_indices(out_indices):
    with pytest.raises((ValueError, TypeError), match="^out_indices: required"):
        small(features_only=True, out_indices=out_indices)


def test_initialisation():
    model = small(embed_dim=64, layer_scale=1e-5)
    block = model.levels[3].blocks[0]
    for weight in (block.attn.qkv.weight, block.attn.rpb, block.mlp.fc1.weight, model.head.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert weight.abs().max() <= 2.0
    assert not block.attn.qkv.bias.any() and not block.mlp.fc2.bias.any()
    assert (block.gamma1 == 1e-5).all() and (block.gamma2 == 1e-5).all()
    assert block.norm1.eps == 1e-5


# --- arguments


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("embed_dim", 15, ValueError),
        ("embed_dim", 0, ValueError),
        ("embed_dim", 16.0, TypeError),
        ("depths", (), ValueError),
        ("depths", (1, 0, 1, 1), ValueError),
        ("depths", 4, TypeError),
        ("num_heads", (1, 2), ValueError),
        ("num_heads", (1, 2, 4, True), TypeError),
        ("num_classes", -1, ValueError),
        ("num_classes", "10", TypeError),
        ("in_chans", 0, ValueError),
        ("kernel_size", 0, ValueError),
        ("kernel_size", (3, 3, 3), ValueError),
        ("dilations", (1, 1), ValueError),
        ("dilations", (1, 1, 1, (1, 2)), ValueError),
        ("dilations", "1111", TypeError),
        ("dilations", 0, ValueError),
        ("mlp_ratio", 0, ValueError),
        ("drop_path_rate", 1.0, ValueError),
        ("drop_path_rate", -0.1, ValueError),
        ("drop_rate", "0.1", TypeError),
        ("layer_scale", 0.0, ValueError),
        ("layer_scale", float("nan"), ValueError),
        ("features_only", 1, TypeError),
        ("backend", "tvm", ValueError),
    ],
)
def test_wrong_arguments_are_named(argument, value, error):
    with pytest.raises(error, match=f"^{argument}.*required.*got"):
        small(**{argument: value})
