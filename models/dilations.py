"""Dilations of a model's layers: as they are given, and as DiNAT derives them from an image's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm_na.models.layers import check_int, check_ints
from tvm_na.problems.checks import per_axis_ints


def layer_dilations(dilations: Any, depth: int, argument: str = "dilations") -> tuple[int, ...]:
    """One dilation per layer.

    Args:
        dilations: An integer for all, or one per layer.
        depth: Layers.
        argument: What errors name.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    return check_ints(argument, [dilations] * depth if isinstance(dilations, int) else dilations, depth)


def per_layer_dilations(dilations: Any, depths: Sequence[int]) -> list[tuple[int, ...]]:
    """One tuple per stage with one dilation per layer.

    Args:
        dilations: None (1 everywhere), an integer, or one entry per stage: an integer or one integer per layer.
        depths: Layers per stage.

    Raises:
        TypeError, ValueError: name the stage, what was required and what came.
    """
    if dilations is None or isinstance(dilations, int):
        dilations = [1 if dilations is None else dilations] * len(depths)
    if isinstance(dilations, str) or not isinstance(dilations, Sequence):
        raise TypeError(f"dilations: required None, an integer or one entry per stage, got {dilations!r}")
    if len(dilations) != len(depths):
        raise ValueError(f"dilations: required {len(depths)} stages as in depths, got {len(dilations)}: {dilations!r}")
    return [
        layer_dilations(entry, depth, f"dilations[{stage}]")
        for stage, (entry, depth) in enumerate(zip(dilations, depths, strict=True))
    ]


def alternating_dilations(
    input_size: int, kernel_size: int | tuple[int, int], depths: Sequence[int], reduction: int = 4
) -> list[tuple[int, ...]]:
    """DiNAT's dilations (arXiv 2209.15001): 1 in even layers, in odd ones the largest whose window fits into the map.

    Args:
        input_size: Height and width in pixels of the images that the model is made for.
        kernel_size: Window; of two lengths the larger counts.
        depths: Layers per stage. Each stage halves the map of the one before.
        reduction: Pixels per position of the first stage's map.

    Returns:
        One tuple per stage with one dilation per layer, counted from 0 in each stage.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    window, dilations = max(per_axis_ints("kernel_size", kernel_size, 2)), []
    size = -(-check_int("input_size", input_size) // check_int("reduction", reduction))
    for depth in check_ints("depths", depths):
        largest = max(1, size // window)
        dilations.append(tuple(largest if layer % 2 else 1 for layer in range(depth)))
        size = -(-size // 2)
    return dilations
