"""Attention of a generator whose heads have windows of their own, one dilation each."""

import torch
from natten.functional import natten2dav, natten2dqkrpb


def attention(query, key, value, rpbs, kernel_size, dilations):
    """Tensors [batch, heads, height, width, head_dim], heads split evenly among dilations."""
    outs = []
    parts = (tensor.chunk(len(dilations), dim=1) for tensor in (query, key, value))
    for q, k, v, rpb, dilation in zip(*parts, rpbs, dilations, strict=True):
        weights = torch.softmax(natten2dqkrpb(q, k, rpb, kernel_size, dilation), dim=-1)
        outs.append(natten2dav(weights, v, kernel_size=kernel_size, dilation=dilation))
    return torch.cat(outs, dim=1)
