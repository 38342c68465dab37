"""Calls in float32 on GPUs whose products may be TF32, where PyTorch says so.

PyTorch's setting is that of its own products on GPUs: ``torch.backends.cuda.matmul.allow_tf32``,
``torch.backends.cuda.matmul.fp32_precision``, ``torch.backends.fp32_precision`` or
``torch.set_float32_matmul_precision``, whichever was set last. It is off by default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.targets.target import NATarget

# What ``fp32_precision`` reads, in 0.3 µs in place of 2. (``allow_tf32`` raises where ``fp32_precision`` was set.)
_precision: Callable[[str, str], str] | None = getattr(torch._C, "_get_fp32_precision_getter", None)


def is_allowed() -> bool:
    """Whether PyTorch's products of float32 on GPUs may be TF32 now."""
    if _precision is None:
        return bool(torch.backends.cuda.matmul.fp32_precision == TF32)
    return _precision("cuda", "matmul") == TF32


def in_tf32(problem: NAProblem, target: NATarget) -> NAProblem | None:
    """``problem``, of float32, in TF32; None where there is no kernel of it that uses tensor cores, for one sample."""
    if problem.dtype != "float32":
        return None
    from tvm_na.schedules import spaces_for

    found = dataclasses.replace(problem, dtype=TF32)
    return found if found.largest_batch("cuda") and spaces_for(found, target) else None


def either(make: Callable[[NAProblem], Callable[..., Any]], exact: NAProblem, target: NATarget) -> Callable[..., Any]:
    """A launcher of ``exact``, or of the same in TF32 where there is such a kernel, as PyTorch allows at each call.

    Args:
        make: Makes a launcher. The one that is allowed now is made now, the other one when it is first wanted.
        exact: The problem as it was posed.
        target: Of the device.
    """
    reduced = in_tf32(exact, target)
    if reduced is None:
        return make(exact)
    problems = {False: exact, True: reduced}
    allowed = is_allowed()
    made = {allowed: make(problems[allowed])}

    def launch(*args: Any) -> Any:
        allowed = is_allowed()
        launcher = made.get(allowed)
        if launcher is None:
            launcher = made[allowed] = make(problems[allowed])
        return launcher(*args)

    return launch
