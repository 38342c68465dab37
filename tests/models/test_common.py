"""What every model can do: gradients, backends, classifier, maps, problems; compiled it is what the reference gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.helpers import relative_error
from tests.models.random_models import attentions, made
from tvm_na.deploy.relax.problems import problems_of_whole
from tvm_na.models import NAT, DiNATs, NAModel, NATIsotropic, ViTRPB, attention_maps, create_model, problems_of
from tvm_na.models.layers import DropPath
from tvm_na.problems.attention import NAProblem

PYRAMID = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "kernel_size": 3, "dilations": (4, 2)}
ISOTROPIC = {"embed_dim": 16, "num_heads": 2, "depth": 2, "patch_size": 8}
MAKE = {
    "nat": (NAT, {**PYRAMID, "layer_scale": 0.5}),
    "dinat_s": (DiNATs, PYRAMID),
    "nat_isotropic": (NATIsotropic, {**ISOTROPIC, "kernel_size": 3, "dilations": (1, 2)}),
    "vitrpb": (ViTRPB, {**ISOTROPIC, "img_size": 48}),
}
FAMILIES = pytest.mark.parametrize("family", MAKE)
SIZE = 48
WEIGHTS = ("weight", "bias")


def small(family: str, **arguments) -> NAModel:
    """A model whose every parameter counts."""
    make, sizes = MAKE[family]
    model = made(make, **{**sizes, "num_classes": 5, **arguments})
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@FAMILIES
def test_gradients_reach_every_parameter(family):
    model = small(family).train()
    model(torch.randn(2, 3, SIZE, SIZE)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@FAMILIES
def test_compiled_logits_and_gradients_are_those_of_the_reference(family):
    x = torch.randn(2, 3, SIZE, SIZE)
    model, exact = small(family, backend="compiled"), small(family).double()
    exact.load_state_dict(model.state_dict())
    assert relative_error(model(x).detach(), exact(x.double()).detach()) <= 2e-6
    model(x).square().sum().backward()
    exact(x.double()).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert relative_error(ours.grad, theirs.grad) <= 5e-6, name


@FAMILIES
def test_backend_classifier_and_weight_decay(family):
    model = small(family, backend="auto")
    model.set_backend("reference")
    with pytest.raises(ValueError, match="^backend: required one of auto, compiled, reference, got 'cuda'"):
        model.set_backend("cuda")
    assert {a.backend for a in attentions(model)} == {"reference"}
    rpbs = {name for name, _ in model.named_parameters() if name.endswith("attn.rpb")}
    assert model.no_weight_decay() == rpbs and len(rpbs) == len(attentions(model)) > 1
    model.double().reset_classifier(7)
    x = torch.randn(1, 3, SIZE, SIZE, dtype=torch.float64)
    assert model(x).shape == (1, 7) and model.get_classifier().out_features == model.num_classes == 7
    assert model.head.weight.dtype == torch.float64 and model.head.weight.std() < 0.04 and not model.head.bias.any()
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    torch.testing.assert_close(model(x), model.forward_features(x).mean((1, 2)))
    backbone = small(family, features_only=True)
    backbone.reset_classifier(0)
    with pytest.raises(ValueError, match="^num_classes: required 0 .*got 5"):
        backbone.reset_classifier(5)


@FAMILIES
def test_drop_path_rises_and_acts_in_training_alone(family):
    model, x = small(family, drop_path_rate=0.5, drop_rate=0.1), torch.randn(4, 3, SIZE, SIZE)
    rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx(torch.linspace(0, 0.5, len(rates)).tolist())
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(x), model(x))


@FAMILIES
def test_the_last_map_of_a_backbone_is_that_of_the_classifier(family):
    model, backbone = small(family).double(), small(family, features_only=True).double()
    backbone.load_state_dict(model.state_dict(), strict=False)
    last = len(backbone.stages) - 1
    backbone.get_submodule(f"norm{last}").load_state_dict(model.norm.state_dict())
    x = torch.randn(1, 3, SIZE, SIZE, dtype=torch.float64)
    maps = backbone(x)
    torch.testing.assert_close(maps[-1], model.forward_features(x).permute(0, 3, 1, 2))
    assert len(maps) == len(backbone.feature_info)
    for found, info in zip(maps, backbone.feature_info, strict=True):
        assert found.shape == (1, info["num_chs"], SIZE // info["reduction"], SIZE // info["reduction"])
        assert found.is_contiguous() and backbone.get_submodule(info["module"]) is not None
    assert not any(key.startswith(("norm.", "head.")) for key in backbone.state_dict())


@FAMILIES
def test_attention_maps(family):
    model = small(family)
    maps = attention_maps(model, torch.randn(3, SIZE, SIZE), (SIZE - 1, 0))
    sides = {"nat": [12, 6], "dinat_s": [12, 6], "nat_isotropic": [6], "vitrpb": [6]}[family]
    assert [tuple(m.shape) for m in maps] == [(n, n) for n in sides]
    assert all(m.sum().item() == pytest.approx(1.0, abs=1e-6) for m in maps)
    seen = {"nat": [9, 9], "dinat_s": [9, 9], "nat_isotropic": [9], "vitrpb": [36]}[family]
    assert [int((m > 0).sum()) for m in maps] == seen


@FAMILIES
def test_the_whole_model_is_products_norms_and_attention(family):
    """As an artifact without PyTorch computes it: the convolutions of the tokens, six products for a layer (of query,
    key and value, one each), one for a smaller map and one for the head."""
    model = small(family)
    found = problems_of_whole(model, torch.zeros(1, 3, SIZE, SIZE))
    attention = {problem: count for problem, count in found.items() if isinstance(problem, NAProblem)}
    assert attention == problems_of(model, SIZE)
    others = {"nat": 2 + 1, "dinat_s": 1 + 1}.get(family, 1) + 1
    assert sum(found.values()) - sum(attention.values()) == 6 * len(attentions(model)) + others


@pytest.mark.parametrize(
    ("name", "block", "more", "shapes"),
    [
        (
            "nat_small",
            "levels.2.blocks.17.",
            ["attn.rpb", "gamma1", "gamma2"],
            {"levels.2.blocks.17.attn.rpb": (12, 13, 13), "levels.0.downsample.reduction.weight": (192, 96, 3, 3)},
        ),
        (
            "dinat_s_tiny",
            "layers.2.blocks.5.",
            ["attn.rpb"],
            {
                "patch_embed.proj.weight": (96, 3, 4, 4),
                "layers.1.downsample.reduction.weight": (384, 768),
                "layers.1.downsample.norm.weight": (768,),
                "layers.3.blocks.1.attn.rpb": (24, 13, 13),
                "layers.3.blocks.1.mlp.fc1.weight": (3072, 768),
            },
        ),
        (
            "dinat_isotropic_small",
            "layers.11.",
            ["attn.rpb"],
            {"patch_embed.proj.weight": (384, 3, 16, 16), "layers.11.attn.rpb": (12, 13, 13)},
        ),
        (
            "vitrpb_small",
            "layers.11.",
            ["attn.rpb", "attn.relative_position_index"],
            {"layers.11.attn.rpb": (12, 27, 27), "layers.0.attn.relative_position_index": (196, 196)},
        ),
    ],
)
def test_official_keys(name, block, more, shapes):
    with torch.device("meta"):
        state = create_model(name).state_dict()
    stages = block.partition(".")[0]
    convolutions = ["patch_embed.proj.0", "patch_embed.proj.1"] if name == "nat_small" else ["patch_embed.proj"]
    around = [*convolutions, "patch_embed.norm", "norm", "head"]
    assert {k for k in state if not k.startswith(f"{stages}.")} == {f"{m}.{p}" for m in around for p in WEIGHTS}
    inside = [f"{m}.{p}" for m in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2") for p in WEIGHTS]
    assert {k.removeprefix(block) for k in state if k.startswith(block)} == {*inside, *more}
    downsamplers = range(3) if "blocks" in block else ()
    parts = ("reduction.weight", "norm.weight", "norm.bias")
    assert {k for k in state if "downsample" in k} == {
        f"{stages}.{i}.downsample.{p}" for i in downsamplers for p in parts
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    assert all(value.dtype == torch.int64 for key, value in state.items() if key.endswith("index"))
