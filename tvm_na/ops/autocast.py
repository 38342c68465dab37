"""Automatic mixed precision: arguments in the dtype of ``torch.autocast``, as PyTorch's own attention takes them."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

# Asked once: what torch.compile traces cannot ask up to PyTorch 2.11.
_DEVICES = frozenset(kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind))


def is_on(tensor: Any) -> bool:
    """Whether autocast is on for the device of ``tensor``; not for what is no tensor."""
    if not torch._C._is_any_autocast_enabled() or not isinstance(tensor, Tensor):
        return False
    device = tensor.device.type
    return device in _DEVICES and torch.is_autocast_enabled(device)


def cast(device: torch.device, *values: Any) -> tuple[Any, ...]:
    """``values``, with tensors of lower precision on such a device in autocast's dtype; float64 stays what it is."""
    dtype = torch.get_autocast_dtype(device.type)
    return tuple(
        value.to(dtype)
        if isinstance(value, Tensor)
        and value.device.type == device.type
        and value.is_floating_point()
        and value.dtype != torch.float64
        else value
        for value in values
    )


def off(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context in which operations on such a device compute in the dtypes of their arguments."""
    if device.type in _DEVICES:
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
