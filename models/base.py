"""What the models have in common: tokens, stages, and outputs as logits or as maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from tvm_na.functional import Backend
from tvm_na.models.layers import NABlock, check_ints, check_positive, check_rate, init_weights
from tvm_na.nn import NeighborhoodAttention2D
from tvm_na.problems.checks import check_bool, check_int


def check_out_indices(out_indices: Any, stages: int) -> tuple[int, ...]:
    """``out_indices`` as a tuple if they are ascending stages; all of them for None."""
    if out_indices is None:
        return tuple(range(stages))
    indices = check_ints("out_indices", out_indices, minimum=0)
    if list(indices) != sorted(set(indices)) or indices[-1] >= stages:
        raise ValueError(f"out_indices: required ascending stages in 0..{stages - 1}, got {out_indices!r}")
    return indices


class NAModel(nn.Module):
    """A model of neighborhood attention over channels-last maps: a tokenizer, stages, and a head or maps.

    Takes ``[B, in_chans, H, W]`` in the dtype and on the device of the parameters. Returns ``[B, num_classes]``, or
    with ``features_only`` a list of contiguous ``[B, C_i, H_i, W_i]``, one per entry of ``out_indices``.

    A subclass says what its tokenizer and its stages are, and has arguments of its own for ``num_heads`` and
    ``dilations``. All take these:

    Args:
        embed_dim: Channels of the tokens.
        num_heads: Heads per stage.
        dilations: One dilation per layer, by stage.
        mlp_ratio: Hidden channels of the MLP over its channels.
        num_classes: Outputs of the head; 0 makes the head the identity.
        in_chans: Channels of the image.
        kernel_size: Window, an integer or ``(height, width)``.
        drop_path_rate: Stochastic depth of the last layer; rises linearly from 0 at the first.
        layer_scale: Initial LayerScale, or None for none.
        drop_rate: Dropout after the tokenizer, the attention's projection and both layers of the MLP.
        features_only: Be a dense-prediction backbone: a LayerNorm ``norm{i}`` per output in place of ``norm``
            and ``head``, and no stage after the last output.
        out_indices: Stages whose maps a backbone returns, ascending; None for all. Unused without ``features_only``.
        backend: ``auto``, ``compiled`` or ``reference``, for every attention.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """

    #: The attribute that holds the stages, as the authors call it.
    stages_name: ClassVar[str] = "levels"
    attention: ClassVar[type[NeighborhoodAttention2D]] = NeighborhoodAttention2D

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: Sequence[int],
        dilations: Sequence[Sequence[int]],
        mlp_ratio: float,
        num_classes: int = 1000,
        in_chans: int = 3,
        kernel_size: int | tuple[int, int] = 7,
        drop_path_rate: float = 0.0,
        layer_scale: float | None = None,
        drop_rate: float = 0.0,
        features_only: bool = False,
        out_indices: Sequence[int] | None = None,
        backend: Backend | str = Backend.AUTO,
    ) -> None:
        super().__init__()
        self.embed_dim, self.in_chans = check_int("embed_dim", embed_dim, 1), check_int("in_chans", in_chans, 1)
        self.features_only = check_bool("features_only", features_only)
        self.out_indices = check_out_indices(out_indices if features_only else None, len(dilations))
        self.num_classes, self.num_features = 0, self._channels(self.out_indices[-1])
        self.drop_rate = check_rate("drop_rate", drop_rate)
        block = partial(
            NABlock,
            kernel_size=kernel_size,
            mlp_ratio=check_positive("mlp_ratio", mlp_ratio),
            drop=self.drop_rate,
            layer_scale=None if layer_scale is None else check_positive("layer_scale", layer_scale),
            backend=Backend.of(backend),
            attention=self.attention,
        )
        self.patch_embed = self._tokenizer()
        self.pos_drop = nn.Dropout(self.drop_rate)
        layers = sum(len(stage) for stage in dilations)
        step = check_rate("drop_path_rate", drop_path_rate) / max(layers - 1, 1)
        rates = (step * layer for layer in range(layers))  # of the whole model, though a backbone may end before
        stages = nn.ModuleList()
        for stage in range(self.out_indices[-1] + 1):
            dim, heads = self._channels(stage), num_heads[stage]
            blocks = [block(dim, heads, dilation=dilation, drop_path=next(rates)) for dilation in dilations[stage]]
            stages.append(self._stage(stage, blocks))
        self.add_module(self.stages_name, stages)
        self._add_outputs(num_classes)

    def _tokenizer(self) -> nn.Module:
        """``[B, in_chans, H, W]`` to ``[B, H', W', embed_dim]``."""
        raise NotImplementedError

    def _stage(self, stage: int, blocks: list[NABlock]) -> nn.Module:
        """The stage of some blocks."""
        raise NotImplementedError

    def _channels(self, stage: int) -> int:
        """Channels of a stage's map."""
        raise NotImplementedError

    def _reduction(self, stage: int) -> int:
        """Pixels per position of a stage's map."""
        raise NotImplementedError

    def _run_stage(self, stage: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """A stage's own map, and what the next stage takes."""
        raise NotImplementedError

    def last_layers(self) -> list[nn.Module]:
        """The last block of each resolution; its ``attn`` is a :class:`NeighborhoodAttention2D`."""
        raise NotImplementedError

    @property
    def stages(self) -> nn.ModuleList:
        """The stages, up to the last output."""
        found = self.get_submodule(self.stages_name)
        assert isinstance(found, nn.ModuleList)
        return found

    def _add_outputs(self, num_classes: int) -> None:
        num_classes = check_int("num_classes", num_classes, minimum=0)
        self.norm: nn.Module = nn.Identity()
        self.head: nn.Module = nn.Identity()
        if self.features_only:
            for stage in self.out_indices:
                self.add_module(f"norm{stage}", nn.LayerNorm(self._channels(stage)))
        else:
            self.norm = nn.LayerNorm(self.num_features)
            self.num_classes = num_classes
        if self.num_classes:
            self.head = nn.Linear(self.num_features, self.num_classes)
        self.apply(init_weights)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Per output map: ``num_chs`` channels, ``reduction`` of the image's size, ``module`` that computes it."""
        return [
            {
                "num_chs": self._channels(stage),
                "reduction": self._reduction(stage),
                "module": f"{self.stages_name}.{stage}",
            }
            for stage in self.out_indices
        ]

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, normed: ``[B, in_chans, H, W]`` to ``[B, H', W', num_features]`` (a backbone has no norm)."""
        x = self._tokens(x)
        for stage in self.stages:
            _, x = self._run_stage(stage, x)
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
        for index, stage in enumerate(self.stages):
            features, x = self._run_stage(stage, x)
            if index in self.out_indices:
                norm = self.get_submodule(f"norm{index}")
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
        self.num_classes, like = num_classes, next(self.patch_embed.parameters())
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            init_weights(self.head)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the authors train without weight decay: every ``rpb``."""
        return {name for name, _ in self.named_parameters() if "rpb" in name}

    def set_backend(self, backend: Backend | str) -> None:
        """Let every attention use ``auto``, ``compiled`` or ``reference``."""
        backend = Backend.of(backend)
        for module in self.modules():
            if isinstance(module, NeighborhoodAttention2D):
                module.backend = backend
