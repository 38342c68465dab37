"""``natten.utils.checks``: arguments as one value per axis."""

from __future__ import annotations

import math
from typing import Any

from tvm_na.problems.checks import check_int, per_axis_bools, per_axis_ints

Ints = tuple[int, ...]
Bools = tuple[bool, ...]


def _rank(na_dim: Any) -> int:
    if check_int("na_dim", na_dim, 1) > 3:
        raise ValueError(f"na_dim: required 1, 2 or 3, got {na_dim}")
    return int(na_dim)


def check_input_size_arg(na_dim: int, input_size: Any) -> Ints:
    """Sizes of a map, one per axis."""
    return per_axis_ints("input_size", input_size, _rank(na_dim))


def check_kernel_size_arg(na_dim: int, kernel_size: Any) -> Ints:
    """Window lengths, one per axis."""
    return per_axis_ints("kernel_size", kernel_size, _rank(na_dim))


def check_stride_arg(na_dim: int, stride: Any) -> Ints:
    """Strides, one per axis; None is 1."""
    return per_axis_ints("stride", 1 if stride is None else stride, _rank(na_dim))


def check_dilation_arg(na_dim: int, dilation: Any) -> Ints:
    """Dilations, one per axis; None is 1."""
    return per_axis_ints("dilation", 1 if dilation is None else dilation, _rank(na_dim))


def check_causal_arg(na_dim: int, is_causal: Any) -> Bools:
    """Whether each axis is causal; None is no."""
    return per_axis_bools("is_causal", False if is_causal is None else is_causal, _rank(na_dim))


def check_all_args(na_dim: int, kernel_size: Any, *others: Any, **named: Any) -> tuple[Ints | Bools, ...]:
    """Kernel size, stride, dilation and causality, one value per axis each.

    Two arguments after ``kernel_size`` are those of NATTEN 0.17, dilation and is_causal, and there is no stride in
    what is returned; three are those of 0.20: stride, dilation, is_causal.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    strided = "stride" in named or len(others) + len(named) == 3
    wanted = ("stride", "dilation", "is_causal") if strided else ("dilation", "is_causal")
    values = dict(zip(wanted, others, strict=False)) | named
    if len(others) + len(named) != len(wanted) or set(values) != set(wanted):
        got = ", ".join([f"{len(others)} positional", *named])
        raise TypeError(f"check_all_args: required [stride,] dilation and is_causal after kernel_size, got {got}")
    checks = {"stride": check_stride_arg, "dilation": check_dilation_arg, "is_causal": check_causal_arg}
    return (check_kernel_size_arg(na_dim, kernel_size), *(checks[name](na_dim, values[name]) for name in wanted))


def get_num_na_weights(kernel_size: Ints) -> int:
    """Keys in a window with one length per axis."""
    if not isinstance(kernel_size, tuple):
        raise TypeError(f"kernel_size: required a tuple, got {type(kernel_size).__name__} {kernel_size!r}")
    return math.prod(kernel_size)
