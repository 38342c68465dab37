"""Loading checkpoints: file forms, foreign names, differences that are adapted, and those that are errors."""

from __future__ import annotations

import argparse
import logging

import pytest
import torch
from torch import Tensor

from tests.models.random_models import FAMILIES, assert_same, loaded, small
from tvm_na.models import NAModel, create_model, load_checkpoint
from tvm_na.models.isotropic import relative_position_index
from tvm_na.models.registry import SPECS, ModelSpec


def snapshot(model: NAModel) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


# --- file forms


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".PTH"])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "state_dict_ema"])
def test_official_round_trip(tmp_path, suffix, wrapper):
    source, target, file = small(1), small(2), tmp_path / f"weights{suffix}"
    state = source.state_dict()
    report = loaded(target, state if wrapper is None else {wrapper: state, "epoch": 3}, file)
    assert report.complete and report.adapted == () and str(report) == "every key matches"
    assert_same(target, state)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_every_family_round_trip(tmp_path, family, suffix):
    source, target = small(1, family), small(2, family)
    report = loaded(target, source, tmp_path / f"weights.{suffix}")
    assert report.complete and report.adapted == ()
    assert_same(target, source)
    x = torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(target(x), source(x), rtol=0, atol=0)


def test_averaged_weights_are_preferred_and_it_is_said(tmp_path):
    raw, averaged, target, file = small(1), small(2), small(3), tmp_path / "last.pth"
    report = loaded(target, {"state_dict": raw.state_dict(), "state_dict_ema": averaged.state_dict()}, file)
    assert_same(target, averaged)
    assert report.adapted == (("state_dict", "not read: weights were taken from state_dict_ema"),)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "_orig_mod.module."])
def test_prefixes_and_training_arguments_are_no_obstacle(tmp_path, prefix):
    source, target = small(1), small(2)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    arguments = argparse.Namespace(lr=0.1, model="nat_mini")
    assert loaded(target, {"state_dict": state, "args": arguments}, tmp_path / "last.pth").complete
    assert_same(target, source)


def test_what_is_beside_a_backbone_is_dropped_but_excuses_nothing(tmp_path):
    source, target, file = small(1, num_classes=0), small(2), tmp_path / "detector.pth"
    state = {"backbone." + key: value for key, value in source.state_dict().items()}
    report = loaded(
        target,
        {"state_dict": {**state, "head.weight": torch.ones(10, 64), "rpn.conv.bias": torch.ones(3)}},
        file,
        strict=False,
    )
    assert report.missing == ("head.weight", "head.bias") and report.unexpected == ()
    assert [key for key, _ in report.adapted] == ["head.weight", "rpn.conv.bias"]
    torch.save({"a": torch.ones(1), "module.a": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="^path: .*got a under two prefixes"):
        load_checkpoint(target, file)


def test_the_model_keeps_dtype_and_device(tmp_path):
    source, target, file = small(1), small(2).double(), tmp_path / "weights.pth"
    loaded(target, {key: value.bfloat16() for key, value in source.state_dict().items()}, file)
    assert {p.dtype for p in target.parameters()} == {torch.float64}
    assert torch.equal(target.norm.weight, source.norm.weight.bfloat16().double())


# --- differences that are adapted


def test_other_number_of_classes(tmp_path):
    source, target, file = small(1), small(2, num_classes=7), tmp_path / "weights.pth"
    report = loaded(target, source, file)
    assert report.complete and [key for key, _ in report.adapted] == ["head.weight", "head.bias"]
    assert "10 classes came, the model has 7" in str(report)
    assert target.head.weight.shape == (7, 64)
    # Random with std 1 before: initialised again.
    assert 0 < target.head.weight.std() < 0.03 and not target.head.bias.any()
    assert torch.equal(target.norm.weight, source.norm.weight)


def test_model_without_a_head(tmp_path):
    source, target, file = small(1), small(2, num_classes=0), tmp_path / "weights.pth"
    report = loaded(target, source, file)
    assert report.complete and dict(report.adapted)["head.weight"] == "the model has no head: dropped"
    assert torch.equal(target.norm.weight, source.norm.weight)


@pytest.mark.parametrize(
    ("family", "kernel_size"), [("nat", 5), ("nat", (3, 5)), ("nat", 1), ("dinat_s", 5), ("nat_isotropic", 5)]
)
def test_other_kernel_size(tmp_path, family, kernel_size):
    source, target = small(1, family), small(2, family, kernel_size=kernel_size)
    report = loaded(target, source, tmp_path / "weights.pth")
    rpbs = [key for key in source.state_dict() if key.endswith("rpb")]
    assert report.complete and [key for key, _ in report.adapted] == rpbs
    h, w = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
    more = "and 2 more" if family == "nat" else rpbs[-1]
    assert f"{more}: resized from window 3x3 to {h}x{w} by bicubic interpolation" in str(report)
    for key in rpbs:
        came, resized = source.get_parameter(key), target.get_parameter(key)
        assert resized.shape == (len(came), 2 * h - 1, 2 * w - 1)
        wanted = torch.nn.functional.interpolate(came[None], size=resized.shape[1:], mode="bicubic")[0]
        torch.testing.assert_close(resized, wanted, rtol=0, atol=0)
        # The bias of a key on its query: the center stays the center.
        torch.testing.assert_close(resized[:, h - 1, w - 1], came[:, 2, 2])


def test_resizing_takes_half_precision(tmp_path):
    source, target, file = small(1), small(2, kernel_size=5), tmp_path / "weights.pth"
    assert loaded(target, {key: value.half() for key, value in source.state_dict().items()}, file).complete


@pytest.mark.parametrize(
    ("family", "outputs", "dropped"),
    [
        ("nat", (0, 1, 2, 3), ()),
        ("dinat_s", (0,), ("layers.1.blocks.1.norm1.bias", "layers.0.downsample.reduction.weight")),
        ("nat_isotropic", (0,), ("layers.2.norm1.bias",)),
        ("vitrpb", (0,), ("layers.2.norm1.bias",)),
    ],
)
def test_backbones_from_a_classification_checkpoint(tmp_path, family, outputs, dropped):
    source, target = small(1, family), small(2, family, features_only=True, out_indices=outputs)
    before, state = snapshot(target), source.state_dict()
    report = loaded(target, source, tmp_path / "weights.pth")
    adapted = dict(report.adapted)
    assert report.complete and {"norm.weight", "head.bias"} <= set(adapted)
    norms = {key for key in before if key.startswith("norm")}
    assert len(norms) == 2 * len(outputs)
    assert {adapted[key] for key in norms} == {"not in a classification checkpoint: left as it was"}
    assert all(adapted[key] == "after the model's last output: dropped" for key in dropped)
    assert_same(target, {key: (before if key in norms else state)[key] for key in before})


def test_backbone_with_fewer_outputs(tmp_path):
    source, file = small(1, features_only=True), tmp_path / "weights.pth"
    target = small(2, features_only=True, out_indices=(0, 2))
    report = loaded(target, source, file)
    adapted = dict(report.adapted)
    assert report.complete
    dropped = {"norm1.weight", "norm3.weight", "levels.2.downsample.norm.bias", "levels.3.blocks.0.attn.rpb"}
    assert dropped <= set(adapted)
    assert not any(key.startswith(("levels.0", "levels.1", "norm0", "norm2")) for key in adapted)
    assert_same(target, {key: source.state_dict()[key] for key in target.state_dict()})


def test_backbone_norm_that_should_have_come_is_missing(tmp_path):
    source, file = small(1, features_only=True, out_indices=(1, 3)), tmp_path / "weights.pth"
    target = small(2, features_only=True)
    report = loaded(target, source, file, strict=False)
    assert report.missing == ("norm0.weight", "norm0.bias", "norm2.weight", "norm2.bias")


# --- differences that are errors


def broken_state(source: NAModel) -> dict[str, Tensor]:
    state = dict(source.state_dict())
    del state["levels.1.blocks.0.norm1.bias"]
    state["levels.0.blocks.7.norm1.bias"] = torch.ones(8)
    state["norm.weight"] = torch.ones(5)
    state["levels.3.blocks.0.attn.rpb"] = torch.ones(9, 7, 7)
    return state


def test_strict_names_every_difference_and_changes_nothing(tmp_path):
    source, target, file = small(1), small(2, num_classes=7), tmp_path / "weights.pth"
    before = snapshot(target)
    with pytest.raises(ValueError, match="^path: required the keys and shapes of the model, got ") as error:
        loaded(target, broken_state(source), file)
    assert "missing: levels.1.blocks.0.norm1.bias\n" in str(error.value)
    assert "unexpected: levels.0.blocks.7.norm1.bias\n" in str(error.value)
    assert "misshapen: norm.weight: required (64,), got (5,)" in str(error.value)
    assert "misshapen: levels.3.blocks.0.attn.rpb: required (4, 5, 5), got (9, 7, 7)" in str(error.value)
    assert_same(target, before)


def test_not_strict_reports_and_loads_the_rest(tmp_path):
    source, target, file = small(1), small(2), tmp_path / "weights.pth"
    before = snapshot(target)
    report = loaded(target, broken_state(source), file, strict=False)
    assert not report.complete and report.adapted == ()
    assert report.missing == ("levels.1.blocks.0.norm1.bias",)
    assert report.unexpected == ("levels.0.blocks.7.norm1.bias",)
    assert set(report.misshapen) == {
        ("norm.weight", (64,), (5,)),
        ("levels.3.blocks.0.attn.rpb", (4, 5, 5), (9, 7, 7)),
    }
    kept = {*report.missing, *(key for key, _, _ in report.misshapen)}
    assert_same(target, {key: (before if key in kept else source.state_dict())[key] for key in before})


def test_layer_scale_that_the_model_lacks_is_unexpected(tmp_path):
    report = loaded(small(2), small(1, layer_scale=1.0), tmp_path / "weights.pth", strict=False)
    assert len(report.unexpected) == 10 and all("gamma" in key for key in report.unexpected)


class _Code:
    def __reduce__(self):
        return (print, ("code in the checkpoint ran",))


def test_code_in_a_pickle_is_refused(tmp_path, capsys):
    target = small(2)
    before = snapshot(target)
    with pytest.raises(ValueError, match=r"^path: required a file that torch.load\(weights_only=True\) reads"):
        loaded(target, {"state_dict": small(1).state_dict(), "extra": _Code()}, tmp_path / "weights.pth")
    assert capsys.readouterr().out == ""
    assert_same(target, before)


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"model": {}}, torch.ones(2), {"a": 1}, {"a": {"b": torch.ones(1)}}, {1: torch.ones(1)}]
)
def test_a_file_that_holds_something_else(tmp_path, content):
    with pytest.raises(ValueError, match="^path: required a file with a dictionary of tensors.*, got"):
        loaded(small(2), content, tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 cut off"])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="^path: required a .*file.*got .*weights"):
        load_checkpoint(small(2), tmp_path / name)


def test_wrong_path_and_model(tmp_path):
    model = small(2)
    with pytest.raises(FileNotFoundError, match="^path: required an existing file, got .*absent.pth"):
        load_checkpoint(model, tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match="^path:"):
        load_checkpoint(model, tmp_path)
    (tmp_path / "weights.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"^path: required a file ending in .pth, .*\.safetensors, got .*onnx"):
        load_checkpoint(model, tmp_path / "weights.onnx")
    with pytest.raises(TypeError, match="^path: .*int 3"):
        load_checkpoint(model, 3)
    with pytest.raises(TypeError, match="^model: .*got dict"):
        load_checkpoint({}, tmp_path / "weights.pth")
    with torch.device("meta"):
        shapes_only = create_model("nat_pico")
    with pytest.raises(ValueError, match="^model: .*meta"):
        load_checkpoint(shapes_only, tmp_path / "weights.pth")


# --- by name


def test_create_model_loads_weights_and_says_what_was_adapted(tmp_path, monkeypatch, caplog):
    spec = ModelSpec("nat_test", 8, (1, 2, 1, 1), (1, 2, 4, 4), 3.0, 0.0, 0, kernel_size=3)
    monkeypatch.setitem(SPECS, "nat_test", spec)
    source, file = small(1), tmp_path / "weights.pth"
    torch.save(source.state_dict(), file)
    with caplog.at_level(logging.WARNING):
        model = create_model("nat_test", num_classes=10, weights=file, backend="reference")
        assert caplog.text == ""
        assert_same(model, source)
        create_model("nat_test", weights=file)
    assert "nat_test: adapted: head.weight, head.bias: 10 classes came, the model has 1000" in caplog.text


# --- the other models


def test_head_of_imagenet_22k(tmp_path):
    source, target, file = small(1, num_classes=21_841), small(2, num_classes=1000), tmp_path / "weights.pth"
    report = loaded(target, source, file)
    assert report.complete and "21841 classes came, the model has 1000" in str(report)
    same = small(3, num_classes=21_841)
    assert load_checkpoint(same, file).adapted == ()
    assert_same(same, source)


def test_vit_of_another_image_size(tmp_path):
    source, target, file = small(1, "vitrpb"), small(2, "vitrpb", img_size=80), tmp_path / "weights.pth"
    report = loaded(target, source, file)
    assert report.complete and len(report.adapted) == 6
    adapted = dict(report.adapted)
    assert adapted["layers.2.attn.rpb"] == "resized from window 3x3 to 5x5 by bicubic interpolation"
    assert adapted["layers.2.attn.relative_position_index"] == "of a map of 3x3: the model's own"
    assert torch.equal(target.layers[2].attn.relative_position_index, relative_position_index(5))
    assert target(torch.randn(1, 3, 80, 80)).isfinite().all()


def test_vit_without_its_index(tmp_path):
    source, target, file = small(1, "vitrpb"), small(2, "vitrpb"), tmp_path / "weights.pth"
    index = [key for key in source.state_dict() if key.endswith("relative_position_index")]
    report = loaded(target, {key: value for key, value in source.state_dict().items() if key not in index}, file)
    assert report.adapted == tuple((key, "not in the checkpoint: the model's own") for key in index)
    assert_same(target, source)


@pytest.mark.parametrize("damage", ["transposed", "another shape", "not square"])
def test_an_index_in_another_order_is_refused(tmp_path, damage):
    """It would give every bias to another pair of positions."""
    source, target, file = small(1, "vitrpb"), small(2, "vitrpb"), tmp_path / "weights.pth"
    state, key = source.state_dict(), "layers.1.attn.relative_position_index"
    index = state[key]
    state[key] = {"transposed": index.T.contiguous(), "another shape": index.flatten(), "not square": index[:8]}[damage]
    before = snapshot(target)
    for strict in (True, False):
        with pytest.raises(ValueError, match=rf"^path: required {key} to hold the offset .*, got"):
            loaded(target, state, file, strict=strict)
    assert_same(target, before)


def test_weights_of_another_family_are_refused(tmp_path):
    with pytest.raises(ValueError, match="^path: required the keys and shapes of the model, got .*\n.*levels") as error:
        loaded(small(2), small(1, "dinat_s"), tmp_path / "weights.pth")
    assert "unexpected: " in str(error.value)
