"""Checkpoints under Hugging Face's names: their models' state dicts load into ours."""

from __future__ import annotations

import re
from functools import partial

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


def without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("nat."): value.clone() for key, value in hf_state(state).items()}


def with_another_name(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("downsample.norm", "downsample.layernorm"): value for key, value in hf_state(state).items()}


@pytest.mark.parametrize(
    ("saved", "options", "suffix", "key"),
    [
        (hf_state, {}, "bin", "nat.encoder.levels.1.layers.1.attention.self.query.bias"),
        (hf_state, {"layer_scale": 1.0}, "bin", "nat.layernorm.weight"),
        (partial(hf_state, family="dinat"), {}, "bin", "dinat.encoder.levels.1.layers.1.attention.self.query.bias"),
        (partial(hf_state, family="dinat"), {"layer_scale": 1.0}, "bin", "classifier.weight"),
        (partial(hf_state, backbone=True), {"features_only": True}, "pth", "hidden_states_norms.stage4.weight"),
        (without_prefix, {"num_classes": 0}, "safetensors", "layernorm.weight"),
        (with_another_name, {}, "pth", "nat.encoder.levels.0.downsample.layernorm.weight"),
    ],
)
def test_hf_round_trip(tmp_path, saved, options, suffix, key):
    source, target = small(1, **options), small(2, **options)
    theirs = saved(source.state_dict())
    assert key in theirs
    report = loaded(target, theirs, tmp_path / f"model.{suffix}")
    assert report.complete and report.adapted == ()
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
