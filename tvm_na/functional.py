"""Neighborhood attention as functions: na1d, na2d, na3d, merge_attentions."""

from __future__ import annotations

import enum
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tvm_na.ops import attention as ops
from tvm_na.ops import autocast
from tvm_na.ops.dispatch_state import any_requires_grad, in_forward_mode, is_watched
from tvm_na.ops.fast_path import Differentiable
from tvm_na.ops.launch import Launcher, Window, known_launcher, signature
from tvm_na.problems.attention import (
    NAProblem,
    check_additional,
    check_scale,
    per_axis_bools,
    per_axis_ints,
    problem_of,
)
from tvm_na.reference import attention as reference


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


_warned: set[str] = set()
# The files of public functions, below whose callers a warning is shown.
_FRONTS = (__file__, os.path.join(os.path.dirname(__file__), "unfused.py"))


def _why_not_compiled(problem: NAProblem, device: torch.device, forward_mode: bool = False) -> str | None:
    """What of a call has no compiled kernel; None if all has."""
    if forward_mode:
        return "compiled kernels have no forward-mode derivatives"
    if device.type == "cuda":
        return _why_no_kernel(problem.fields(), device)
    if device.type not in ("cpu", "meta"):
        return f"there are no compiled kernels for the device {device.type} yet"
    return None


def _why_no_kernel(fields: tuple[Any, ...], device: torch.device) -> str | None:
    """:func:`ops.why_no_kernel`, of which a trace takes the answer, and does not look inside.

    It gets the fields of a problem, since traces of PyTorch up to 2.11 cannot hand over a frozen dataclass.
    """
    return ops.why_no_kernel(NAProblem(*fields), device)


# What torch.compiler.assume_constant_result does, which would import 2 seconds of compiler to do it.
_why_no_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choose_backend(backend: Backend, reason: str | None) -> Backend:
    """Who computes a call of which ``reason`` says why no compiled kernel serves it, if none does."""
    if backend is Backend.REFERENCE:
        return Backend.REFERENCE
    if reason is None:
        return Backend.COMPILED
    if backend is Backend.COMPILED:
        raise NotImplementedError(f"backend='compiled': {reason}; backend='reference' serves this call")
    if not torch.compiler.is_compiling() and reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"tvm_na: backend='auto' takes the eager reference: {reason}", stacklevel=_level_of_caller())
    return Backend.REFERENCE


def _level_of_caller() -> int:
    """The stack level, for a warning of the function that asks, of whoever called into a front."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename in _FRONTS:
        frame, level = frame.f_back, level + 1
    return level


_Tensors = tuple[Tensor, Tensor, Tensor, "Tensor | None"]  # query, key, value, rpb
_Axes = tuple[Any, Any, Any, Any]  # kernel_size, stride, dilation, is_causal as they were given


@dataclass
class _Checked:
    """A call that was checked: its problem, its window, one value per axis, and what it may call directly."""

    problem: NAProblem
    window: Window
    launch: Launcher | None = None
    differentiable: Differentiable | None = None

    def remember(self, tensors: _Tensors, needs_grad: bool) -> None:
        """Take over what the operator called for these tensors, so that the next call need not go through it."""
        launch = known_launcher(*tensors, self.window, needs_grad or self.problem.return_lse)
        if not needs_grad:
            self.launch = launch
        elif launch is not None:
            self.differentiable = Differentiable(self.problem, self.window, launch)


# Calls that were checked before. A check costs as much as a small kernel.
_checked: dict[tuple[Any, ...], _Checked] = {}


def kind_of(value: Any) -> Any:
    """The type of a per-axis argument, and of its elements: True equals 1, but is no kernel size."""
    return (value.__class__, *map(type, value)) if isinstance(value, tuple) else value.__class__


def _check(tensors: _Tensors, axes: _Axes, return_lse: Any, rank: int) -> _Checked:
    if not isinstance(return_lse, bool):
        raise TypeError(f"return_lse: required bool, got {type(return_lse).__name__} {return_lse!r}")
    window = (
        per_axis_ints("kernel_size", axes[0], rank),
        per_axis_ints("stride", axes[1], rank),
        per_axis_ints("dilation", axes[2], rank),
        per_axis_bools("is_causal", axes[3], rank),
    )
    return _Checked(problem_of(*tensors[:3], *window, tensors[3], return_lse, rank), window)


def _checked_once(tensors: _Tensors, axes: _Axes, return_lse: Any, rank: int) -> _Checked:
    query, key, value, rpb = tensors
    plain = type(query) is type(key) is type(value) is Tensor and (rpb is None or isinstance(rpb, Tensor))
    if not plain or torch.compiler.is_compiling():
        return _check(tensors, axes, return_lse, rank)
    try:
        at = (signature(*tensors), axes, *map(kind_of, axes), return_lse, return_lse.__class__, rank)
        found = _checked.get(at)
    except (TypeError, RuntimeError):  # a list cannot be looked up, nor can much that the check will refuse
        return _check(tensors, axes, return_lse, rank)
    if found is None:
        found = _checked[at] = _check(tensors, axes, return_lse, rank)
    return found


def _front(rank: int) -> Callable[..., Any]:
    """The public function for ``rank`` spatial axes."""

    def neighborhood_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
        scale: float | None = None,
        additional_keys: Tensor | None = None,
        additional_values: Tensor | None = None,
        *,
        rpb: Tensor | None = None,
        return_lse: bool = False,
        backend: Backend | str = Backend.AUTO,
    ) -> Any:
        if autocast.is_on(query):
            query, key, value, rpb, additional_keys, additional_values = autocast.cast(
                query.device, query, key, value, rpb, additional_keys, additional_values
            )
            with autocast.off(query.device):
                return neighborhood_attention(
                    *(query, key, value, kernel_size, stride, dilation, is_causal, scale),
                    *(additional_keys, additional_values),
                    rpb=rpb,
                    return_lse=return_lse,
                    backend=backend,
                )
        chosen = Backend.of(backend)
        tensors = (query, key, value, rpb)
        checked = _checked_once(tensors, (kernel_size, stride, dilation, is_causal), return_lse, rank)
        problem = checked.problem
        factor = check_scale(scale, problem.head_dim, problem.accum_dtype)
        has_extra = check_additional(additional_keys, additional_values, query, key, value)

        needs_grad = torch.is_grad_enabled() and any_requires_grad(query, key, value, rpb)
        direct = not (has_extra or torch.compiler.is_compiling() or is_watched())
        if direct and chosen is not Backend.REFERENCE:
            if needs_grad:
                if checked.differentiable is not None:
                    return checked.differentiable(query, key, value, rpb, factor, return_lse)
            elif checked.launch is not None:
                known = checked.launch(query, key, value, rpb, factor)
                return known if return_lse else known[0]
        extra = (additional_keys, additional_values)
        forward_mode = in_forward_mode(*tensors, *extra)
        if choose_backend(chosen, _why_not_compiled(problem, query.device, forward_mode)) is Backend.REFERENCE:
            out, lse = reference.neighborhood_attention(problem, query, key, value, factor, rpb, *extra)
            return (out, lse) if return_lse else out
        if not has_extra and not return_lse:
            out = ops.na_forward(query, key, value, rpb, *checked.window, factor)
        else:
            out, lse = ops.na_forward_lse(query, key, value, rpb, *checked.window, factor)
        if direct:
            checked.remember(tensors, needs_grad)
        if has_extra:
            assert additional_keys is not None and additional_values is not None
            dense = _dense_attention(query, additional_keys, additional_values, factor)
            out, lse = merge_attentions([out, dense[0]], [lse, dense[1]])
        return (out, lse) if return_lse else out

    axes = ("length", "height, width", "depth, height, width")[rank - 1]
    neighborhood_attention.__name__ = neighborhood_attention.__qualname__ = f"na{rank}d"
    neighborhood_attention.__doc__ = _DOCSTRING.format(rank=rank, axes=axes)
    return neighborhood_attention


_DOCSTRING = """Neighborhood attention over {rank} spatial axes (arXiv 2204.07143, 2209.15001).

    softmax(scale * query key^T + rpb) value, over the window of each query. Along an axis of which every
    ``dilation``-th position belongs to a query's group, a window is the ``kernel_size`` positions nearest to
    the query, shifted so as not to leave the map.

    Args:
        query: ``[batch, {axes}, heads, head_dim]``, float16, bfloat16, float32 or float64.
        key: ``[batch, {axes}, heads_kv, head_dim]``; heads is a multiple of heads_kv.
        value: ``[batch, {axes}, heads_kv, head_dim_v]``.
        kernel_size: Window length, an integer or one per axis; ``kernel_size * dilation`` <= the axis.
        stride: Queries that share a window, at most kernel_size.
        dilation: Step between neighbors.
        is_causal: Whether a query sees only keys at or before it, a bool or one per axis.
        scale: Factor of the scores; ``head_dim ** -0.5`` if None.
        additional_keys: ``[batch, extra, heads_kv, head_dim]``, seen by every query.
        additional_values: ``[batch, extra, heads_kv, head_dim_v]``.
        rpb: Relative position bias ``[heads, 2 * kernel_size - 1, ...]``, added to the scaled scores; its
            index is (key - query) / dilation + kernel_size - 1 along each axis.
        return_lse: Whether the log-sum-exp of the scores is returned too.
        backend: ``compiled``, ``reference``, or ``auto``: compiled where it serves the call, else the
            reference with one warning. CPUs compute half precision in float32.

    Returns:
        The output ``[batch, {axes}, heads, head_dim_v]`` in the inputs' dtype; with return_lse also the
        natural log-sum-exp ``[batch, {axes}, heads]`` in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
        NotImplementedError: for backend='compiled' where no compiled kernel serves the call.

    Gradients are compiled too; those of gradients, of any order, are computed by the reference. Under
    ``torch.autocast`` tensors other than float64 are taken in its dtype.
    """

na1d = _front(1)
na2d = _front(2)
na3d = _front(3)


def _dense_attention(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of every query to ``[batch, extra, heads_kv, ...]``, with its log-sum-exp."""
    accum = torch.float64 if query.dtype == torch.float64 else torch.float32
    group = query.shape[-2] // keys.shape[-2]
    grouped = query.to(accum).flatten(1, -3).unflatten(-2, (keys.shape[-2], group))
    scores = torch.einsum("bnhgd,behd->bnhge", grouped, keys.to(accum)) * scale
    out = torch.einsum("bnhge,behd->bnhgd", torch.softmax(scores, dim=-1), values.to(accum))
    tokens = query.shape[:-1]
    lse = torch.logsumexp(scores, dim=-1).reshape(tokens)
    return out.reshape(*tokens, values.shape[-1]).to(query.dtype), lse


def merge_attentions(outputs: Sequence[Tensor], lse_tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The attention to the union of disjoint sets of keys, from the attentions to each.

    Args:
        outputs: At least two of ``[batch, *spatial, heads, head_dim_v]``.
        lse_tensors: Their log-sum-exps, ``[batch, *spatial, heads]``.

    Returns:
        The merged output and log-sum-exp, in the dtypes of the first ones.

    Raises:
        ValueError: for fewer than two outputs, or numbers or shapes that do not fit.
    """
    if len(outputs) < 2 or len(outputs) != len(lse_tensors):
        got = f"{len(outputs)} outputs and {len(lse_tensors)} lse_tensors"
        raise ValueError(f"outputs: required two or more, and as many lse_tensors, got {got}")
    for out, lse in zip(outputs, lse_tensors, strict=True):
        if out.shape != outputs[0].shape or lse.shape != outputs[0].shape[:-1]:
            got = f"{tuple(out.shape)} with {tuple(lse.shape)}"
            raise ValueError(f"lse_tensors: required the shape of outputs without head_dim, got {got}")
    sums = torch.stack(list(lse_tensors))
    merged = torch.logsumexp(sums, dim=0)
    weights = torch.exp(sums - merged).unsqueeze(-1)
    out = sum(w * o.to(w.dtype) for w, o in zip(weights, outputs, strict=True))
    assert isinstance(out, Tensor)
    return out.to(outputs[0].dtype), merged
