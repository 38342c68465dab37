"""Neighborhood attention in two steps, for those who want the weights: scores (na1d_qk, na2d_qk, na3d_qk), and sums of
values by weights (na1d_av, na2d_av, na3d_av)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tvm_na.functional import Backend, choose_backend, kind_of
from tvm_na.ops import autocast
from tvm_na.ops import unfused as ops_unfused
from tvm_na.ops.dispatch_state import any_requires_grad, in_forward_mode, is_watched
from tvm_na.ops.launch_unfused import Launcher, Window, known_launcher, signature
from tvm_na.problems.attention import NAProblem, check_scale, per_axis_bools, per_axis_ints
from tvm_na.problems.unfused import UnfusedProblem, av_problem_of, qk_problem_of
from tvm_na.reference import unfused as unfused_reference


@dataclass
class _Checked:
    """A call that was checked: its problem, its window, one value per axis, and what it may call directly.

    ``served`` says that there is a kernel for it, once that is known.
    """

    problem: UnfusedProblem
    window: Window
    launch: Launcher | None = None
    served: bool = False


def _why_not_compiled(checked: _Checked, device: torch.device, forward_mode: bool) -> str | None:
    """What of a call has no compiled kernel; None if all has."""
    if forward_mode:
        return "compiled kernels have no forward-mode derivatives"
    if device.type == "cuda" and not checked.served:
        reason = _why_no_kernel(checked.problem.kind, checked.problem.forward.fields(), device)
        checked.served = reason is None
        return reason
    if device.type not in ("cpu", "cuda", "meta"):
        return f"there are no compiled kernels for the device {device.type} yet"
    return None


def _why_no_kernel(kind: str, fields: tuple[Any, ...], device: torch.device) -> str | None:
    """:func:`ops_unfused.why_no_kernel`, of which a trace takes the answer, and does not look inside.

    It gets what a problem is made of, for the reason that ``functional.py`` gives.
    """
    return ops_unfused.why_no_kernel(UnfusedProblem(kind, NAProblem(*fields)), device)


# What torch.compiler.assume_constant_result does, which would import 2 seconds of compiler to do it.
_why_no_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


# Calls that were checked before, of both operators. A check costs as much as a small kernel.
_checked: dict[tuple[Any, ...], _Checked] = {}
_PLAIN = (Tensor, torch.nn.Parameter)


def _checked_once(
    name: str, tensors: tuple[Any, ...], axes: tuple[Any, ...], rank: int, check: Callable[[], UnfusedProblem]
) -> _Checked:
    def found_now() -> _Checked:
        problem = check()
        kernel_size, stride, dilation = map(per_axis_ints, ("kernel_size", "stride", "dilation"), axes, (rank,) * 3)
        return _Checked(problem, (kernel_size, stride, dilation, per_axis_bools("is_causal", axes[3], rank)))

    if torch.compiler.is_compiling() or not all(t is None or type(t) in _PLAIN for t in tensors):
        return found_now()
    try:
        at = (name, signature(*tensors), axes, *map(kind_of, axes), rank)
        found = _checked.get(at)
    except (TypeError, RuntimeError):  # a list cannot be looked up, nor can much that the check will refuse
        return found_now()
    if found is None:
        found = _checked[at] = found_now()
    return found


def _launch_of(checked: _Checked, name: str, tensors: tuple[Any, ...], needs_grad: bool) -> Launcher | None:
    """What may be called without PyTorch's dispatcher; None if something wants to see the call, or it is the first."""
    if needs_grad or torch.compiler.is_compiling() or is_watched():
        return None
    if checked.launch is None:
        checked.launch = known_launcher(name, *tensors, window=checked.window)
    return checked.launch


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any_requires_grad(*tensors)


def _qk_front(rank: int) -> Callable[..., Tensor]:
    """The public function of scores for ``rank`` spatial axes."""

    def scores(
        query: Tensor,
        key: Tensor,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
        scale: float | None = 1.0,
        *,
        rpb: Tensor | None = None,
        backend: Backend | str = Backend.AUTO,
    ) -> Tensor:
        axes = (kernel_size, stride, dilation, is_causal)
        if autocast.is_on(query):
            query, key, rpb = autocast.cast(query.device, query, key, rpb)
            with autocast.off(query.device):
                return scores(query, key, *axes, scale, rpb=rpb, backend=backend)
        chosen, tensors = Backend.of(backend), (query, key, rpb)
        checked = _checked_once("na_qk", tensors, axes, rank, lambda: qk_problem_of(query, key, axes, rpb, rank))
        factor = check_scale(scale, checked.problem.channels, checked.problem.accum_dtype)
        if chosen is not Backend.REFERENCE:
            launch = _launch_of(checked, "na_qk", tensors, _needs_grad(*tensors))
            if launch is not None:
                return launch(query, key, rpb, factor)
        reason = _why_not_compiled(checked, query.device, in_forward_mode(*tensors))
        if choose_backend(chosen, reason) is Backend.REFERENCE:
            return unfused_reference.qk(checked.problem.forward, query, key, factor, rpb)
        result: Tensor = ops_unfused.na_qk(query, key, rpb, *checked.window, factor, False)
        return result

    return _named(scores, f"na{rank}d_qk", _QK.format(rank=rank, axes=_AXES[rank - 1]))


def _av_front(rank: int) -> Callable[..., Tensor]:
    """The public function of weighted sums for ``rank`` spatial axes."""

    def weighted_sums(
        attn: Tensor,
        value: Tensor,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
        *,
        backend: Backend | str = Backend.AUTO,
    ) -> Tensor:
        axes = (kernel_size, stride, dilation, is_causal)
        if autocast.is_on(attn):
            attn, value = autocast.cast(attn.device, attn, value)
            with autocast.off(attn.device):
                return weighted_sums(attn, value, *axes, backend=backend)
        chosen, tensors = Backend.of(backend), (attn, value)
        checked = _checked_once("na_av", tensors, axes, rank, lambda: av_problem_of(attn, value, axes, rank))
        if chosen is not Backend.REFERENCE:
            launch = _launch_of(checked, "na_av", tensors, _needs_grad(*tensors))
            if launch is not None:
                return launch(attn, value, 1.0)
        reason = _why_not_compiled(checked, attn.device, in_forward_mode(*tensors))
        if choose_backend(chosen, reason) is Backend.REFERENCE:
            return unfused_reference.av(checked.problem.forward, attn, value)
        result: Tensor = ops_unfused.na_av(attn, value, *checked.window, 1.0)
        return result

    return _named(weighted_sums, f"na{rank}d_av", _AV.format(rank=rank, axes=_AXES[rank - 1]))


def _named(function: Callable[..., Tensor], name: str, text: str) -> Callable[..., Tensor]:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = text
    return function


_AXES = ("length", "height, width", "depth, height, width")

_QK = """Scores of neighborhood attention over {rank} spatial axes: scale * query key^T + rpb, in each query's window.

    ``softmax(na{rank}d_qk(..., scale=None), dim=-1)``, put into ``na{rank}d_av``, is ``na{rank}d``.

    Args:
        query: ``[batch, {axes}, heads, head_dim]``, float16, bfloat16, float32 or float64.
        key: ``[batch, {axes}, heads_kv, head_dim]``; heads is a multiple of heads_kv.
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
        ``[batch, {axes}, heads, prod(kernel_size)]`` in the inputs' dtype: positions of a window in row-major order,
        from where it starts on each axis; minus infinity where a causal window has no key.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
        NotImplementedError: for backend='compiled' where no compiled kernel serves the call.

    Gradients of any order are compiled too. Under ``torch.autocast`` tensors other than float64 are taken in its dtype.
    """

_AV = """Sums of the values of each query's window, weighted by ``attn``, over {rank} spatial axes.

    Args:
        attn: Weights ``[batch, {axes}, heads, prod(kernel_size)]``, in the order of ``na{rank}d_qk``, float16,
            bfloat16, float32 or float64. Where a causal window has no key they are ignored, whatever they are, and
            have a gradient of 0.
        value: ``[batch, {axes}, heads_kv, head_dim_v]``; heads is a multiple of heads_kv.
        kernel_size: Window length, an integer or one per axis; ``kernel_size * dilation`` <= the axis.
        stride: Queries that share a window, at most kernel_size.
        dilation: Step between neighbors.
        is_causal: Whether a query sees only keys at or before it, a bool or one per axis.
        backend: ``compiled``, ``reference``, or ``auto``: compiled where it serves the call, else the reference with
            one warning.

    Returns:
        ``[batch, {axes}, heads, head_dim_v]`` in the inputs' dtype.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
        NotImplementedError: for backend='compiled' where no compiled kernel serves the call.

    Gradients of any order are compiled too. Under ``torch.autocast`` tensors other than float64 are taken in its dtype.
    """

na1d_qk = _qk_front(1)
na2d_qk = _qk_front(2)
na3d_qk = _qk_front(3)
na1d_av = _av_front(1)
na2d_av = _av_front(2)
na3d_av = _av_front(3)
