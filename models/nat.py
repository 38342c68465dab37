"""NAT and DiNAT, and the pyramid that DiNAT_s shares: models whose stages halve the map and double the channels.

Attribute names are those of the authors' checkpoints, so that their keys are the keys of ``state_dict()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tvm_na.models.base import NAModel
from tvm_na.models.dilations import per_layer_dilations
from tvm_na.models.layers import ConvDownsampler, ConvTokenizer, NABlock, NALevel, check_ints


class Pyramid(NAModel):
    """Stages of which each has twice the channels and half the height and width of the one before.

    Takes images of any size; maps smaller than a window are padded and cropped by the attention. A subclass names its
    tokenizer (called with ``in_chans, embed_dim``, reduces by 4) and its downsampler (called with the channels).

    Args:
        depths: Layers per stage.
        num_heads: Heads per stage.
        dilations: None (1 everywhere), an integer, or one entry per stage: an integer or one integer per layer.
        Others: those of :class:`NAModel`; stage i has ``embed_dim * 2**i`` channels.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """

    tokenizer: ClassVar[type[nn.Module]]
    downsampler: ClassVar[type[nn.Module]]

    def __init__(
        self,
        *,
        depths: Sequence[int],
        num_heads: Sequence[int],
        dilations: int | Sequence[int | Sequence[int]] | None = None,
        mlp_ratio: float = 3.0,
        **others: Any,
    ) -> None:
        self.depths = check_ints("depths", depths)
        self.num_heads = check_ints("num_heads", num_heads, len(self.depths))
        per_layer = per_layer_dilations(dilations, self.depths)
        super().__init__(num_heads=self.num_heads, dilations=per_layer, mlp_ratio=mlp_ratio, **others)

    def _tokenizer(self) -> nn.Module:
        return self.tokenizer(self.in_chans, self.embed_dim)

    def _stage(self, stage: int, blocks: list[NABlock]) -> nn.Module:
        is_last = stage == self.out_indices[-1]
        return NALevel(blocks, None if is_last else self.downsampler(self._channels(stage)))

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


class NAT(Pyramid):
    """Neighborhood Attention Transformer (arXiv 2204.07143); with ``dilations``, DiNAT (arXiv 2209.15001).

    Overlapping convolutions make the tokens and reduce the maps. Arguments, inputs and outputs are those of
    :class:`Pyramid`; ``embed_dim`` must be even.
    """

    stages_name = "levels"
    tokenizer, downsampler = ConvTokenizer, ConvDownsampler
