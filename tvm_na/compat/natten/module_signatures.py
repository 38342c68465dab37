"""What the arguments of a module mean in each release of NATTEN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm_na.compat.natten.signatures import REQUIRED, Meaning, Reading
from tvm_na.problems.checks import check_int, check_scale, per_axis_bools, per_axis_ints

_DEFAULTS: Meaning = {
    "embed_dim": REQUIRED,
    "num_heads": REQUIRED,
    "kernel_size": REQUIRED,
    "stride": 1,
    "dilation": 1,
    "is_causal": False,
    "qkv_bias": True,
    "qk_scale": None,
    "proj_drop": 0.0,
    "rel_pos_bias": False,
    "attn_drop": 0.0,
}
# Arguments of older releases: other names, one of no effect, and numbers for the depth of a 3D map.
_NAMES = {"dim": "embed_dim", "bias": "rel_pos_bias"}
_OLDER: Meaning = {
    "dim": REQUIRED,
    "bias": True,
    "use_experimental_ops": False,
    "kernel_size_d": None,
    "dilation_d": None,
}


def _reading(era: str, arguments: str, last_resort: bool = False, **others: Any) -> Reading:
    """A release that had these arguments; ``others`` are defaults that were different then."""
    return Reading(era, {**_DEFAULTS, **_OLDER, **others}, arguments.split(), (), last_resort, _translated)


def _translated(given: Meaning) -> Meaning:
    given = {_NAMES.get(name, name): value for name, value in given.items()}
    if "kernel_size_d" in given:
        kernel_size, dilation = given["kernel_size"], given["dilation"] or 1
        given["kernel_size"] = (given["kernel_size_d"] or kernel_size, kernel_size, kernel_size)
        given["dilation"] = (given["dilation_d"] or dilation, dilation, dilation)
    return given


_0_21 = "num_heads kernel_size stride dilation is_causal qkv_bias qk_scale proj_drop"
_0_17 = "dilation is_causal rel_pos_bias qkv_bias qk_scale attn_drop proj_drop use_experimental_ops"
_0_14_5 = "bias qkv_bias qk_scale attn_drop proj_drop"
_SINCE_0_17 = (
    _reading("0.21", f"embed_dim {_0_21}"),
    _reading("0.20", f"dim {_0_21}"),
    _reading("0.17", f"dim num_heads kernel_size {_0_17}"),
)
_0_14_1 = _reading(
    "0.14.1",
    "dim kernel_size num_heads qkv_bias qk_scale attn_drop proj_drop dilation",
    last_resort=True,
    rel_pos_bias=True,
    dilation=None,
)
READINGS: tuple[Reading, ...] = (
    *_SINCE_0_17,
    _reading("0.14.5", f"dim num_heads kernel_size dilation {_0_14_5}"),
    _0_14_1,
)
READINGS_3D: tuple[Reading, ...] = (
    *_SINCE_0_17,
    _reading("0.14.5", f"dim num_heads kernel_size kernel_size_d dilation dilation_d {_0_14_5}"),
)
READINGS_0_14: tuple[Reading, ...] = (_0_14_1,)


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
        return {**{name: meaning[name] for name in _DEFAULTS}, **axes}

    return checked
