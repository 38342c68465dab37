"""Checkpoints under Hugging Face's names: their models' state dicts load into ours."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from tests.models.random_models import assert_same, loaded, small


def hf_state(state: dict[str, Tensor], family: str = "nat", backbone: bool = False) -> dict[str, Tensor]:
    """The inverse of our renaming, written from Hugging Face's modules: what their model would have saved."""
    out: dict[str, Tensor] = {}
    base = "" if backbone else f"{family}."
    for key, value in state.items():
        if match := re.fullmatch(r"levels\.(\d+)\.blocks\.(\d+)\.(.+)", key):
            layer = f"{base}encoder.levels.{match[1]}.layers.{match[2]}"
            name, _, leaf = match[3].rpartition(".")
            if name == "attn.qkv":
                for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    out[f"{layer}.attention.self.{part}.{leaf}"] = rows.clone()
            elif match[3] == "gamma1":
                gammas = torch.stack([value, state[key.replace("gamma1", "gamma2")]])
                out[f"{layer}.layer_scale_parameters"] = gammas
            elif match[3] != "gamma2":
                theirs = {
                    "norm1": "layernorm_before",
                    "norm2": "layernorm_after",
                    "attn": "attention.self",
                    "attn.proj": "attention.output.dense",
                    "mlp.fc1": "intermediate.dense",
                    "mlp.fc2": "output.dense",
                }
                out[f"{layer}.{theirs[name]}.{leaf}"] = value
            continue
        for ours, name in (
            (r"patch_embed\.proj", f"{base}embeddings.patch_embeddings.projection"),
            (r"patch_embed\.norm", f"{base}embeddings.norm"),
            (r"levels\.(\d+)\.downsample", rf"{base}encoder.levels.\1.downsample"),
            (r"norm(?=\.)", f"{base}layernorm"),
            (r"head", "classifier"),
        ):
            if re.match(ours, key):
                out[re.sub("^" + ours, name, key)] = value
        if match := re.fullmatch(r"norm(\d+)\.(.+)", key):
            out[f"{base}hidden_states_norms.stage{int(match[1]) + 1}.{match[2]}"] = value
    return out


@pytest.mark.parametrize("family", ["nat", "dinat"])
@pytest.mark.parametrize("layer_scale", [None, 1.0])
def test_hf_round_trip(tmp_path, family, layer_scale):
    source, target = small(1, layer_scale=layer_scale), small(2, layer_scale=layer_scale)
    file = tmp_path / "pytorch_model.bin"
    theirs = hf_state(source.state_dict(), family)
    assert f"{family}.encoder.levels.1.layers.1.attention.self.query.bias" in theirs
    assert f"{family}.layernorm.weight" in theirs and "classifier.weight" in theirs
    report = loaded(target, theirs, file)
    assert report.complete and report.adapted == ()
    assert_same(target, source)


def test_hf_without_the_models_prefix(tmp_path):
    source, target, file = small(1, num_classes=0), small(2, num_classes=0), tmp_path / "model.safetensors"
    state = {key.removeprefix("nat."): value.clone() for key, value in hf_state(source.state_dict()).items()}
    loaded(target, state, file)
    assert_same(target, source)


def test_hf_backbone(tmp_path):
    source, target, file = small(1, features_only=True), small(2, features_only=True), tmp_path / "backbone.pth"
    theirs = hf_state(source.state_dict(), backbone=True)
    assert "hidden_states_norms.stage4.weight" in theirs
    report = loaded(target, theirs, file)
    assert report.complete and report.adapted == ()
    assert_same(target, source)


def test_hf_downsampler_norm_under_either_name(tmp_path):
    source, target, file = small(1), small(2), tmp_path / "weights.pth"
    theirs = {k.replace("downsample.norm", "downsample.layernorm"): v for k, v in hf_state(source.state_dict()).items()}
    loaded(target, theirs, file)
    assert_same(target, source)


def test_hf_parts_that_do_not_join_are_reported_by_name(tmp_path):
    source, target, file = small(1, layer_scale=1.0), small(2, layer_scale=1.0), tmp_path / "weights.pth"
    theirs = hf_state(source.state_dict())
    del theirs["nat.encoder.levels.0.layers.0.attention.self.key.weight"]
    scales = "nat.encoder.levels.3.layers.0.layer_scale_parameters"
    theirs[scales] = theirs[scales][:1]
    report = loaded(target, theirs, file, strict=False)
    block = "levels.3.blocks.0."
    assert report.missing == ("levels.0.blocks.0.attn.qkv.weight", block + "gamma1", block + "gamma2")
    assert set(report.unexpected) == {
        "levels.0.blocks.0.attn.query.weight",
        "levels.0.blocks.0.attn.value.weight",
        block + "layer_scale_parameters",
    }
