"""How well a prediction orders what it predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 0, the smallest first; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(np.asarray(values, "float64"), return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[inverse]


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation, from -1 to 1; None for fewer than two pairs, or where one side is constant.

    Raises:
        ValueError: there are not as many of the one as of the other.
    """
    if len(a) != len(b):
        raise ValueError(f"b: required {len(a)} values, as a has, got {len(b)}")
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def found_of_best(predicted: Sequence[float], measured: Sequence[float], share: float) -> tuple[int, int]:
    """How many of the best by measurement are among as many of the best by prediction, and how many that are.

    Args:
        predicted: Higher is better.
        measured: Higher is better.
        share: The part that counts as the best; at least one does, if there is any.

    Raises:
        ValueError: there are not as many of the one as of the other, or ``share`` is not in (0, 1].
    """
    if len(predicted) != len(measured):
        raise ValueError(f"measured: required {len(predicted)} values, as predicted has, got {len(measured)}")
    if not 0 < share <= 1:
        raise ValueError(f"share: required a number in (0, 1], got {share}")
    count = min(len(measured), max(1, math.ceil(share * len(measured))))

    def best(values: Sequence[float]) -> set[int]:
        return set(sorted(range(len(values)), key=lambda i: -values[i])[:count])

    return len(best(predicted) & best(measured)), count
