"""What the arguments of a module mean in each release of NATTEN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm_na.compat.natten.signatures import Meaning, Reading
from tvm_na.problems.checks import check_int, check_scale, per_axis_bools, per_axis_ints


def _0_21(
    embed_dim: Any,
    num_heads: Any,
    kernel_size: Any,
    stride: Any = 1,
    dilation: Any = 1,
    is_causal: Any = False,
    qkv_bias: Any = True,
    qk_scale: Any = None,
    proj_drop: Any = 0.0,
) -> Meaning:
    return {**locals(), "rel_pos_bias": False, "attn_drop": 0.0}


def _0_20(
    dim: Any,
    num_heads: Any,
    kernel_size: Any,
    stride: Any = 1,
    dilation: Any = 1,
    is_causal: Any = False,
    qkv_bias: Any = True,
    qk_scale: Any = None,
    proj_drop: Any = 0.0,
) -> Meaning:
    return _0_21(dim, num_heads, kernel_size, stride, dilation, is_causal, qkv_bias, qk_scale, proj_drop)


def _0_17(
    dim: Any,
    num_heads: Any,
    kernel_size: Any,
    dilation: Any = 1,
    is_causal: Any = False,
    rel_pos_bias: Any = False,
    qkv_bias: Any = True,
    qk_scale: Any = None,
    attn_drop: Any = 0.0,
    proj_drop: Any = 0.0,
    use_experimental_ops: Any = False,
) -> Meaning:
    newer = _0_21(dim, num_heads, kernel_size, 1, dilation, is_causal, qkv_bias, qk_scale, proj_drop)
    return {**newer, "rel_pos_bias": rel_pos_bias, "attn_drop": attn_drop}


def _0_14_5(
    dim: Any,
    num_heads: Any,
    kernel_size: Any,
    dilation: Any = 1,
    bias: Any = True,
    qkv_bias: Any = True,
    qk_scale: Any = None,
    attn_drop: Any = 0.0,
    proj_drop: Any = 0.0,
) -> Meaning:
    return _0_17(dim, num_heads, kernel_size, dilation, False, bias, qkv_bias, qk_scale, attn_drop, proj_drop)


def _0_15_3d(
    dim: Any,
    num_heads: Any,
    kernel_size: Any,
    kernel_size_d: Any = None,
    dilation: Any = 1,
    dilation_d: Any = None,
    bias: Any = True,
    qkv_bias: Any = True,
    qk_scale: Any = None,
    attn_drop: Any = 0.0,
    proj_drop: Any = 0.0,
) -> Meaning:
    kernel_sizes = (kernel_size_d or kernel_size, kernel_size, kernel_size)
    dilation = dilation or 1
    dilations = (dilation_d or dilation, dilation, dilation)
    return _0_14_5(dim, num_heads, kernel_sizes, dilations, bias, qkv_bias, qk_scale, attn_drop, proj_drop)


def _0_14(
    dim: Any,
    kernel_size: Any,
    num_heads: Any,
    qkv_bias: Any = True,
    qk_scale: Any = None,
    attn_drop: Any = 0.0,
    proj_drop: Any = 0.0,
    dilation: Any = None,
) -> Meaning:
    return _0_14_5(dim, num_heads, kernel_size, dilation, True, qkv_bias, qk_scale, attn_drop, proj_drop)


_SINCE_0_17 = (Reading("0.21", _0_21), Reading("0.20", _0_20), Reading("0.17", _0_17))
READINGS: tuple[Reading, ...] = (*_SINCE_0_17, Reading("0.14.5", _0_14_5), Reading("0.14.1", _0_14, last_resort=True))
READINGS_3D: tuple[Reading, ...] = (*_SINCE_0_17, Reading("0.14.5", _0_15_3d))
READINGS_0_14: tuple[Reading, ...] = (Reading("0.14.1", _0_14),)


def check(rank: int) -> Callable[[Meaning], Meaning]:
    """One value per axis, heads that divide the channels, bools and numbers that are some."""

    def checked(meaning: Meaning) -> Meaning:
        axes: dict[str, Any] = {}
        for name in ("kernel_size", "stride", "dilation"):
            axes[name] = per_axis_ints(name, 1 if meaning[name] is None else meaning[name], rank)
        axes["is_causal"] = per_axis_bools("is_causal", meaning["is_causal"] or False, rank)
        channels, heads = (check_int(name, meaning[name], 1) for name in ("embed_dim", "num_heads"))
        if channels % heads:
            raise ValueError(f"embed_dim: required a multiple of num_heads={heads}, got {channels}")
        for name in ("qkv_bias", "rel_pos_bias"):
            if not isinstance(meaning[name], bool):
                raise TypeError(f"{name}: required bool, got {type(meaning[name]).__name__} {meaning[name]!r}")
        for name in ("attn_drop", "proj_drop"):
            if isinstance(meaning[name], bool) or not isinstance(meaning[name], (int, float)):
                raise TypeError(f"{name}: required a number, got {type(meaning[name]).__name__} {meaning[name]!r}")
        check_scale(meaning["qk_scale"], 1)
        return {**meaning, **axes}

    return checked
