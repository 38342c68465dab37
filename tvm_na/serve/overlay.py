"""What a query pixel attends to, drawn on the image: a PNG with a panel per stage."""

from __future__ import annotations

import io

import torch
from PIL import Image, ImageDraw
from torch import Tensor

GAP = 4
_ATTENTION, _WINDOW, _QUERY, _BACKGROUND = (255, 96, 0), (255, 255, 255), (0, 229, 255), (24, 24, 24)
_STRENGTH = 0.8


def map_size(pixels: int, stage: int) -> int:
    """Positions along an axis of a NAT's map: ``pixels`` halved, rounded up, ``2 + stage`` times (stages from 0)."""
    for _ in range(2 + stage):
        pixels = -(-pixels // 2)
    return pixels


def draw_overlay(image: Image.Image, maps: list[Tensor], pixel: tuple[int, int]) -> bytes:
    """A PNG of ``len(maps)`` panels side by side, each as large as the image, ``GAP`` pixels apart.

    A panel is the image in gray, its stage's attention in orange (relative to its largest weight), a white frame around
    the neighborhood and a cross on the query.

    Args:
        maps: The attention of each stage ``[H_s, W_s]``; what lies beyond the stage's map is padding, and not shown.
        pixel: Row and column of the query in the image.
    """
    width, height = image.size
    strip = Image.new("RGB", (len(maps) * (width + GAP) - GAP, height), _BACKGROUND)
    for stage, attention in enumerate(maps):
        rows, columns = map_size(height, stage), map_size(width, stage)
        strip.paste(_panel(image, attention[:rows, :columns], pixel), (stage * (width + GAP), 0))
    file = io.BytesIO()
    strip.save(file, "PNG")
    return file.getvalue()


def _panel(image: Image.Image, attention: Tensor, pixel: tuple[int, int]) -> Image.Image:
    gray = image.convert("L").convert("RGB")
    relative = attention / attention.max().clamp_min(torch.finfo(attention.dtype).tiny)
    values = (relative * (255 * _STRENGTH)).round().to(torch.uint8)
    rows, columns = values.shape
    mask = Image.frombytes("L", (columns, rows), bytes(values.flatten().tolist()))
    panel = Image.composite(
        Image.new("RGB", image.size, _ATTENTION), gray, mask.resize(image.size, Image.Resampling.NEAREST)
    )
    pen = ImageDraw.Draw(panel)
    pen.rectangle(_frame(attention, image.size), outline=_WINDOW)
    row, column = pixel
    pen.line((column - 4, row, column + 4, row), fill=_QUERY)
    pen.line((column, row - 4, column, row + 4), fill=_QUERY)
    return panel


def _frame(attention: Tensor, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom pixel of where an attention is not zero."""
    sides = []
    for axis, length in ((1, size[0]), (0, size[1])):
        there = attention.sum(1 - axis).nonzero().flatten()
        cell = length / attention.shape[axis]
        sides.append((int(there[0]) * cell, (int(there[-1]) + 1) * cell - 1))
    (left, right), (top, bottom) = sides
    return left, top, right, bottom
