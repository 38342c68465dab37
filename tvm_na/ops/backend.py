"""Who computes a call: a compiled kernel, or the eager reference, with one warning for each reason."""

from __future__ import annotations

import enum
import sys
import warnings
from typing import Any

import torch

from tvm_na.jit.remembered import Remembered
from tvm_na.ops.table import why_no_kernel
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.unfused import UnfusedProblem


class Backend(str, enum.Enum):
    """Who computes: a compiled kernel, the eager reference, or whichever of them serves the call."""

    AUTO = "auto"
    COMPILED = "compiled"
    REFERENCE = "reference"

    @classmethod
    def of(cls, backend: Backend | str) -> Backend:
        """The member called ``backend``; ValueError or TypeError for anything else."""
        if backend.__class__ is cls:
            return backend
        if not isinstance(backend, str):
            raise TypeError(f"backend: required a Backend or its name, got {type(backend).__name__} {backend!r}")
        if backend not in cls._value2member_map_:
            names = ", ".join(member.value for member in cls)
            raise ValueError(f"backend: required one of {names}, got {backend!r}")
        return cls(backend)


# Reasons that were told; some name the problem.
_warned: Remembered[str, bool] = Remembered(1024)
# The modules of public functions, and this room: a warning is shown for whoever called into them.
_OURS = ("tvm_na.functional", "tvm_na.unfused", "tvm_na.ops.")


def why_not_compiled(
    problem: NAProblem | UnfusedProblem, device: torch.device, forward_mode: bool = False
) -> str | None:
    """What of a call has no compiled kernel, in words; None if all has."""
    if forward_mode:
        return "compiled kernels have no forward-mode derivatives"
    if device.type == "cuda":
        fields = problem.fields()
        return _why_no_kernel(problem.__class__, tuple(fields), tuple(fields.values()), device)
    if device.type not in ("cpu", "meta"):
        return f"there are no compiled kernels for the device {device.type} yet"
    return None


def _why_no_kernel(
    kind: type[Any], names: tuple[str, ...], values: tuple[Any, ...], device: torch.device
) -> str | None:
    """:func:`why_no_kernel`, of which a trace takes the answer, and does not look inside.

    It gets the fields of a problem, since traces of PyTorch up to 2.11 cannot hand over a frozen dataclass.
    """
    return why_no_kernel(kind.of_fields(dict(zip(names, values, strict=True))), device)


# What torch.compiler.assume_constant_result does, which would import 2 seconds of compiler to do it.
_why_no_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choose_backend(backend: Backend, reason: str | None) -> Backend:
    """Who computes a call of which ``reason`` says why no compiled kernel serves it, if none does.

    Raises:
        NotImplementedError: a compiled kernel is wanted, and there is none.
    """
    if backend is Backend.REFERENCE:
        return Backend.REFERENCE
    if reason is None:
        return Backend.COMPILED
    if backend is Backend.COMPILED:
        raise NotImplementedError(f"backend='compiled': {reason}; backend='reference' serves this call")
    if not torch.compiler.is_compiling() and reason not in _warned:
        _warned[reason] = True
        warnings.warn(f"tvm_na: backend='auto' takes the eager reference: {reason}", stacklevel=_level_of_caller())
    return Backend.REFERENCE


def _level_of_caller() -> int:
    """The stack level, for a warning of the function that asks, of whoever called a public function."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        frame, level = frame.f_back, level + 1
    return level
