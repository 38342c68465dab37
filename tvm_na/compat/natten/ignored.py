"""Arguments that say how NVIDIA's kernels are to run: accepted, said once in the log, and ignored."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from tvm_na.functional import Backend

logger = logging.getLogger("tvm_na.compat.natten")

#: Backends of NATTEN, by what they compute. Its "reference" has the name of ours.
NA_BACKENDS = ("cutlass-fna", "hopper-fna", "blackwell-fna", "flex-fna")
DENSE_BACKENDS = ("cutlass-fmha", "hopper-fmha", "blackwell-fmha", "flex-fmha")

#: Keywords of na1d, na2d and na3d that choose tiles and schedules, with NATTEN's defaults. In NATTEN's order.
NA_HINTS: dict[str, Any] = {
    "q_tile_shape": None,
    "kv_tile_shape": None,
    "backward_q_tile_shape": None,
    "backward_kv_tile_shape": None,
    "backward_kv_splits": None,
    "backward_use_pt_reduction": False,
    "run_persistent_kernel": True,
    "kernel_schedule": None,
    "torch_compile": False,
}

#: The same of attention.
DENSE_HINTS: dict[str, Any] = {name.replace("_shape", "_size"): default for name, default in NA_HINTS.items()}

_said: set[str] = set()


def ignore(keyword: str, value: Any) -> None:
    """Say, once per keyword and process, at level DEBUG, that a keyword's value has no effect."""
    if torch.compiler.is_compiling() or keyword in _said:
        return
    _said.add(keyword)
    logger.debug("%s=%r chooses among NATTEN's kernels and has no effect on tvm_na's", keyword, value)


def ignore_all(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """:func:`ignore` those of ``defaults`` that were given another value."""
    for keyword, default in defaults.items():
        value = given.get(keyword, default)
        if value is not default and not (isinstance(value, bool) and value == default):
            ignore(keyword, value)


def backend_of(backend: Any, theirs: tuple[str, ...]) -> Backend:
    """Our backend for a name of ours or of NATTEN's, of which each means ``auto``.

    Raises:
        ValueError: for any other name; TypeError for what is no name.
    """
    if backend is None:
        return Backend.AUTO
    if isinstance(backend, str) and backend in theirs:
        ignore("backend", backend)
        return Backend.AUTO
    if isinstance(backend, str) and backend not in [member.value for member in Backend]:
        ours = ", ".join(member.value for member in Backend)
        raise ValueError(f"backend: required one of {ours}, or of NATTEN's {', '.join(theirs)}, got {backend!r}")
    return Backend.of(backend)
