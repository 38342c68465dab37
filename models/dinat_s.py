"""DiNAT_s: neighborhood attention in the shape of Swin (Hassani and Shi, arXiv 2209.15001).

Attribute names are those of the authors' checkpoints, so that their keys are the keys of ``state_dict()``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from tvm_na.functional import Backend
from tvm_na.models.layers import PatchEmbed
from tvm_na.models.pyramid import Pyramid


class PatchMerging(nn.Module):
    """Four neighbors as one, a LayerNorm and a Linear: ``[B, H, W, C]`` to ``[B, ceil(H/2), ceil(W/2), 2C]``.

    Odd maps are padded with zeros, right and bottom.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.view(batch, -(-height // 2), 2, -(-width // 2), 2, channels)
        # Of the four neighbors rows vary first, as in Swin.
        out: Tensor = self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))
        return out


class DiNATs(Pyramid):
    """DiNAT_s, "DiNAT simple" (arXiv 2209.15001): patches as tokens and merged patches, no LayerScale.

    Arguments, inputs and outputs are those of :class:`Pyramid`. An image is padded with zeros, right and bottom, to
    whole patches of 4x4 pixels.
    """

    stages_name = "layers"
    tokenizer, downsampler = PatchEmbed, PatchMerging

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
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        features_only: bool = False,
        out_indices: Sequence[int] | None = None,
        backend: Backend | str = Backend.AUTO,
    ) -> None:
        super().__init__(
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            num_classes=num_classes,
            in_chans=in_chans,
            kernel_size=kernel_size,
            dilations=dilations,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
            drop_rate=drop_rate,
            features_only=features_only,
            out_indices=out_indices,
            backend=backend,
        )
