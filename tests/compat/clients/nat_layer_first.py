"""Attention of a NAT layer as models wrote it when every release gave it a bias: nothing says that there is one."""

from natten import NeighborhoodAttention2D as NeighborhoodAttention


def attention(dim, num_heads, kernel_size, dilation):
    return NeighborhoodAttention(
        dim, kernel_size=kernel_size, dilation=dilation, num_heads=num_heads, qkv_bias=True, attn_drop=0.0
    )
