"""Hugging Face's names of NAT and DiNAT weights, and ours (the authors')."""

from __future__ import annotations

import re

import torch
from torch import Tensor

_MARK = re.compile(r"^(?:(?:di)?nat\.)?(?:encoder\.levels|embeddings\.patch_embeddings)\.")

#: Pattern and replacement, applied in this order to a key without its leading ``nat.`` or ``dinat.``.
_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.norm\.", "patch_embed.norm."),
        (r"^encoder\.levels\.(\d+)\.layers\.", r"levels.\1.blocks."),
        (r"^encoder\.levels\.", "levels."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.self\.", ".attn."),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.downsample\.layernorm\.", ".downsample.norm."),
        (r"^layernorm\.", "norm."),
        (r"^classifier\.", "head."),
    )
)
_STAGE_NORM = re.compile(r"^hidden_states_norms\.stage([1-9]\d*)\.")
_QUERY = re.compile(r"\.attn\.query\.(weight|bias)$")


def is_hf(keys: list[str]) -> bool:
    """Whether keys are Hugging Face's."""
    return any(_MARK.match(key) for key in keys)


def rename(key: str) -> str:
    """The name of one of Hugging Face's keys here. query, key, value and ``layer_scale_parameters`` stay apart."""
    key = re.sub(r"^(?:di)?nat\.", "", key)
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    # Hugging Face counts stages from 1, after the stem.
    return _STAGE_NORM.sub(lambda match: f"norm{int(match[1]) - 1}.", key)


def from_hf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` under our names, if its keys are Hugging Face's; otherwise ``state`` itself.

    query, key and value ``[C, C]`` become ``attn.qkv`` ``[3C, C]`` (biases likewise) and ``layer_scale_parameters``
    ``[2, C]`` become ``gamma1`` and ``gamma2`` ``[C]``. What lacks a part or has another shape or dtype keeps its name,
    so that it is reported by it.
    """
    if not is_hf(list(state)):
        return state
    state = {rename(key): value for key, value in state.items()}
    for name in list(state):
        if _QUERY.search(name):
            _join_qkv(state, name)
        elif name.endswith(".layer_scale_parameters") and state[name].ndim == 2 and state[name].shape[0] == 2:
            gamma1, gamma2 = state.pop(name).unbind(0)
            block = name.removesuffix("layer_scale_parameters")
            state[block + "gamma1"], state[block + "gamma2"] = gamma1, gamma2
    return state


def _join_qkv(state: dict[str, Tensor], query: str) -> None:
    names = [query.replace(".attn.query.", f".attn.{part}.") for part in ("query", "key", "value")]
    kinds = {(state[name].shape, state[name].dtype) if name in state else None for name in names}
    if len(kinds) == 1:
        state[query.replace(".attn.query.", ".attn.qkv.")] = torch.cat([state.pop(name) for name in names])
