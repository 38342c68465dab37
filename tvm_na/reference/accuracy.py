"""How far a result lies from what is right, and how far it may."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Largest :func:`relative_error` of a right result, by dtype: the order of its sums for float32 and float64, two
#: roundings of the output for float16 and bfloat16, one each of weights and values for TF32.
ERROR_BUDGET = {"float16": 2e-3, "bfloat16": 1.5e-2, "float32": 2e-6, "float64": 1e-13, "tf32": 1e-3}

#: Largest relative difference of a float32 model's logits between two backends.
LOGITS_BUDGET = 1e-4


def relative_error(out: Tensor, reference: Tensor) -> float:
    """``max |out - reference| / max |reference|``, in float64; infinite where ``out`` has a NaN or infinity of its own.

    Args:
        out: What a candidate computed, any floating dtype.
        reference: The right numbers, of the same shape, best in float64.

    Raises:
        ValueError: The shapes differ.
    """
    if out.shape != reference.shape:
        raise ValueError(f"out: required the reference's shape {tuple(reference.shape)}, got {tuple(out.shape)}")
    if not out.numel():
        return 0.0
    right = reference.detach().double()
    error = (out.detach().to(right.device).double() - right).abs().max().item()
    scale = right.abs().max().item()
    if not math.isfinite(error):
        return math.inf
    return error / scale if scale else (0.0 if error == 0 else math.inf)
