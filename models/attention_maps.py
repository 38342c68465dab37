"""What a query pixel attends to: the attention of each stage's last layer over its neighborhood."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_na.models.base import NAModel
from tvm_na.models.problems import problem_of_module
from tvm_na.nn import NeighborhoodAttention2D
from tvm_na.ops import autocast
from tvm_na.problems.checks import per_axis_ints
from tvm_na.reference.attention import accum_dtype, axis_neighbors


def query_position(pixel: tuple[int, int], image_size: tuple[int, int], map_size: tuple[int, int]) -> tuple[int, int]:
    """The position ``(row, column)`` of a stage's map that holds a pixel of the image."""
    row, column = (p * m // n for p, n, m in zip(pixel, image_size, map_size, strict=True))
    return row, column


def attention_of_query(module: NeighborhoodAttention2D, x: Tensor, position: tuple[int, int]) -> Tensor:
    """One query's attention weights, averaged over the heads.

    Args:
        module: The attention.
        x: Its input ``[1, H, W, embed_dim]``.
        position: Row and column of the query.

    Returns:
        ``[max(H, k*d), max(W, k*d)]`` in the accumulating dtype: zero outside of the neighborhood, of sum 1. It is
        larger than the map where that is smaller than the window, since the padding is attended to as well.
    """
    problem = problem_of_module(module, x.shape)
    height, width = problem.spatial
    x = F.pad(x, (0, 0, 0, width - x.shape[2], 0, height - x.shape[1]))
    axes = [[table[i] for table in axis_neighbors(*axis)] for axis, i in zip(problem.axes, position, strict=True)]
    (rows, relative_rows, row_exists), (columns, relative_columns, column_exists) = axes
    query, key, _ = module._project(x)
    accum = accum_dtype(x)
    query, keys = query[0, position[0], position[1]].to(accum), key[0, rows][:, columns].to(accum)
    with autocast.off(x.device):  # as in the operator
        scores = torch.einsum("hd,rchd->hrc", query, keys) * module.scale
    if module.rpb is not None:
        scores = scores + module.rpb.to(accum)[:, relative_rows][:, :, relative_columns]
    exists = (row_exists[:, None] & column_exists).to(scores.device)
    weights = scores.masked_fill(~exists, float("-inf")).flatten(1).softmax(-1).mean(0).view_as(exists)
    attention = torch.zeros(height, width, dtype=accum, device=x.device)
    # Accumulated, since a causal window names position 0 wherever it has no neighbor, with a weight of zero.
    flat = (rows[:, None] * width + columns).flatten().to(x.device)
    return attention.view(-1).index_add_(0, flat, weights.flatten()).view(height, width)


def attention_maps(model: NAModel, image: Tensor, pixel: tuple[int, int]) -> list[Tensor]:
    """The attention of one query pixel in the last layer of every stage, averaged over the heads.

    An isotropic model is one stage.

    Args:
        model: The model, run once without gradients in the mode it is in (call ``eval()`` before).
        image: ``[in_chans, H, W]`` or ``[1, in_chans, H, W]``, normalised as the model wants it.
        pixel: Row and column of the query in the image.

    Returns:
        One float map ``[H_s, W_s]`` per stage: zero outside of the query's neighborhood, of sum 1. Where a stage's
        map is smaller than the window, the attention's padding (right and bottom) is part of it.

    Raises:
        TypeError: ``model`` is no model of this package or ``image`` no tensor.
        ValueError: ``image`` has another shape, or ``pixel`` lies outside of it.
    """
    if not isinstance(model, NAModel):
        raise TypeError(f"model: required a model of tvm_na.models, got {type(model).__name__}")
    if not isinstance(image, Tensor):
        raise TypeError(f"image: required a torch.Tensor, got {type(image).__name__}")
    batch = image[None] if image.ndim == 3 else image
    if batch.ndim != 4 or batch.shape[:2] != (1, model.in_chans):
        wanted = f"[{model.in_chans}, H, W] or [1, {model.in_chans}, H, W]"
        raise ValueError(f"image: required shape {wanted}, got {tuple(image.shape)}")
    size = (int(batch.shape[2]), int(batch.shape[3]))
    row, column = per_axis_ints("pixel", pixel, 2, minimum=0)
    if row >= size[0] or column >= size[1]:
        raise ValueError(f"pixel: required a row and column inside of the {size[0]}x{size[1]} image, got {pixel!r}")
    maps = []
    with torch.no_grad():
        for module, x in _last_attention_inputs(model, batch):
            map_size = (int(x.shape[1]), int(x.shape[2]))
            maps.append(attention_of_query(module, x, query_position((row, column), size, map_size)))
    return maps


def _last_attention_inputs(model: NAModel, batch: Tensor) -> list[tuple[NeighborhoodAttention2D, Tensor]]:
    """The last attention of every stage and the input it got for ``batch``."""
    seen: list[tuple[NeighborhoodAttention2D, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, NeighborhoodAttention2D)
        seen.append((module, args[0].detach()))

    hooks = [layer.get_submodule("attn").register_forward_pre_hook(keep) for layer in model.last_layers()]
    try:
        model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
