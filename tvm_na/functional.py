"""Neighborhood attention as functions: na1d, na2d, na3d, merge_attentions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, cast, overload

from torch import Tensor

from tvm_na.ops.attend import attend, merge_attentions
from tvm_na.ops.backend import Backend

__all__ = ["Backend", "merge_attentions", "na1d", "na2d", "na3d"]

Axes = int | Sequence[int]
Flags = bool | Sequence[bool]
F = TypeVar("F", bound=Callable[..., Any])


@overload
def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    *,
    rpb: Tensor | None = None,
    return_lse: Literal[False] = False,
    backend: Backend | str = Backend.AUTO,
) -> Tensor: ...
@overload
def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    *,
    rpb: Tensor | None = None,
    return_lse: Literal[True],
    backend: Backend | str = Backend.AUTO,
) -> tuple[Tensor, Tensor]: ...
@overload
def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    *,
    rpb: Tensor | None = None,
    return_lse: bool,
    backend: Backend | str = Backend.AUTO,
) -> Tensor | tuple[Tensor, Tensor]: ...
def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    *,
    rpb: Tensor | None = None,
    return_lse: bool = False,
    backend: Backend | str = Backend.AUTO,
) -> Tensor | tuple[Tensor, Tensor]:
    """Neighborhood attention over two spatial axes (arXiv 2204.07143, 2209.15001).

    softmax(scale * query key^T + rpb) value, over the window of each query. Along an axis of which every
    ``dilation``-th position belongs to a query's group, a window is the ``kernel_size`` positions nearest to
    the query, shifted so as not to leave the map.

    Args:
        query: ``[batch, height, width, heads, head_dim]``, float16, bfloat16, float32 or float64.
        key: ``[batch, height, width, heads_kv, head_dim]``; heads is a multiple of heads_kv.
        value: ``[batch, height, width, heads_kv, head_dim_v]``.
        kernel_size: Window length, an integer or one per axis; ``kernel_size * dilation`` <= the axis.
        stride: Queries that share a window, at most kernel_size.
        dilation: Step between neighbors.
        is_causal: Whether a query sees only keys at or before it, a bool or one per axis.
        scale: Factor of the scores; ``head_dim ** -0.5`` if None.
        additional_keys: ``[batch, extra, heads_kv, head_dim]``, seen by every query.
        additional_values: ``[batch, extra, heads_kv, head_dim_v]``.
        rpb: Relative position bias ``[heads, 2 * kernel_size - 1, ...]``, added to the scaled scores; its
            index is (key - query) / dilation + kernel_size - 1 along each axis.
        return_lse: Whether the log-sum-exp is returned too.
        backend: ``compiled``, ``reference``, or ``auto``: compiled where it serves the call, else the
            reference with one warning. Sums of half precision are float32.

    Returns:
        The output ``[batch, height, width, heads, head_dim_v]`` in the inputs' dtype; with return_lse also the
        natural log-sum-exp ``[batch, height, width, heads]`` in float32 (float64 for float64). Where all scores of a
        window are minus infinity, these are 0 and minus infinity, and nothing has a gradient through it.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
        NotImplementedError: for backend='compiled' where no compiled kernel serves the call.

    Gradients are compiled too; those of gradients, of any order, are computed by the reference. Under
    ``torch.autocast`` tensors other than float64 are taken in its dtype.
    """
    axes = (kernel_size, stride, dilation, is_causal)
    extra = (additional_keys, additional_values)
    return attend(2, (query, key, value, rpb), axes, scale, extra, return_lse, backend)


def _typed_as(_: F) -> Callable[[Callable[..., object]], F]:
    """A decorator: to type checkers a function has the overloads of another one."""
    return lambda function: cast(F, function)


@_typed_as(na2d)
def na1d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    *,
    rpb: Tensor | None = None,
    return_lse: bool = False,
    backend: Backend | str = Backend.AUTO,
) -> Tensor | tuple[Tensor, Tensor]:
    """Neighborhood attention over one spatial axis: :func:`na2d` of ``[batch, length, heads, head_dim]``.

    Arguments, results and errors are those of :func:`na2d`; the bias has one axis beside the heads.
    """
    axes = (kernel_size, stride, dilation, is_causal)
    extra = (additional_keys, additional_values)
    return attend(1, (query, key, value, rpb), axes, scale, extra, return_lse, backend)


@_typed_as(na2d)
def na3d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Axes,
    stride: Axes = 1,
    dilation: Axes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    *,
    rpb: Tensor | None = None,
    return_lse: bool = False,
    backend: Backend | str = Backend.AUTO,
) -> Tensor | tuple[Tensor, Tensor]:
    """Neighborhood attention over three spatial axes: :func:`na2d` of ``[batch, depth, height, width, ...]``.

    Arguments, results and errors are those of :func:`na2d`; the bias has three axes beside the heads.
    """
    axes = (kernel_size, stride, dilation, is_causal)
    extra = (additional_keys, additional_values)
    return attend(3, (query, key, value, rpb), axes, scale, extra, return_lse, backend)
