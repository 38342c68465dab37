"""Calls of public functions that were checked before: a check costs as much as a small kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from tvm_na.ops.dispatch_state import any_requires_grad, is_watched
from tvm_na.ops.fast_path import Differentiable
from tvm_na.ops.launch import Launcher
from tvm_na.ops.register import signature
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.unfused import UnfusedProblem

P = TypeVar("P", NAProblem, UnfusedProblem)
Window = tuple[Any, Any, Any, Any]

# Other classes see their calls through PyTorch's dispatcher.
_PLAIN = (Tensor, torch.nn.Parameter)


@dataclasses.dataclass
class Checked(Generic[P]):
    """A call that was checked.

    Attributes:
        problem: What it poses.
        window: kernel_size, stride, dilation and is_causal, one value per axis.
        launch: What it calls directly, without gradients; None before the first time.
        differentiable: The same with gradients.
        served: Whether it is known that there is a compiled kernel for it.
    """

    problem: P
    window: Window
    launch: Launcher | None = None
    differentiable: Differentiable | None = None
    served: bool = False


_checked: dict[tuple[Any, ...], Checked[Any]] = {}


def forget() -> None:
    """Check every kind of call again when it next comes."""
    _checked.clear()


def checked(
    name: str, rank: int, tensors: tuple[Any, ...], axes: Window, option: bool, check: Callable[..., P], *args: Any
) -> Checked[P]:
    """A call of the function ``name`` with such arguments, checked now unless such a one has been before.

    Args:
        name: Of the function.
        rank: The number of spatial axes.
        tensors: Its tensors, None for one that did not come.
        axes: kernel_size, stride, dilation and is_causal as they were given.
        option: What else it depends on.
        check: ``check(*args)`` makes the problem, with every check.
        args: For ``check``.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    if torch.compiler.is_compiling():
        return _check(check, args)
    try:
        for tensor in tensors:
            if tensor is not None and tensor.__class__ not in _PLAIN:
                return _check(check, args)
        # Their classes too: True equals 1, but is no kernel size.
        kinds = [a.__class__ if a.__class__ is not tuple else tuple(map(type, a)) for a in axes]
        at = (name, rank, signature(tensors), axes, tuple(kinds), option, option.__class__)
        found = _checked.get(at)
    except (TypeError, RuntimeError):  # a list cannot be looked up, nor can much that the check will refuse
        return _check(check, args)
    if found is None:
        found = _checked[at] = _check(check, args)
    return found


def _check(check: Callable[..., P], args: tuple[Any, ...]) -> Checked[P]:
    problem = check(*args)
    p = problem.forward if isinstance(problem, UnfusedProblem) else problem
    return Checked(problem, (p.kernel_size, p.stride, p.dilation, p.is_causal))


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a call of these tensors is recorded."""
    return torch.is_grad_enabled() and any_requires_grad(*tensors)


def is_direct() -> bool:
    """Whether kernels may be launched without PyTorch's dispatcher: nothing wants to see the call."""
    return not (torch.compiler.is_compiling() or is_watched())
