"""Attention of a pixel diffusion transformer: the fused operator where the release has it, else both halves."""

import torch

try:
    import natten
except ImportError:
    natten = None


def neighborhood_attention(qkv, num_heads, kernel_size, scale):
    """qkv [batch, height, width, 3 * dim] to [batch, height, width, dim]."""
    if natten is None:
        raise ModuleNotFoundError("natten is required for neighborhood attention")
    batch, height, width, channels = qkv.shape
    parts = qkv.view(batch, height, width, 3, num_heads, channels // 3 // num_heads)
    if natten.has_fused_na():
        query, key, value = parts.unbind(3)
        out = natten.functional.na2d(query, key, value, kernel_size, scale=scale)
    else:
        query, key, value = parts.permute(3, 0, 4, 1, 2, 5)
        weights = torch.softmax(natten.functional.na2d_qk(query * scale, key, kernel_size), dim=-1)
        out = natten.functional.na2d_av(weights, value, kernel_size).permute(0, 2, 3, 1, 4)
    return out.reshape(batch, height, width, -1)
