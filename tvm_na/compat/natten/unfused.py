"""Attention in two steps, as NATTEN had it from 0.14 to 0.17: heads first, keys of a window in the last dimension.

Tensors are ``[batch, heads, *spatial, head_dim]``, weights ``[batch, heads, *spatial, window + extra]``: the keys of a
window in row-major order, then additional ones. Scores are not scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tvm_na import unfused
from tvm_na.problems.checks import require_like, require_shape, require_tensor

_QK = {1: unfused.na1d_qk, 2: unfused.na2d_qk, 3: unfused.na3d_qk}
_AV = {1: unfused.na1d_av, 2: unfused.na2d_av, 3: unfused.na3d_av}

_LAYOUT = "[batch, heads, *spatial, head_dim]"
_NAMES = {
    "plain": ("kernel_size", "dilation"),
    "depth": ("kernel_size_d", "kernel_size", "dilation_d", "dilation"),
}


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def scores(
    rank: int,
    query: Tensor,
    key: Tensor,
    kernel_size: Any,
    dilation: Any = 1,
    additional_keys: Tensor | None = None,
    is_causal: Any = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """query key^T + rpb for the window of each query, and query additional_keys^T behind it."""
    for name, tensor in (("query", query), ("key", key)):
        require_tensor(name, tensor, rank + 3, _LAYOUT)
    if isinstance(rpb, Tensor):
        rpb = rpb.to(key.dtype)
    window = _QK[rank](
        *(query.movedim(1, -2), key.movedim(1, -2), kernel_size, 1, _or(dilation, 1), _or(is_causal, False)), rpb=rpb
    ).movedim(-2, 1)
    if additional_keys is None:
        return window.contiguous()  # as NATTEN's, since client code calls view() on it
    _check_extra("additional_keys", additional_keys, query, query.shape[-1])
    wide = _wide(query.dtype)
    extra = torch.einsum("bh...d,bhed->bh...e", query.to(wide), additional_keys.to(wide))
    return torch.cat([window, extra.to(window.dtype)], dim=-1)


def weighted_sums(
    rank: int,
    attn: Tensor,
    value: Tensor,
    kernel_size: Any,
    dilation: Any = 1,
    additional_values: Tensor | None = None,
    is_causal: Any = False,
) -> Tensor:
    """Sums of each window's values, and of additional_values, weighted by ``attn``."""
    for name, tensor, layout in (("attn", attn, "[batch, heads, *spatial, window]"), ("value", value, _LAYOUT)):
        require_tensor(name, tensor, rank + 3, layout)
    attn = attn.to(value.dtype)
    extra = 0
    if additional_values is not None:
        _check_extra("additional_values", additional_values, attn, value.shape[-1])
        extra = additional_values.shape[2]
    window, others = attn.split([max(attn.shape[-1] - extra, 0), min(extra, attn.shape[-1])], dim=-1)
    out = _AV[rank](
        *(window.movedim(1, -2), value.movedim(1, -2), kernel_size, 1, _or(dilation, 1), _or(is_causal, False))
    ).movedim(-2, 1)
    if additional_values is not None:
        wide = _wide(value.dtype)
        more = torch.einsum("bh...e,bhed->bh...d", others.to(wide), additional_values.to(wide))
        out = (out.to(wide) + more).to(value.dtype)
    return out.contiguous()


def _check_extra(argument: str, extra: Any, like: Tensor, head_dim: int) -> None:
    require_tensor(argument, extra, 4, "[batch, heads, extra, head_dim]")
    require_like(argument, extra, like)
    require_shape(argument, extra, (*like.shape[:2], extra.shape[2], head_dim), "(batch, heads, extra, head_dim)")


def _window(
    function: str, kind: str, given: tuple[Any, ...], named: dict[str, Any], kernel_size: Callable[[], Any]
) -> dict[str, Any]:
    """Kernel size and dilation of a call ``(..., kernel_size, dilation)``, or of 0.14.1's ``(..., dilation)``.

    In 3D with one number for the depth and one for the other axes: kernel_size_d, kernel_size, dilation_d, dilation.
    """
    names = _NAMES[kind]
    if kind == "plain" and len(given) + len(named) == 1 and named.keys() <= {"dilation"}:
        return {"kernel_size": kernel_size(), "dilation": given[0] if given else named.get("dilation")}
    found = dict(zip(names, given, strict=False))
    if len(given) > len(names) or found.keys() & named.keys() or {*found, *named} != {*names}:
        got = ", ".join([f"{len(given)} by position", *named])
        raise TypeError(f"{function}: required {', '.join(names)}, got {got}")
    found |= named
    if kind == "plain":
        return found
    by_depth = {name: (found[f"{name}_d"], found[name], found[name]) for name in ("kernel_size", "dilation")}
    by_depth["dilation"] = tuple(_or(d, 1) for d in by_depth["dilation"])
    return by_depth


def _kernel_of_rpb(rpb: Any) -> Any:
    if not isinstance(rpb, Tensor):
        raise TypeError(f"rpb: required a tensor where no kernel_size is given, got {type(rpb).__name__}")
    return tuple((n + 1) // 2 for n in rpb.shape[1:])


def _kernel_of_attn(attn: Any, rank: int) -> int:
    require_tensor("attn", attn, rank + 3, "[batch, heads, *spatial, window]")
    return round(attn.shape[-1] ** (1 / rank))


def _qkrpb(rank: int, kind: str) -> Callable[..., Tensor]:
    name = f"natten{rank}dqkrpb"

    def qkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, *window: Any, **named: Any) -> Tensor:
        return scores(rank, query, key, **_window(name, kind, window, named, lambda: _kernel_of_rpb(rpb)), rpb=rpb)

    return _named(qkrpb, name, f"Scores with a relative position bias, ``(query, key, rpb, {_arguments(kind)})``.")


def _dqk(rank: int, kind: str) -> Callable[..., Tensor]:
    name = f"natten{rank}dqk"

    def dqk(query: Tensor, key: Tensor, *window: Any, additional_keys: Tensor | None = None, **named: Any) -> Tensor:
        found = _window(name, kind, window, named, lambda: _missing(name))
        return scores(rank, query, key, **found, additional_keys=additional_keys)

    return _named(dqk, name, f"Scores, ``(query, key, {_arguments(kind)})``.")


def _dav(rank: int, kind: str) -> Callable[..., Tensor]:
    name = f"natten{rank}dav"

    def dav(attn: Tensor, value: Tensor, *window: Any, additional_values: Tensor | None = None, **named: Any) -> Tensor:
        found = _window(name, kind, window, named, lambda: _kernel_of_attn(attn, rank))
        return weighted_sums(rank, attn, value, **found, additional_values=additional_values)

    return _named(dav, name, f"Weighted sums of values, ``(attn, value, {_arguments(kind)})``.")


def _arguments(kind: str) -> str:
    return ", ".join(_NAMES[kind])


def _missing(function: str) -> Any:
    raise TypeError(f"{function}: required kernel_size and dilation, got one of them")


def _qk_with_bias(rank: int, kind: str) -> Callable[..., Tensor]:
    name, many = f"na{rank}d_qk_with_bias", len(_NAMES[kind])

    def qk_with_bias(
        query: Tensor, key: Tensor, bias: Tensor | None, *window: Any, additional_keys: Any = None, **named: Any
    ) -> Tensor:
        if len(window) == many + 1:
            window, additional_keys = window[:many], window[many]
        found = _window(name, kind, window, named, lambda: _missing(name))
        return scores(rank, query, key, **found, rpb=bias, additional_keys=additional_keys)

    text = f"Scores with a bias, ``(query, key, bias, {_arguments(kind)}, additional_keys=None)``."
    return _named(qk_with_bias, name, text)


def _by_depth(rank: int, given: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether a call of na3d_qk or na3d_av is 0.15's, with numbers for the depth; 0.17 has no third number."""
    third = given[2] if len(given) > 2 else None
    return rank == 3 and (bool({"kernel_size_d", "dilation_d"} & named.keys()) or isinstance(third, int))


def _without_extra(given: tuple[Any, ...], named: dict[str, Any], extra: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The four numbers of 0.15 and, apart, what may follow them; it leaves ``named``."""
    if len(given) == 5 and extra not in named:
        return given[:4], {extra: given[4]}
    return given, {extra: named.pop(extra)} if extra in named else {}


def _qk(rank: int) -> Callable[..., Tensor]:
    name = f"na{rank}d_qk"

    def qk(query: Tensor, key: Tensor, *given: Any, **named: Any) -> Tensor:
        if not _by_depth(rank, given, named):
            return scores(rank, query, key, *given, **named)
        given, extra = _without_extra(given, named, "additional_keys")
        return scores(rank, query, key, **_window(name, "depth", given, named, lambda: _missing(name)), **extra)

    arguments = "query, key, kernel_size, dilation=1, additional_keys=None, is_causal=False, rpb=None"
    return _named(qk, name, f"Scores, ``({arguments})``.{_OF_0_15 if rank == 3 else ''}")


def _av(rank: int) -> Callable[..., Tensor]:
    name = f"na{rank}d_av"

    def av(attn: Tensor, value: Tensor, *given: Any, **named: Any) -> Tensor:
        if not _by_depth(rank, given, named):
            return weighted_sums(rank, attn, value, *given, **named)
        given, extra = _without_extra(given, named, "additional_values")
        found = _window(name, "depth", given, named, lambda: _missing(name))
        return weighted_sums(rank, attn, value, **found, **extra)

    arguments = "attn, value, kernel_size, dilation=1, additional_values=None, is_causal=False"
    return _named(av, name, f"Weighted sums of values, ``({arguments})``.{_OF_0_15 if rank == 3 else ''}")


_OF_0_15 = " 0.15's four numbers kernel_size_d, kernel_size, dilation_d, dilation are understood as well."
_ALL = """

    Tensors ``[batch, heads, *spatial, head_dim]``, weights ``[batch, heads, *spatial, window]``, ``rpb``
    ``[heads, 2 * kernel_size - 1, ...]``; float16, bfloat16, float32, float64. See :mod:`tvm_na.unfused`.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """


def _named(function: Callable[..., Tensor], name: str, text: str) -> Callable[..., Tensor]:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = text + _ALL
    return function


natten1dqkrpb, natten2dqkrpb, natten3dqkrpb = _qkrpb(1, "plain"), _qkrpb(2, "plain"), _qkrpb(3, "depth")
natten1dqk, natten2dqk, natten3dqk = _dqk(1, "plain"), _dqk(2, "plain"), _dqk(3, "depth")
natten1dav, natten2dav, natten3dav = _dav(1, "plain"), _dav(2, "plain"), _dav(3, "depth")
na1d_qk_with_bias, na2d_qk_with_bias = _qk_with_bias(1, "plain"), _qk_with_bias(2, "plain")
na3d_qk_with_bias = _qk_with_bias(3, "depth")
na1d_qk, na2d_qk, na3d_qk = _qk(1), _qk(2), _qk(3)
na1d_av, na2d_av, na3d_av = _av(1), _av(2), _av(3)
