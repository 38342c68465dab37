"""Attention maps: sums, support, and values against attention computed another way; the demo's picture."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from tests.brute import neighbors
from tests.models.random_models import made
from tvm_na.functional import na2d
from tvm_na.models import NAT, attention_maps
from tvm_na.models.attention_maps import attention_of_query
from tvm_na.nn import NeighborhoodAttention2D

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


SMALL = {"embed_dim": 8, "depths": (2, 1, 1), "num_heads": (2, 2, 4), "kernel_size": 3, "num_classes": 5}


def small(**options) -> NAT:
    model = made(NAT, **SMALL | options)
    for parameter in model.parameters():  # far from uniform attention
        parameter.data.mul_(4)
    return model


@pytest.mark.parametrize("pixel", [(0, 0), (17, 30), (39, 55), (0, 55)])
@pytest.mark.parametrize("dilation", [1, (2, 1, 1)])
def test_support_is_the_window_and_the_sum_is_one(pixel, dilation):
    maps = attention_maps(small(dilations=dilation), torch.randn(3, 40, 56), pixel)
    assert [tuple(m.shape) for m in maps] == [(10, 14), (5, 7), (3, 4)]
    for stage, attention in enumerate(maps):
        height, width = attention.shape
        d = dilation if isinstance(dilation, int) else dilation[stage]
        rows = neighbors(pixel[0] * height // 40, height, 3, 1, d, False)
        columns = neighbors(pixel[1] * width // 56, width, 3, 1, d, False)
        expected = torch.zeros(height, width, dtype=torch.bool)
        expected[torch.tensor(rows)[:, None], torch.tensor(columns)] = True
        assert torch.equal(attention > 0, expected)
        assert attention.sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"dilation": 2}, {"stride": 2}, {"is_causal": True}, {"is_causal": (True, False), "dilation": 2}],
    ids=str,
)
def test_weights_are_what_the_operator_gives_one_hot_values(options, bias):
    """The attention of a query is the operator's output for values that are one at one position each."""
    torch.manual_seed(0)
    height, width, heads = 7, 8, 2
    module = NeighborhoodAttention2D(8, heads, 3, rel_pos_bias=bias, **options).eval()
    module.qkv.weight.data.mul_(6)
    x = torch.randn(1, height, width, 8)
    with torch.no_grad():
        query, key, _ = module._project(x)
        value = torch.eye(height * width).view(1, height, width, 1, -1).expand(-1, -1, -1, heads, -1)
        window = (3, module.stride, module.dilation, module.is_causal, module.scale)
        out = na2d(query, key, value, *window, rpb=module.rpb, backend="reference")
        for position in ((0, 0), (3, 4), (6, 7), (1, 6)):
            expected = out[0, position[0], position[1]].mean(0).view(height, width)
            torch.testing.assert_close(attention_of_query(module, x, position), expected, rtol=1e-5, atol=1e-6)


def test_the_input_of_each_stages_last_attention_is_taken():
    model, image = small(), torch.randn(1, 3, 32, 32)
    maps = attention_maps(model, image, (9, 9))
    inputs = {}
    last = model.levels[0].blocks[-1]
    hook = last.attn.register_forward_pre_hook(lambda module, args: inputs.setdefault("x", args[0]))
    with torch.no_grad():
        model(image)
        hook.remove()
        expected = attention_of_query(last.attn, inputs["x"], (2, 2))
    assert torch.equal(maps[0], expected)
    other = attention_of_query(model.levels[0].blocks[0].attn, inputs["x"], (2, 2))
    assert not torch.allclose(maps[0], other)


def test_a_map_smaller_than_the_window_has_its_padding():
    maps = attention_maps(small(kernel_size=5), torch.randn(3, 24, 32), (23, 0))
    assert [tuple(m.shape) for m in maps] == [(6, 8), (5, 5), (5, 5)]
    assert all(m.sum().item() == pytest.approx(1.0, abs=1e-6) for m in maps)
    assert (maps[2] > 0).all()


def test_no_hook_stays(monkeypatch):
    model = small()
    attention_maps(model, torch.randn(3, 32, 32), (0, 0))

    def fails(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("halfway")

    monkeypatch.setattr(model.levels[1], "forward", fails)
    with pytest.raises(RuntimeError, match="halfway"):
        attention_maps(model, torch.randn(3, 32, 32), (0, 0))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("image", "pixel", "error", "message"),
    [
        (torch.zeros(3, 32, 32), (32, 0), ValueError, "pixel: required a row and column inside of the 32x32 image"),
        (torch.zeros(3, 32, 32), (0, -1), ValueError, "pixel: required an integer >= 0, got -1"),
        (torch.zeros(3, 32, 32), (0.5, 1), TypeError, "pixel: required an integer"),
        (torch.zeros(2, 3, 32, 32), (0, 0), ValueError, r"image: required shape \[3, H, W\]"),
        (torch.zeros(1, 32, 32), (0, 0), ValueError, r"image: required shape .* got \(1, 32, 32\)"),
        ([0], (0, 0), TypeError, "image: required a torch.Tensor, got list"),
    ],
)
def test_bad_arguments(image, pixel, error, message):
    with pytest.raises(error, match=message):
        attention_maps(small(), image, pixel)


def test_only_a_model_has_stages():
    with pytest.raises(TypeError, match="model: required a model of tvm_na.models, got Linear"):
        attention_maps(torch.nn.Linear(2, 2), torch.zeros(3, 8, 8), (0, 0))


def test_the_demo_draws_a_picture(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    image_module = pytest.importorskip("PIL.Image")
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    demo = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", demo)  # dataclasses look their module up
    spec.loader.exec_module(demo)
    image = image_module.new("RGB", (64, 64), "green")
    photograph = demo.Photograph("x.jpg", image, torch.randn(1, 3, 64, 64), (10, 63))
    demo.draw(small(), [photograph], "random weights", tmp_path / "new" / "attention.png")
    with image_module.open(tmp_path / "new" / "attention.png") as picture:
        assert picture.size[0] > 1000
