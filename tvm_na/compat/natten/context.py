"""``natten.context``: switches of NATTEN's kernels, which keep what is set and change nothing here."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch

from tvm_na.compat.natten.ignored import ignore


class MemoryUsagePreference(Enum):
    """How much memory NATTEN's gradients may take."""

    Default = 0
    Strict = 1
    Unrestricted = 2


_DEFAULTS: dict[str, Any] = {
    "deterministic": False,
    "kv_parallelism": True,
    "fused_na": True,
    "flex_attention": False,
    "flex_forced": False,
    "flex_compile": False,
    "flex_compile_backprop": False,
    "tf32": False,
    "tiled_na": False,
    "gemm_na": False,
    "memory": MemoryUsagePreference.Default,
}
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


def is_memory_usage_default() -> bool:
    """Whether the preference is ``default``."""
    return get_memory_usage_preference() is MemoryUsagePreference.Default


def is_memory_usage_strict() -> bool:
    """Whether the preference is ``strict``."""
    return get_memory_usage_preference() is MemoryUsagePreference.Strict


def is_memory_usage_unrestricted() -> bool:
    """Whether the preference is ``unrestricted``."""
    return get_memory_usage_preference() is MemoryUsagePreference.Unrestricted


def use_deterministic_algorithms(mode: bool = True) -> None:
    """Keep ``mode``. Compiled kernels write each element of an output once and are deterministic in any case."""
    _set(deterministic=mode)


def are_deterministic_algorithms_enabled() -> bool:
    """What :func:`use_deterministic_algorithms` kept."""
    return bool(_state["deterministic"])


def use_kv_parallelism_in_fused_na(mode: bool = True) -> None:
    """Keep ``mode``."""
    _set(kv_parallelism=mode)


def is_kv_parallelism_in_fused_na_enabled() -> bool:
    """What :func:`use_kv_parallelism_in_fused_na` kept."""
    return bool(_state["kv_parallelism"])


def use_fused_na(
    mode: bool = True,
    kv_parallel: bool = True,
    use_flex_attention: bool = False,
    force_flex_attention: bool = False,
) -> None:
    """Keep the switches. Modules take the fused operator wherever it serves, whatever they say."""
    _set(
        fused_na=mode,
        kv_parallelism=kv_parallel,
        flex_attention=use_flex_attention,
        flex_forced=force_flex_attention,
    )


def is_fused_na_enabled() -> bool:
    """What :func:`use_fused_na` kept; True at first, unlike in NATTEN."""
    return bool(_state["fused_na"])


use_fna, is_fna_enabled = use_fused_na, is_fused_na_enabled


def use_flex_attention() -> None:
    """Keep that FlexAttention was wanted."""
    _set(fused_na=True, flex_attention=True)


def should_use_flex_attention() -> bool:
    """Whether :func:`use_flex_attention` was called."""
    return bool(_state["flex_attention"])


def force_flex_attention() -> None:
    """Keep that FlexAttention was wanted for everything."""
    _set(fused_na=True, flex_attention=True, flex_forced=True)


def should_force_flex_attention() -> bool:
    """Whether :func:`force_flex_attention` was called."""
    return bool(_state["flex_forced"])


def allow_flex_compile(mode: bool = True, backprop: bool = False) -> None:
    """Keep whether FlexAttention may be compiled, and for gradients too."""
    _set(flex_compile=mode, flex_compile_backprop=mode and backprop)


def allow_flex_compile_backprop(mode: bool = True) -> None:
    """Keep whether FlexAttention may be compiled for gradients."""
    _set(flex_compile_backprop=mode)


def disable_flex_compile() -> None:
    """Undo :func:`allow_flex_compile`."""
    allow_flex_compile(False)


def disable_flex_compile_backprop() -> None:
    """Undo :func:`allow_flex_compile_backprop`."""
    allow_flex_compile_backprop(False)


def is_flex_compile_allowed() -> bool:
    """Whether :func:`allow_flex_compile` was called."""
    return bool(_state["flex_compile"])


def is_flex_compile_backprop_allowed() -> bool:
    """Whether :func:`allow_flex_compile_backprop` was called."""
    return bool(_state["flex_compile_backprop"])


def use_autotuner(*args: Any, **named: Any) -> None:
    """Nothing: ``tvm-na tune`` tunes, ahead of time."""
    ignore("natten.use_autotuner", (*args, *named))


def disable_autotuner() -> None:
    """Nothing: there is no tuning while a model runs."""


def _no_autotuner() -> bool:
    """False: nothing is tuned while a model runs."""
    return False


is_autotuner_enabled = is_autotuner_enabled_for_forward = is_autotuner_enabled_for_backward = _no_autotuner
is_autotuner_thorough_for_forward = is_autotuner_thorough_for_backward = _no_autotuner


def has_cuda() -> bool:
    """Whether PyTorch sees a GPU."""
    return torch.cuda.is_available()


def has_half(device_index: Any = None) -> bool:
    """True: float16 works on every device."""
    return True


def has_bfloat(device_index: Any = None) -> bool:
    """True: bfloat16 works on every device."""
    return True


def has_fna(device_index: Any = None) -> bool:
    """True: ``na1d``, ``na2d`` and ``na3d`` work on every device."""
    return True


has_fused_na = has_fna


def has_gemm(device_index: Any = None) -> bool:
    """False: NATTEN's kernels for unfused attention on tensor cores are not here."""
    return False


has_tf32_gemm = has_fp32_gemm = has_fp64_gemm = has_gemm


def use_tf32_in_gemm_na(mode: bool = True) -> None:
    """Keep ``mode``."""
    _set(tf32=mode)


def is_tf32_in_gemm_na_enabled() -> bool:
    """What :func:`use_tf32_in_gemm_na` kept. No kernel of ours rounds float32 to TF32."""
    return bool(_state["tf32"])


def use_tiled_na(mode: bool = True) -> None:
    """Keep ``mode``."""
    _set(tiled_na=mode)


def is_tiled_na_enabled() -> bool:
    """What :func:`use_tiled_na` kept."""
    return bool(_state["tiled_na"])


def use_gemm_na(mode: bool = True) -> None:
    """Keep ``mode``."""
    _set(gemm_na=mode)


def is_gemm_na_enabled() -> bool:
    """What :func:`use_gemm_na` kept."""
    return bool(_state["gemm_na"])


def enable_tf32() -> bool:
    """False, as in NATTEN where there are no kernels for TF32."""
    return False


def disable_tf32() -> bool:
    """False: TF32 is off."""
    return False


def enable_gemm_na() -> None:
    """``use_gemm_na(True)``."""
    use_gemm_na(True)


def disable_gemm_na() -> None:
    """``use_gemm_na(False)``."""
    use_gemm_na(False)


def enable_tiled_na() -> None:
    """``use_tiled_na(True)``."""
    use_tiled_na(True)


def disable_tiled_na() -> None:
    """``use_tiled_na(False)``."""
    use_tiled_na(False)
