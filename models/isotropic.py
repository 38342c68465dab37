"""Isotropic models, of one resolution: NAT, DiNAT, and ViT with a relative position bias (arXiv 2209.15001).

Attribute names are those of the authors' checkpoints, so that their keys are the keys of ``state_dict()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tvm_na.functional import Backend
from tvm_na.models.base import NAModel
from tvm_na.models.dilations import layer_dilations
from tvm_na.models.layers import NABlock, PatchEmbed, check_backend, check_int, check_positive
from tvm_na.nn import NeighborhoodAttention2D


class NATIsotropic(NAModel):
    """Neighborhood attention over a map of one size; with ``dilations``, isotropic DiNAT.

    Takes images of any size, padded with zeros, right and bottom, to whole patches; maps smaller than a window are
    padded and cropped by the attention. With ``features_only`` each layer is a stage.

    Args:
        embed_dim: Channels.
        num_heads: Attention heads.
        depth: Layers.
        patch_size: Pixels of a token in height and width.
        num_classes: Outputs of the head; 0 makes the head the identity.
        in_chans: Channels of the image.
        kernel_size: Window, an integer or ``(height, width)``.
        dilations: None (1 everywhere), an integer, or one integer per layer.
        mlp_ratio: Hidden channels of the MLP over its channels.
        drop_path_rate: Stochastic depth of the last layer; rises linearly from 0 at the first.
        drop_rate: Dropout after the tokenizer, the attention's projection and both layers of the MLP.
        features_only: Be a dense-prediction backbone: a LayerNorm ``norm{i}`` per output in place of ``norm``
            and ``head``, and no layer after the last output.
        out_indices: Layers whose maps a backbone returns, ascending; None for all. Unused without ``features_only``.
        backend: ``auto``, ``compiled`` or ``reference``, for every attention.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """

    stages_name = "layers"
    attention: ClassVar[type[NeighborhoodAttention2D]] = NeighborhoodAttention2D

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        depth: int = 12,
        patch_size: int = 16,
        num_classes: int = 1000,
        in_chans: int = 3,
        kernel_size: int | tuple[int, int] = 7,
        dilations: int | Sequence[int] | None = None,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        features_only: bool = False,
        out_indices: Sequence[int] | None = None,
        backend: Backend | str = Backend.AUTO,
    ) -> None:
        depth = check_int("depth", depth)
        super().__init__(embed_dim, in_chans, depth, features_only, out_indices, drop_rate)
        self.depth, self.num_heads = depth, check_int("num_heads", num_heads)
        self.patch_size = check_int("patch_size", patch_size)
        mlp_ratio, backend = check_positive("mlp_ratio", mlp_ratio), check_backend(backend)
        self.patch_embed = PatchEmbed(self.in_chans, embed_dim, self.patch_size)
        self.pos_drop = nn.Dropout(self.drop_rate)
        per_layer = layer_dilations(1 if dilations is None else dilations, depth)
        rates = self._drop_path_rates(drop_path_rate, depth)
        self.layers = nn.ModuleList(
            NABlock(
                *(embed_dim, self.num_heads, kernel_size),
                dilation=per_layer[layer],
                mlp_ratio=mlp_ratio,
                drop=self.drop_rate,
                drop_path=rates[layer],
                backend=backend,
                attention=self.attention,
            )
            for layer in range(self.out_indices[-1] + 1)
        )
        self._add_outputs(num_classes)

    def _channels(self, stage: int) -> int:
        return self.embed_dim

    def _reduction(self, stage: int) -> int:
        return self.patch_size

    def _run_stage(self, stage: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        x = stage(x)
        return x, x

    def last_layers(self) -> list[nn.Module]:
        """The last layer."""
        return [self.layers[-1]]


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

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        depth: int = 12,
        img_size: int = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        in_chans: int = 3,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        features_only: bool = False,
        out_indices: Sequence[int] | None = None,
        backend: Backend | str = Backend.AUTO,
    ) -> None:
        side = -(-check_int("img_size", img_size) // check_int("patch_size", patch_size))
        super().__init__(
            embed_dim=embed_dim,
            num_heads=num_heads,
            depth=depth,
            patch_size=patch_size,
            num_classes=num_classes,
            in_chans=in_chans,
            kernel_size=side,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
            drop_rate=drop_rate,
            features_only=features_only,
            out_indices=out_indices,
            backend=backend,
        )
        self.img_size, self.side = img_size, side

    def _tokens(self, x: Tensor) -> Tensor:
        out = super()._tokens(x)
        if tuple(out.shape[1:3]) != (self.side, self.side):
            wanted = f"{self.img_size}x{self.img_size} pixels ({self.side}x{self.side} patches)"
            raise ValueError(f"x: required an image of {wanted}, got {x.shape[2]}x{x.shape[3]}")
        return out
