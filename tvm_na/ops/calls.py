"""Calls of public functions that were checked before: a check costs as much as a small kernel."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from tvm_na.jit.remembered import Remembered
from tvm_na.ops.fast_path import Differentiable
from tvm_na.ops.launch import Launcher
from tvm_na.ops.register import signature
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.checks import check_scale
from tvm_na.problems.unfused import UnfusedProblem

P = TypeVar("P", NAProblem, UnfusedProblem)
Window = tuple[Any, Any, Any, Any]

# Other classes see their calls through PyTorch's dispatcher.
_PLAIN = (Tensor, torch.nn.Parameter)
_SCALARS = (int, int, int, bool)


@dataclasses.dataclass
class Checked(Generic[P]):
    """A call that was checked.

    Attributes:
        problem: What it poses.
        window: kernel_size, stride, dilation and is_causal, one value per axis.
        scale: The default factor of the scores.
        is_direct: Whether a kernel may be launched without PyTorch's dispatcher where nothing watches it: it is
            remembered, of plain tensors with memory, outside of a trace.
        launch: What it calls directly, without gradients; None before the first time.
        differentiable: The same with gradients.
        served: Whether it is known that there is a compiled kernel for it.
    """

    problem: P
    window: Window
    scale: float
    is_direct: bool = False
    launch: Launcher | None = None
    differentiable: Differentiable | None = None
    served: bool = False


#: Kinds of calls that stay checked, and as many that were made before them.
MOST_CALLS = 1024

_checked: Remembered[tuple[Any, ...], Checked[Any]] = Remembered(MOST_CALLS)


def forget() -> None:
    """Check every kind of call again when it next comes."""
    _checked.clear()


def checked(
    name: str,
    rank: int,
    tensors: tuple[Any, ...],
    axes: Window,
    option: bool,
    check: Callable[..., P],
    args: tuple[Any, ...],
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
        at = (name, rank, signature(tensors), axes, _classes(axes), option, option.__class__)
        found = _checked.get(at)
    except (TypeError, RuntimeError):  # a list cannot be looked up, nor can much that the check will refuse
        return _check(check, args)
    return _checked.or_make(at, functools.partial(_first, tensors, check, args)) if found is None else found


def _first(tensors: tuple[Any, ...], check: Callable[..., P], args: tuple[Any, ...]) -> Checked[P]:
    """A call that is to be remembered."""
    found = _check(check, args)
    found.is_direct = not tensors[0].is_meta
    return found


def _classes(axes: Sequence[Any]) -> tuple[Any, ...]:
    """Of the values and their elements: True equals 1, but is no kernel size."""
    classes = tuple([axis.__class__ for axis in axes])
    if classes == _SCALARS:
        return classes
    return (classes, *(tuple(map(type, axis)) for axis in axes if isinstance(axis, tuple)))


def _check(check: Callable[..., P], args: tuple[Any, ...]) -> Checked[P]:
    problem = check(*args)
    attention = problem.forward if isinstance(problem, UnfusedProblem) else problem
    return Checked(problem, attention.window, check_scale(None, attention.head_dim))
