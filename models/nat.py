"""NAT: the Neighborhood Attention Transformer (Hassani et al., arXiv 2204.07143).

A pyramid of stages over channels-last maps ``[B, H, W, C]``. Attribute names are those of the authors'
checkpoints, so that their keys are the keys of ``state_dict()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from tvm_na.functional import Backend
from tvm_na.models.layers import (
    ConvDownsampler,
    ConvTokenizer,
    NABlock,
    NALevel,
    check_backend,
    check_bool,
    check_int,
    check_ints,
    check_positive,
    check_rate,
    init_weights,
)
from tvm_na.nn import NeighborhoodAttention2D


def per_layer_dilations(dilations: Any, depths: Sequence[int]) -> list[tuple[int, ...]]:
    """One tuple per stage with one dilation per layer.

    Args:
        dilations: None (1 everywhere), an integer, or one entry per stage: an integer or one integer per layer.
        depths: Layers per stage.

    Raises:
        TypeError, ValueError: name the stage, what was required and what came.
    """
    if dilations is None or isinstance(dilations, int):
        dilations = [1 if dilations is None else dilations] * len(depths)
    if isinstance(dilations, str) or not isinstance(dilations, Sequence):
        raise TypeError(f"dilations: required None, an integer or one entry per stage, got {dilations!r}")
    if len(dilations) != len(depths):
        raise ValueError(f"dilations: required {len(depths)} stages as in depths, got {len(dilations)}: {dilations!r}")
    return [
        check_ints(f"dilations[{stage}]", [entry] * depth if isinstance(entry, int) else entry, depth)
        for stage, (entry, depth) in enumerate(zip(dilations, depths, strict=True))
    ]


def _check_out_indices(out_indices: Any, stages: int) -> tuple[int, ...]:
    indices = check_ints("out_indices", out_indices, minimum=0)
    if list(indices) != sorted(set(indices)) or indices[-1] >= stages:
        raise ValueError(f"out_indices: required ascending stages in 0..{stages - 1}, got {out_indices!r}")
    return indices


class NAT(nn.Module):
    """Neighborhood Attention Transformer (arXiv 2204.07143); with ``dilations``, DiNAT (arXiv 2209.15001).

    Takes ``[B, in_chans, H, W]`` of any size, in the dtype and on the device of the parameters; maps smaller
    than a window are padded and cropped by the attention. Returns ``[B, num_classes]``, or with
    ``features_only`` a list of contiguous ``[B, C_i, H_i, W_i]``, one per entry of ``out_indices``.

    Args:
        embed_dim: Channels of the first stage, even; stage i has ``embed_dim * 2**i``.
        depths: Layers per stage.
        num_heads: Heads per stage.
        num_classes: Outputs of the head; 0 makes the head the identity.
        in_chans: Channels of the image.
        kernel_size: Window, an integer or ``(height, width)``.
        dilations: None (1 everywhere), an integer, or one entry per stage: an integer or one integer per layer.
        mlp_ratio: Hidden channels of the MLP over its channels.
        drop_path_rate: Stochastic depth of the last layer; rises linearly from 0 at the first.
        layer_scale: Initial LayerScale, or None for none.
        drop_rate: Dropout after the tokenizer, the attention's projection and both layers of the MLP.
        features_only: Be a dense-prediction backbone: a LayerNorm ``norm{i}`` per output in place of ``norm``
            and ``head``, and no stage after the last output.
        out_indices: Stages whose maps a backbone returns, ascending; unused without ``features_only``.
        backend: ``auto``, ``compiled`` or ``reference``, for every attention.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        kernel_size: int | tuple[int, int] = 7,
        dilations: int | Sequence[int | Sequence[int]] | None = None,
        mlp_ratio: float = 3.0,
        drop_path_rate: float = 0.0,
        layer_scale: float | None = None,
        drop_rate: float = 0.0,
        features_only: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        backend: Backend | str = Backend.AUTO,
    ) -> None:
        super().__init__()
        if check_int("embed_dim", embed_dim) % 2:
            raise ValueError(f"embed_dim: required an even integer, got {embed_dim}")
        self.depths = check_ints("depths", depths)
        self.num_heads = check_ints("num_heads", num_heads, len(self.depths))
        self.embed_dim, self.in_chans = embed_dim, check_int("in_chans", in_chans)
        self.features_only = check_bool("features_only", features_only)
        stages = len(self.depths)
        self.out_indices = _check_out_indices(out_indices, stages) if features_only else tuple(range(stages))
        drop_rate = check_rate("drop_rate", drop_rate)
        block = partial(
            NABlock,
            kernel_size=kernel_size,
            mlp_ratio=check_positive("mlp_ratio", mlp_ratio),
            drop=drop_rate,
            layer_scale=None if layer_scale is None else check_positive("layer_scale", layer_scale),
            backend=check_backend(backend),
        )
        self.patch_embed = ConvTokenizer(self.in_chans, embed_dim)
        self.pos_drop = nn.Dropout(drop_rate)
        self.levels = self._levels(block, per_layer_dilations(dilations, self.depths), drop_path_rate)
        self.num_features = self._channels(len(self.levels) - 1)
        self._add_outputs(check_int("num_classes", num_classes, minimum=0))
        self.apply(init_weights)

    def _channels(self, stage: int) -> int:
        return self.embed_dim << stage

    def _levels(self, block: partial[NABlock], dilations: list[tuple[int, ...]], max_rate: float) -> nn.ModuleList:
        """The stages up to the last output; their drop path is that of the whole model."""
        last_layer = max(sum(self.depths) - 1, 1)
        step = check_rate("drop_path_rate", max_rate) / last_layer
        last_stage, layer, levels = max(self.out_indices), 0, nn.ModuleList()
        for stage in range(last_stage + 1):
            dim, blocks = self._channels(stage), []
            for dilation in dilations[stage]:
                blocks.append(block(dim, self.num_heads[stage], dilation=dilation, drop_path=step * layer))
                layer += 1
            levels.append(NALevel(blocks, ConvDownsampler(dim) if stage < last_stage else None))
        return levels

    def _add_outputs(self, num_classes: int) -> None:
        self.norm: nn.Module = nn.Identity()
        self.head: nn.Module = nn.Identity()
        self.num_classes = 0 if self.features_only else num_classes
        if self.features_only:
            for stage in self.out_indices:
                self.add_module(f"norm{stage}", nn.LayerNorm(self._channels(stage)))
        else:
            self.norm = nn.LayerNorm(self.num_features)
        if self.num_classes:
            self.head = nn.Linear(self.num_features, self.num_classes)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Per output map: ``num_chs`` channels, ``reduction`` of the image's size, ``module`` that computes it."""
        return [
            {"num_chs": self._channels(stage), "reduction": 4 << stage, "module": f"levels.{stage}"}
            for stage in self.out_indices
        ]

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, normed: ``[B, in_chans, H, W]`` to ``[B, H', W', num_features]`` (a backbone has no norm)."""
        x = self._tokens(x)
        for level in self.levels:
            _, x = level(x)
        out: Tensor = self.norm(x)
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Mean over positions, then the head: ``[B, H', W', num_features]`` to ``[B, num_classes]``.

        With ``pre_logits``, or without a head, ``[B, num_features]``.
        """
        x = x.mean(dim=(1, 2))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits ``[B, num_classes]``, or with ``features_only`` maps ``[B, C_i, H_i, W_i]``."""
        if self.features_only:
            return self._feature_maps(x)
        return self.forward_head(self.forward_features(x))

    def _tokens(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"x: required shape [batch, {self.in_chans}, height, width], got {tuple(x.shape)}")
        out: Tensor = self.pos_drop(self.patch_embed(x))
        return out

    def _feature_maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        x = self._tokens(x)
        for stage, level in enumerate(self.levels):
            features, x = level(x)
            if stage in self.out_indices:
                norm = self.get_submodule(f"norm{stage}")
                maps.append(norm(features).permute(0, 3, 1, 2).contiguous())
        return maps

    def get_classifier(self) -> nn.Module:
        """The head: a Linear, or the identity for ``num_classes=0`` and for a backbone."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Put a freshly initialised head of ``num_classes`` outputs in place; 0 makes it the identity.

        Raises:
            ValueError: ``num_classes`` is not 0 and the model is a backbone.
        """
        if check_int("num_classes", num_classes, minimum=0) and self.features_only:
            raise ValueError(f"num_classes: required 0 for a features_only model, which has no head, got {num_classes}")
        self.num_classes, like = num_classes, self.patch_embed.norm.weight
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            init_weights(self.head)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the authors train without weight decay: every ``rpb``."""
        return {name for name, _ in self.named_parameters() if "rpb" in name}

    def set_backend(self, backend: Backend | str) -> None:
        """Let every attention use ``auto``, ``compiled`` or ``reference``."""
        backend = check_backend(backend)
        for module in self.modules():
            if isinstance(module, NeighborhoodAttention2D):
                module.backend = backend
