"""``natten.backends``: lists of tiles of NATTEN's kernels, which cannot be had here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

_KERNELS = (
    *("cutlass_fmha", "cutlass_fna", "cutlass_hopper_fmha", "cutlass_hopper_fna"),
    *("cutlass_blackwell_fmha", "cutlass_blackwell_fna"),
)
#: The functions that list tiles, forward and backward. They can be imported, not called.
NAMES = (
    *(f"get_configs_for_{kernel}" for kernel in (*_KERNELS, "flex_fmha", "flex_fna")),
    *(f"get_bwd_configs_for_{kernel}" for kernel in _KERNELS),
)


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(*args: Any, **named: Any) -> NoReturn:
        raise NotImplementedError(
            f"{name}: required NATTEN's own kernels, got tvm_na, which has no lists of tiles; "
            "leave the tile arguments out, and tune with tvm-na tune"
        )

    refuse.__name__ = refuse.__qualname__ = name
    refuse.__doc__ = "NotImplementedError: tiles of NATTEN's kernels mean nothing to tvm_na's."
    return refuse


globals().update({name: _refusal(name) for name in NAMES})

__all__ = list(NAMES)
