"""Isotropic models, of one resolution: NAT, DiNAT, and ViT with a relative position bias (arXiv 2209.15001).

Attribute names are those of the authors' checkpoints, so that their keys are the keys of ``state_dict()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tvm_na.models.base import NAModel
from tvm_na.models.dilations import layer_dilations
from tvm_na.models.layers import NABlock, PatchEmbed
from tvm_na.nn import NeighborhoodAttention2D
from tvm_na.problems.checks import check_int


class NATIsotropic(NAModel):
    """Neighborhood attention over a map of one size; with ``dilations``, isotropic DiNAT.

    Takes images of any size, padded with zeros, right and bottom, to whole patches; maps smaller than a window are
    padded and cropped by the attention. With ``features_only`` each layer is a stage.

    Args:
        num_heads: Attention heads.
        depth: Layers.
        patch_size: Pixels of a token in height and width.
        dilations: None (1 everywhere), an integer, or one integer per layer.
        Others: those of :class:`NAModel`, but for ``layer_scale``.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """

    stages_name = "layers"

    def __init__(
        self,
        *,
        num_heads: int,
        depth: int = 12,
        patch_size: int = 16,
        dilations: int | Sequence[int] | None = None,
        mlp_ratio: float = 4.0,
        **others: Any,
    ) -> None:
        self.depth, self.num_heads = check_int("depth", depth, 1), check_int("num_heads", num_heads, 1)
        self.patch_size = check_int("patch_size", patch_size, 1)
        per_layer = layer_dilations(1 if dilations is None else dilations, depth)
        super().__init__(
            num_heads=(num_heads,) * depth,
            dilations=[(dilation,) for dilation in per_layer],
            mlp_ratio=mlp_ratio,
            layer_scale=None,
            **others,
        )

    def _tokenizer(self) -> nn.Module:
        return PatchEmbed(self.in_chans, self.embed_dim, self.patch_size)

    def _stage(self, stage: int, blocks: list[NABlock]) -> nn.Module:
        return blocks[0]

    def _channels(self, stage: int) -> int:
        return self.embed_dim

    def _reduction(self, stage: int) -> int:
        return self.patch_size

    def _run_stage(self, stage: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        x = stage(x)
        return x, x

    def last_layers(self) -> list[nn.Module]:
        """The last layer."""
        return [self.stages[-1]]


def relative_position_index(side: int) -> Tensor:
    """Where the bias of each pair of positions of a map lies: ``[side**2, side**2]`` int64, a row per query.

    It is the authors' index into ``rpb`` with its last two axes as one: of the key's offset from the query, row
    then column, each plus ``side - 1``.
    """
    position = torch.arange(side * side)
    row, column = position // side, position % side
    rows = row[None, :] - row[:, None] + side - 1
    columns = column[None, :] - column[:, None] + side - 1
    return rows * (2 * side - 1) + columns


class FullAttention2D(NeighborhoodAttention2D):
    """Attention with a relative position bias whose window is the whole square map, which must have its size.

    It has the authors' buffer ``relative_position_index``, so that keys are theirs; the bias is found without it.
    """

    relative_position_index: Tensor

    def __init__(self, embed_dim: int, num_heads: int, kernel_size: int, **others: Any) -> None:
        super().__init__(embed_dim, num_heads, kernel_size, **others)
        self.register_buffer("relative_position_index", relative_position_index(self.kernel_size[0]))

    def _project(self, x: Tensor, missing: Sequence[int] = ()) -> tuple[Tensor, Tensor, Tensor]:
        if tuple(x.shape[1:-1]) != self.kernel_size:  # neighborhood attention would pad it, or see a part alone
            raise ValueError(f"x: required a map of {self.kernel_size}, got shape {tuple(x.shape)}")
        return super()._project(x, missing)


class ViTRPB(NATIsotropic):
    """ViT with a relative position bias (arXiv 2209.15001): every position attends to the whole map.

    That is neighborhood attention whose window is the map, with the same bias. So it takes images of one size alone,
    as many patches as ``img_size`` has.

    Args:
        img_size: Pixels in height and width of the images it takes.
        Others: those of :class:`NATIsotropic`, but for window and dilations.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """

    attention = FullAttention2D

    def __init__(self, *, img_size: int = 224, patch_size: int = 16, **others: Any) -> None:
        side = -(-check_int("img_size", img_size, 1) // check_int("patch_size", patch_size, 1))
        super().__init__(patch_size=patch_size, kernel_size=side, dilations=None, **others)
        self.img_size, self.side = img_size, side

    def _tokens(self, x: Tensor) -> Tensor:
        out = super()._tokens(x)
        if tuple(out.shape[1:3]) != (self.side, self.side):
            wanted = f"{self.img_size}x{self.img_size} pixels ({self.side}x{self.side} patches)"
            raise ValueError(f"x: required an image of {wanted}, got {x.shape[2]}x{x.shape[3]}")
        return out
