"""``natten.context``: switches of NATTEN's kernels, which keep what is set and change nothing here.

Most of its functions are made from the tables below.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch

from tvm_na.compat.natten.ignored import ignore

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


class MemoryUsagePreference(Enum):
    """How much memory NATTEN's gradients may take."""

    Default = 0
    Strict = 1
    Unrestricted = 2


#: By switch: what it is at first, the function that sets it, the function that says what it is. Modules take the fused
#: operator wherever it serves; compiled kernels are deterministic and never round float32 to TF32.
_SWITCHES: dict[str, tuple[bool, str | None, str]] = {
    "deterministic": (False, "use_deterministic_algorithms", "are_deterministic_algorithms_enabled"),
    "kv_parallelism": (True, "use_kv_parallelism_in_fused_na", "is_kv_parallelism_in_fused_na_enabled"),
    "fused_na": (True, None, "is_fused_na_enabled"),
    "flex_attention": (False, None, "should_use_flex_attention"),
    "flex_forced": (False, None, "should_force_flex_attention"),
    "flex_compile": (False, None, "is_flex_compile_allowed"),
    "flex_compile_backprop": (False, "allow_flex_compile_backprop", "is_flex_compile_backprop_allowed"),
    "tf32": (False, "use_tf32_in_gemm_na", "is_tf32_in_gemm_na_enabled"),
    "tiled_na": (False, "use_tiled_na", "is_tiled_na_enabled"),
    "gemm_na": (False, "use_gemm_na", "is_gemm_na_enabled"),
}

#: By function without arguments: the switches that it sets.
_SETTERS = {
    "use_flex_attention": {"fused_na": True, "flex_attention": True},
    "force_flex_attention": {"fused_na": True, "flex_attention": True, "flex_forced": True},
    "disable_flex_compile": {"flex_compile": False, "flex_compile_backprop": False},
    "disable_flex_compile_backprop": {"flex_compile_backprop": False},
    **{f"{do}_{what}": {what: do == "enable"} for what in ("gemm_na", "tiled_na") for do in ("enable", "disable")},
}

_HOW, _WAYS = ("enabled", "thorough"), ("forward", "backward")
#: By function: what it always gives, and why. Those that ask whether a device has something take its index.
_ANSWERS = {
    "has_half": (True, "float16 works on every device"),
    "has_bfloat": (True, "bfloat16 works on every device"),
    **dict.fromkeys(("has_fna", "has_fused_na"), (True, "``na1d``, ``na2d`` and ``na3d`` work on every device")),
    **dict.fromkeys(
        ("has_gemm", "has_tf32_gemm", "has_fp32_gemm", "has_fp64_gemm"),
        (False, "NATTEN's kernels for unfused attention on tensor cores are not here"),
    ),
    **dict.fromkeys(("enable_tf32", "disable_tf32"), (False, "there are no kernels for TF32")),
    **dict.fromkeys(
        ("is_autotuner_enabled", *(f"is_autotuner_{how}_for_{way}" for how in _HOW for way in _WAYS)),
        (False, "nothing is tuned while a model runs"),
    ),
}

_DEFAULTS: dict[str, Any] = {switch: first for switch, (first, _, _) in _SWITCHES.items()}
_DEFAULTS["memory"] = MemoryUsagePreference.Default
_state = dict(_DEFAULTS)


class NattenContext:
    """Where NATTEN keeps its switches."""

    @staticmethod
    def reset() -> None:
        """Every switch as it was at first."""
        _state.update(_DEFAULTS)


def _set(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: required bool, got {type(value).__name__} {value!r}")
        ignore(f"natten.context {name}", value)
    _state.update(values)


def use_fused_na(
    mode: bool = True,
    kv_parallel: bool = True,
    use_flex_attention: bool = False,
    force_flex_attention: bool = False,
) -> None:
    """Keep the switches. Modules take the fused operator wherever it serves, whatever they say."""
    flex = {"flex_attention": use_flex_attention, "flex_forced": force_flex_attention}
    _set(fused_na=mode, kv_parallelism=kv_parallel, **flex)


def allow_flex_compile(mode: bool = True, backprop: bool = False) -> None:
    """Keep whether FlexAttention may be compiled, and for gradients too."""
    _set(flex_compile=mode, flex_compile_backprop=mode and backprop)


def set_memory_usage_preference(pref: str = "default") -> None:
    """Keep ``default``, ``strict`` or ``unrestricted``; ValueError for anything else."""
    names = {member.name.lower(): member for member in MemoryUsagePreference}
    if pref not in names:
        raise ValueError(f"pref: required one of {', '.join(names)}, got {pref!r}")
    ignore("natten.context memory", pref)
    _state["memory"] = names[pref]


def get_memory_usage_preference() -> MemoryUsagePreference:
    """What :func:`set_memory_usage_preference` kept."""
    found: MemoryUsagePreference = _state["memory"]
    return found


def use_autotuner(*args: Any, **named: Any) -> None:
    """Nothing: ``tvm-na tune`` tunes, ahead of time."""
    ignore("natten.use_autotuner", (*args, *named))


def disable_autotuner() -> None:
    """Nothing: there is no tuning while a model runs."""


def has_cuda() -> bool:
    """Whether PyTorch sees a GPU."""
    return torch.cuda.is_available()


def _keeper(switch: str) -> Callable[..., None]:
    def keep(mode: bool = True) -> None:
        _set(**{switch: mode})

    keep.__doc__ = f"Keep ``mode`` as the switch {switch}, which changes nothing."
    return keep


def _getter(switch: str, kept: Any = True) -> Callable[[], bool]:
    def is_kept() -> bool:
        return bool(_state[switch] == kept)

    is_kept.__doc__ = f"Whether the switch {switch} is {kept}. It is {_DEFAULTS[switch]} at first."
    return is_kept


def _setter(values: dict[str, bool]) -> Callable[[], None]:
    def set_all() -> None:
        _set(**values)

    set_all.__doc__ = f"Keep {', '.join(f'{switch}={value}' for switch, value in values.items())}."
    return set_all


def _answer(of_device: bool, answer: bool, why: str) -> Callable[..., bool]:
    def tell() -> bool:
        return answer

    def tell_of_device(device_index: Any = None) -> bool:
        return answer

    function: Callable[..., bool] = tell_of_device if of_device else tell
    function.__doc__ = f"{answer}: {why}."
    return function


def _made() -> dict[str, Callable[..., Any]]:
    """The functions of the tables, by name."""
    made: dict[str, Callable[..., Any]] = {name: _setter(values) for name, values in _SETTERS.items()}
    for switch, (_, setter, getter) in _SWITCHES.items():
        made[getter] = _getter(switch)
        if setter is not None:
            made[setter] = _keeper(switch)
    for member in MemoryUsagePreference:
        made[f"is_memory_usage_{member.name.lower()}"] = _getter("memory", member)
    for name, (answer, why) in _ANSWERS.items():
        made[name] = _answer(name.startswith("has_"), answer, why)
    for name, function in made.items():
        function.__name__ = function.__qualname__ = name
    return made


globals().update(_made())
use_fna, is_fna_enabled = use_fused_na, globals()["is_fused_na_enabled"]

#: Every function of this module; the package offers them too.
NAMES = [name for name, found in globals().items() if inspect.isfunction(found) and found.__module__ == __name__]
NAMES = [name for name in NAMES if not name.startswith("_")]
