"""A block of a video transformer, written for 0.21: module, operator, dense attention, merging."""

import natten
from torch import nn


class VideoBlock(nn.Module):
    def __init__(self, embed_dim, num_heads, kernel_size, stride):
        super().__init__()
        self.num_heads, self.kernel_size = num_heads, kernel_size
        self.attn = natten.NeighborhoodAttention3D(
            embed_dim=embed_dim,
            num_heads=num_heads,
            kernel_size=kernel_size,
            stride=stride,
            is_causal=(True, False, False),
        )
        self.qkv, self.text = nn.Linear(embed_dim, 3 * embed_dim), nn.Linear(embed_dim, 2 * embed_dim)

    def forward(self, x, text):
        x = x + self.attn(x)
        heads = (self.num_heads, -1)
        query, key, value = self.qkv(x).unflatten(-1, (3, *heads)).unbind(-3)
        text_key, text_value = self.text(text).unflatten(-1, (2, *heads)).unbind(-3)
        near, near_lse = natten.na3d(
            query,
            key,
            value,
            self.kernel_size,
            backend="hopper-fna" if natten.HAS_LIBNATTEN else "flex-fna",
            q_tile_shape=(4, 4, 8),
            run_persistent_kernel=False,
            return_lse=True,
        )
        far, far_lse = natten.attention(query.flatten(1, 3), text_key, text_value, backend="flex-fmha", return_lse=True)
        out, _ = natten.merge_attentions(
            [near.flatten(1, 3), far], [near_lse.flatten(1, 3), far_lse], use_autograd_fix=False
        )
        return x + out.reshape(x.shape)
