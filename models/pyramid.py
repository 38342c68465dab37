"""Pyramids: models whose stages halve the map and double the channels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from tvm_na.functional import Backend
from tvm_na.models.base import NAModel
from tvm_na.models.dilations import per_layer_dilations
from tvm_na.models.layers import NABlock, NALevel, check_backend, check_ints, check_positive


class Pyramid(NAModel):
    """Stages of which each has twice the channels and half the height and width of the one before.

    Takes images of any size; maps smaller than a window are padded and cropped by the attention. A subclass names its
    tokenizer (called with ``in_chans, embed_dim``, reduces by 4) and its downsampler (called with the channels).

    Args:
        embed_dim: Channels of the first stage; stage i has ``embed_dim * 2**i``.
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
        out_indices: Stages whose maps a backbone returns, ascending; None for all. Unused without ``features_only``.
        backend: ``auto``, ``compiled`` or ``reference``, for every attention.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """

    tokenizer: ClassVar[type[nn.Module]]
    downsampler: ClassVar[type[nn.Module]]

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
        out_indices: Sequence[int] | None = None,
        backend: Backend | str = Backend.AUTO,
    ) -> None:
        layers = check_ints("depths", depths)
        super().__init__(embed_dim, in_chans, len(layers), features_only, out_indices, drop_rate)
        self.depths, self.num_heads = layers, check_ints("num_heads", num_heads, len(layers))
        block = partial(
            NABlock,
            kernel_size=kernel_size,
            mlp_ratio=check_positive("mlp_ratio", mlp_ratio),
            drop=self.drop_rate,
            layer_scale=None if layer_scale is None else check_positive("layer_scale", layer_scale),
            backend=check_backend(backend),
        )
        self.patch_embed = self.tokenizer(self.in_chans, embed_dim)
        self.pos_drop = nn.Dropout(self.drop_rate)
        levels = self._levels(block, per_layer_dilations(dilations, layers), drop_path_rate)
        self.add_module(self.stages_name, levels)
        self._add_outputs(num_classes)

    def _channels(self, stage: int) -> int:
        return self.embed_dim << stage

    def _reduction(self, stage: int) -> int:
        return 4 << stage

    def _run_stage(self, stage: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        features, following = stage(x)
        return features, following

    def last_layers(self) -> list[nn.Module]:
        """The last block of each stage."""
        return [list(level.get_submodule("blocks").children())[-1] for level in self.stages]

    def _levels(self, block: partial[NABlock], dilations: list[tuple[int, ...]], max_rate: float) -> nn.ModuleList:
        """The stages up to the last output; their drop path is that of the whole model."""
        rates = iter(self._drop_path_rates(max_rate, sum(self.depths)))
        last_stage, levels = self.out_indices[-1], nn.ModuleList()
        for stage in range(last_stage + 1):
            dim, heads = self._channels(stage), self.num_heads[stage]
            blocks = [block(dim, heads, dilation=dilation, drop_path=next(rates)) for dilation in dilations[stage]]
            levels.append(NALevel(blocks, self.downsampler(dim) if stage < last_stage else None))
        return levels
