"""DiNAT_s: merging of patches, padding, and the whole model put together by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.models.random_models import made
from tvm_na.models import DiNATs
from tvm_na.models.dinat_s import PatchMerging
from tvm_na.models.layers import PatchEmbed

SMALL = {"embed_dim": 8, "depths": (2, 1, 1), "num_heads": (1, 2, 4), "kernel_size": 3}


def small(**arguments) -> DiNATs:
    return made(DiNATs, **SMALL | arguments)


def merged_by_hand(merging: PatchMerging, x: Tensor) -> Tensor:
    """One output at a time, from the four neighbors in Swin's order; what lies outside is zero."""
    batch, height, width, channels = x.shape
    rows = []
    for i in range(0, height, 2):
        row = []
        for j in range(0, width, 2):
            places = [(i, j), (i + 1, j), (i, j + 1), (i + 1, j + 1)]
            zero = x.new_zeros(batch, channels)
            four = [x[:, r, c] if r < height and c < width else zero for r, c in places]
            row.append(merging.reduction(merging.norm(torch.cat(four, -1))))
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 3), (3, 5), (1, 1)])
def test_merging(size):
    merging, x = PatchMerging(6).double(), torch.randn(2, *size, 6, dtype=torch.float64)
    nn.init.normal_(merging.norm.weight)
    nn.init.normal_(merging.norm.bias)
    torch.testing.assert_close(merging(x), merged_by_hand(merging, x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("patch", [4, 16])
def test_an_image_is_padded_to_whole_patches(patch):
    embed, x = PatchEmbed(3, 8, patch).double(), torch.randn(1, 3, 2 * patch - 1, patch + 1, dtype=torch.float64)
    padded = nn.functional.pad(x, (0, patch - 1, 0, 1))
    assert embed(x).shape == (1, 2, 2, 8)
    torch.testing.assert_close(embed(x), embed(padded), rtol=0, atol=0)
    tokens = padded.unfold(2, patch, patch).unfold(3, patch, patch)  # [1, 3, 2, 2, patch, patch]
    by_hand = torch.einsum("bchwij,ocij->bhwo", tokens, embed.proj.weight) + embed.proj.bias
    torch.testing.assert_close(embed(x), embed.norm(by_hand), rtol=0, atol=1e-12)


def test_the_model_is_its_parts_in_order():
    model = small(dilations=((1, 2), 1, 1)).double()
    x = torch.randn(2, 3, 46, 35, dtype=torch.float64)
    y = model.patch_embed(x)
    assert y.shape == (2, 12, 9, 8)
    for stage in (0, 1, 2):
        for block in model.layers[stage].blocks:
            y = y + block.attn(block.norm1(y))
            y = y + block.mlp(block.norm2(y))
        if stage < 2:
            y = merged_by_hand(model.layers[stage].downsample, y)
    assert y.shape == (2, 3, 3, 32)
    torch.testing.assert_close(model(x), model.head(model.norm(y).mean((1, 2))), rtol=0, atol=1e-12)
    assert model.layers[2].downsample is None


def test_arguments_of_nat_alone_are_unknown():
    with pytest.raises(TypeError, match="layer_scale"):
        small(layer_scale=1e-5)
    with torch.device("meta"):
        assert small(embed_dim=9, depths=(1,), num_heads=(3,)).embed_dim == 9  # NAT's must be even
        assert small().layers[0].blocks[0].mlp.fc1.out_features == 32
