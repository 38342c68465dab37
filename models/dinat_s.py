"""DiNAT_s: neighborhood attention in the shape of Swin (Hassani and Shi, arXiv 2209.15001).

Attribute names are those of the authors' checkpoints, so that their keys are the keys of ``state_dict()``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tvm_na.models.layers import PatchEmbed
from tvm_na.models.nat import Pyramid


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

    Arguments, inputs and outputs are those of :class:`Pyramid`, without ``layer_scale``. An image is padded with
    zeros, right and bottom, to whole patches of 4x4 pixels.
    """

    stages_name = "layers"
    tokenizer, downsampler = PatchEmbed, PatchMerging

    def __init__(self, *, mlp_ratio: float = 4.0, **others: Any) -> None:
        super().__init__(mlp_ratio=mlp_ratio, layer_scale=None, **others)
