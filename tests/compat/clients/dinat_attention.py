"""Self-attention as model libraries have it: they ask for the package, and call the unfused functions."""

import importlib.metadata
import importlib.util
import math

import torch
from torch import nn


def natten_version():
    if importlib.util.find_spec("natten") is None:
        return None
    try:
        return importlib.metadata.version("natten")
    except importlib.metadata.PackageNotFoundError:
        return None


if natten_version() is not None:
    from natten.functional import natten2dav, natten2dqkrpb


class DinatSelfAttention(nn.Module):
    def __init__(self, dim, num_heads, kernel_size, dilation):
        super().__init__()
        self.num_heads, self.head_size = num_heads, dim // num_heads
        self.kernel_size, self.dilation = kernel_size, dilation
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.rpb = nn.Parameter(torch.randn(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))

    def heads_first(self, x):
        return x.view(*x.shape[:-1], self.num_heads, self.head_size).permute(0, 3, 1, 2, 4)

    def forward(self, x):
        query, key, value = (self.heads_first(part(x)) for part in (self.query, self.key, self.value))
        query = query / math.sqrt(self.head_size)
        scores = natten2dqkrpb(query, key, self.rpb, self.kernel_size, self.dilation)
        weights = torch.softmax(scores, dim=-1)
        out = natten2dav(weights, value, self.kernel_size, self.dilation)
        batch, _, height, width, _ = out.shape
        merged = out.view(batch, self.num_heads, height * width, self.head_size).transpose(1, 2)
        return merged.reshape(batch, height, width, -1), weights
