"""Neighborhood attention in two steps, for those who want the weights: scores (na1d_qk, na2d_qk, na3d_qk), and sums of
values by weights (na1d_av, na2d_av, na3d_av)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tvm_na.functional import Axes, Flags
from tvm_na.ops import autocast, calls, table
from tvm_na.ops.backend import Backend, choose_backend, why_not_compiled
from tvm_na.ops.dispatch_state import any_requires_grad, in_forward_mode, is_watched
from tvm_na.ops.launch import launcher_for
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.checks import check_scale
from tvm_na.problems.unfused import UnfusedProblem, av_problem_of, qk_problem_of
from tvm_na.reference import unfused as reference

__all__ = ["na1d_av", "na1d_qk", "na2d_av", "na2d_qk", "na3d_av", "na3d_qk"]


def na1d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = 1.0,
    *,
    rpb: Tensor | None = None,
    backend: Backend | str = Backend.AUTO,
) -> Tensor:
    """Scores of neighborhood attention over one spatial axis; see :func:`na2d_qk`."""
    return _step("na_qk", 1, (query, key, rpb), (kernel_size, stride, dilation, is_causal), scale, backend)


def na2d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = 1.0,
    *,
    rpb: Tensor | None = None,
    backend: Backend | str = Backend.AUTO,
) -> Tensor:
    """Scores of neighborhood attention over two spatial axes: scale * query key^T + rpb, in each query's window.

    ``softmax(na2d_qk(..., scale=None), dim=-1)``, put into ``na2d_av``, is ``na2d``.

    Args:
        query: ``[batch, height, width, heads, head_dim]``, float16, bfloat16, float32 or float64.
        key: ``[batch, height, width, heads_kv, head_dim]``; heads is a multiple of heads_kv.
        kernel_size: Window length, an integer or one per axis; ``kernel_size * dilation`` <= the axis.
        stride: Queries that share a window, at most kernel_size.
        dilation: Step between neighbors.
        is_causal: Whether a query sees only keys at or before it, a bool or one per axis.
        scale: Factor of the products; ``head_dim ** -0.5`` if None.
        rpb: Relative position bias ``[heads, 2 * kernel_size - 1, ...]``, added to the scaled products; its
            index is (key - query) / dilation + kernel_size - 1 along each axis.
        backend: ``compiled``, ``reference``, or ``auto``: compiled where it serves the call, else the reference with
            one warning.

    Returns:
        ``[batch, height, width, heads, prod(kernel_size)]`` in the inputs' dtype: positions of a window in row-major
        order, from where it starts on each axis; minus infinity where a causal window has no key.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
        NotImplementedError: for backend='compiled' where no compiled kernel serves the call.

    Gradients of any order are compiled too. Under ``torch.autocast`` tensors other than float64 are taken in its dtype.
    """
    return _step("na_qk", 2, (query, key, rpb), (kernel_size, stride, dilation, is_causal), scale, backend)


def na3d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = 1.0,
    *,
    rpb: Tensor | None = None,
    backend: Backend | str = Backend.AUTO,
) -> Tensor:
    """Scores of neighborhood attention over three spatial axes; see :func:`na2d_qk`."""
    return _step("na_qk", 3, (query, key, rpb), (kernel_size, stride, dilation, is_causal), scale, backend)


def na1d_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    *,
    backend: Backend | str = Backend.AUTO,
) -> Tensor:
    """Sums of values, weighted by ``attn``, over one spatial axis; see :func:`na2d_av`."""
    return _step("na_av", 1, (attn, value), (kernel_size, stride, dilation, is_causal), 1.0, backend)


def na2d_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    *,
    backend: Backend | str = Backend.AUTO,
) -> Tensor:
    """Sums of the values of each query's window, weighted by ``attn``, over two spatial axes.

    Args:
        attn: Weights ``[batch, height, width, heads, prod(kernel_size)]``, in the order of ``na2d_qk``, float16,
            bfloat16, float32 or float64. Where a causal window has no key they are ignored, whatever they are, and
            have a gradient of 0.
        value: ``[batch, height, width, heads_kv, head_dim_v]``; heads is a multiple of heads_kv.
        kernel_size: Window length, an integer or one per axis; ``kernel_size * dilation`` <= the axis.
        stride: Queries that share a window, at most kernel_size.
        dilation: Step between neighbors.
        is_causal: Whether a query sees only keys at or before it, a bool or one per axis.
        backend: ``compiled``, ``reference``, or ``auto``: compiled where it serves the call, else the reference with
            one warning.

    Returns:
        ``[batch, height, width, heads, head_dim_v]`` in the inputs' dtype.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
        NotImplementedError: for backend='compiled' where no compiled kernel serves the call.

    Gradients of any order are compiled too. Under ``torch.autocast`` tensors other than float64 are taken in its dtype.
    """
    return _step("na_av", 2, (attn, value), (kernel_size, stride, dilation, is_causal), 1.0, backend)


def na3d_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    *,
    backend: Backend | str = Backend.AUTO,
) -> Tensor:
    """Sums of values, weighted by ``attn``, over three spatial axes; see :func:`na2d_av`."""
    return _step("na_av", 3, (attn, value), (kernel_size, stride, dilation, is_causal), 1.0, backend)


def _scores(problem: NAProblem, query: Tensor, key: Tensor, rpb: Tensor | None, scale: float) -> Tensor:
    return reference.qk(problem, query, key, scale, rpb)


def _sums(problem: NAProblem, attn: Tensor, value: Tensor, scale: float) -> Tensor:
    return reference.av(problem, attn, value)


# By step: its check, who computes it by the reference, and what follows the scale in the operator's call.
_STEPS: dict[str, tuple[Callable[..., UnfusedProblem], Callable[..., Tensor], Any, tuple[bool, ...]]] = {
    "na_qk": (qk_problem_of, _scores, table.na_qk, (False,)),
    "na_av": (av_problem_of, _sums, table.na_av, ()),
}


def _step(
    name: str,
    rank: int,
    tensors: tuple[Any, ...],
    axes: calls.Window,
    scale: float | None,
    backend: Backend | str,
) -> Tensor:
    """What all of them do: check, choose who computes, then launch a kernel or dispatch."""
    if autocast.is_on(tensors[0]):
        device = tensors[0].device
        with autocast.off(device):
            return _step(name, rank, autocast.cast(device, *tensors), axes, scale, backend)
    check, by_reference, operator, more = _STEPS[name]
    chosen = Backend.of(backend)
    call = calls.checked(name, rank, tensors, axes, False, check, (*tensors, axes, rank))
    factor = check_scale(scale, call.problem.channels, call.problem.accum_dtype)
    direct = call.is_direct and chosen is not Backend.REFERENCE and not is_watched()
    direct = direct and not (torch.is_grad_enabled() and any_requires_grad(*tensors))
    if direct and call.launch is not None:
        return call.launch(tensors, factor)[0]
    forward_mode, device = in_forward_mode(*tensors), tensors[0].device
    known = call.served and not forward_mode
    reason = None if known else why_not_compiled(call.problem, device, forward_mode)
    if choose_backend(chosen, reason) is Backend.REFERENCE:
        return by_reference(call.problem.forward, *tensors, factor)
    call.served = True
    if direct:
        call.launch = launcher_for(call.problem, device)
        return call.launch(tensors, factor)[0]
    result: Tensor = operator(*tensors, *call.window, factor, *more)
    return result
