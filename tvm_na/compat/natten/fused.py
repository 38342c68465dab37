"""``na1d``, ``na2d`` and ``na3d`` as NATTEN has them since 0.20, and as 0.17 had them. Heads last in all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tvm_na import functional
from tvm_na.compat.natten.ignored import NA_BACKENDS, NA_HINTS, backend_of, ignore_all
from tvm_na.compat.natten.signatures import Meaning, Reading, read, value_or
from tvm_na.problems.checks import check_scale, per_axis_bools, per_axis_ints

_FUNCTIONS = {1: functional.na1d, 2: functional.na2d, 3: functional.na3d}

#: Arguments after ``kernel_size``: those since 0.20, what 0.20.0 had besides, and what 0.17 had besides.
_NEWEST = (
    "stride",
    "dilation",
    "is_causal",
    "scale",
    "additional_keys",
    "additional_values",
    "attention_kwargs",
    "backend",
    *NA_HINTS,
    "return_lse",
)
_OF_0_20 = ("try_fuse_additional_kv",)
_OLDER = (*_OF_0_20, "rpb", "xformers_kwargs")
_OF_0_17 = ("dilation", "is_causal", "rpb", "scale", "additional_keys", "additional_values", "xformers_kwargs")

_IGNORED = {**NA_HINTS, "attention_kwargs": None, "xformers_kwargs": None, "try_fuse_additional_kv": False}
_DEFAULTS: Meaning = dict.fromkeys((*_NEWEST, *_OLDER)) | {
    "stride": 1,
    "dilation": 1,
    "is_causal": False,
    "return_lse": False,
    **_IGNORED,
}

_READINGS = (
    Reading("0.20", _DEFAULTS, _NEWEST, _OF_0_20),
    Reading("0.17", _DEFAULTS, _OF_0_17),
    Reading("0.20", _DEFAULTS, _NEWEST, _OLDER, last_resort=True),  # with rpb no release had it
)


def _check(rank: int) -> Callable[[Meaning], Meaning]:
    """One value per axis; a tensor where there may be one."""

    def check(meaning: Meaning) -> Meaning:
        stride = per_axis_ints("stride", value_or(meaning["stride"], 1), rank)
        dilation = per_axis_ints("dilation", value_or(meaning["dilation"], 1), rank)
        is_causal = per_axis_bools("is_causal", value_or(meaning["is_causal"], False), rank)
        check_scale(meaning["scale"], 1)
        for name in ("rpb", "additional_keys", "additional_values"):
            if not isinstance(meaning[name], (Tensor, type(None))):
                raise TypeError(f"{name}: required a torch.Tensor or None, got {type(meaning[name]).__name__}")
        return {**meaning, "stride": stride, "dilation": dilation, "is_causal": is_causal}

    return check


def _meaning(rank: int, args: tuple[Any, ...], named: dict[str, Any]) -> Meaning:
    """What follows ``kernel_size`` in a call."""
    if not args and named.keys() <= _DEFAULTS.keys():  # all by name: no release reads it differently
        return {**_DEFAULTS, **named}
    return read(f"na{rank}d", _READINGS, args, named, _check(rank))


def _attend(rank: int, query: Tensor, key: Tensor, value: Tensor, kernel_size: Any, meaning: Meaning) -> Any:
    backend = backend_of(meaning["backend"], NA_BACKENDS)
    ignore_all(meaning, _IGNORED)
    rpb = meaning["rpb"]
    if isinstance(rpb, Tensor) and isinstance(query, Tensor):
        rpb = rpb.to(query.dtype)
    return _FUNCTIONS[rank](
        query,
        key,
        value,
        kernel_size,
        value_or(meaning["stride"], 1),
        value_or(meaning["dilation"], 1),
        value_or(meaning["is_causal"], False),
        meaning["scale"],
        meaning["additional_keys"],
        meaning["additional_values"],
        rpb=rpb,
        return_lse=meaning["return_lse"],
        backend=backend,
    )


def _front(rank: int) -> Callable[..., Any]:
    def neighborhood_attention(
        query: Tensor, key: Tensor, value: Tensor, kernel_size: Any, *args: Any, **named: Any
    ) -> Any:
        return _attend(rank, query, key, value, kernel_size, _meaning(rank, args, named))

    neighborhood_attention.__name__ = neighborhood_attention.__qualname__ = f"na{rank}d"
    neighborhood_attention.__doc__ = _DOCSTRING.format(rank=rank)
    plain, by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, plain) for name in ("query", "key", "value", "kernel_size")]
    parameters += [inspect.Parameter(name, plain, default=_DEFAULTS[name]) for name in _NEWEST]
    parameters += [inspect.Parameter(name, by_name, default=_DEFAULTS[name]) for name in _OLDER]
    neighborhood_attention.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return neighborhood_attention


_DOCSTRING = """``tvm_na.na{rank}d`` with every argument that NATTEN's ``na{rank}d`` ever had.

    Tensors are ``[batch, *spatial, heads, head_dim]``, as in every release. Positional arguments after
    ``kernel_size`` may be 0.17's (dilation, is_causal, rpb, scale, ...) or those of 0.20 and later (stride, dilation,
    is_causal, scale, ...); a call that reads differently in the two is an error, unless
    :func:`~tvm_na.compat.natten.assume_release` says which release counts.

    Args:
        kernel_size, stride, dilation, is_causal, scale, additional_keys, additional_values, rpb, return_lse: Those of
            :func:`tvm_na.na{rank}d`.
        backend: A name of ours (auto, compiled, reference), or one of NATTEN's, which means auto.

    All others choose among NATTEN's kernels. They are ignored, with a line in the log at level DEBUG.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """

na1d = _front(1)
na2d = _front(2)
na3d = _front(3)


def neighborhood_attention_generic(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: Any, *args: Any, **named: Any
) -> Any:
    """:func:`na1d`, :func:`na2d` or :func:`na3d`, by the number of spatial axes of ``query``."""
    rank = query.ndim - 3 if isinstance(query, Tensor) else 0
    if rank not in _FUNCTIONS:
        got = tuple(query.shape) if isinstance(query, Tensor) else type(query).__name__
        raise ValueError(f"query: required [batch, *spatial, heads, head_dim] with 1 to 3 spatial axes, got {got}")
    return _attend(rank, query, key, value, kernel_size, _meaning(rank, args, named))
