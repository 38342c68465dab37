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
from tvm_na.compat.natten.signatures import value_or
from tvm_na.problems.checks import require_like, require_shape, require_tensor

_QK = {1: unfused.na1d_qk, 2: unfused.na2d_qk, 3: unfused.na3d_qk}
_AV = {1: unfused.na1d_av, 2: unfused.na2d_av, 3: unfused.na3d_av}

_LAYOUT = "[batch, heads, *spatial, head_dim]"
_WEIGHTS_LAYOUT = "[batch, heads, *spatial, window]"
#: The arguments that say what a window is; in 3D with numbers of their own for the depth.
_PLAIN = ("kernel_size", "dilation")
_BY_DEPTH = ("kernel_size_d", "kernel_size", "dilation_d", "dilation")
_WINDOWS = {1: _PLAIN, 2: _PLAIN, 3: _BY_DEPTH}


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _heads_last(
    operator: Callable[..., Tensor], first: Tensor, second: Tensor, window: tuple[Any, Any, Any], **bias: Any
) -> Tensor:
    """One of ``tvm_na``'s operators, which have heads last, on tensors that have them first."""
    kernel_size, dilation, is_causal = window
    dilation, is_causal = value_or(dilation, 1), value_or(is_causal, False)
    out = operator(first.movedim(1, -2), second.movedim(1, -2), kernel_size, 1, dilation, is_causal, **bias)
    return out.movedim(-2, 1)


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
    window = _heads_last(_QK[rank], query, key, (kernel_size, dilation, is_causal), rpb=rpb)
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
    for name, tensor, layout in (("attn", attn, _WEIGHTS_LAYOUT), ("value", value, _LAYOUT)):
        require_tensor(name, tensor, rank + 3, layout)
    attn = attn.to(value.dtype)
    extra = 0
    if additional_values is not None:
        _check_extra("additional_values", additional_values, attn, value.shape[-1])
        extra = additional_values.shape[2]
    weights, others = attn.split([max(attn.shape[-1] - extra, 0), min(extra, attn.shape[-1])], dim=-1)
    out = _heads_last(_AV[rank], weights, value, (kernel_size, dilation, is_causal))
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
    function: str,
    rank: int,
    given: tuple[Any, ...],
    named: dict[str, Any],
    kernel_size: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    """Kernel size and dilation of a call ``(..., kernel_size, dilation)``, or of 0.14.1's ``(..., dilation)``.

    The latter needs ``kernel_size``, which finds it in a tensor. In 3D there is one number for the depth and one for
    the other axes: kernel_size_d, kernel_size, dilation_d, dilation.
    """
    names, has_depth = _WINDOWS[rank], rank == 3
    if not has_depth and len(given) + len(named) == 1 and named.keys() <= {"dilation"}:
        if kernel_size is None:
            raise TypeError(f"{function}: required kernel_size and dilation, got one of them")
        return {"kernel_size": kernel_size(), "dilation": given[0] if given else named.get("dilation")}
    found = dict(zip(names, given, strict=False))
    if len(given) > len(names) or found.keys() & named.keys() or {*found, *named} != {*names}:
        got = ", ".join([f"{len(given)} by position", *named])
        raise TypeError(f"{function}: required {', '.join(names)}, got {got}")
    found |= named
    if not has_depth:
        return found
    by_depth = {name: (found[f"{name}_d"], found[name], found[name]) for name in _PLAIN}
    by_depth["dilation"] = tuple(value_or(d, 1) for d in by_depth["dilation"])
    return by_depth


def _kernel_of_rpb(rpb: Any) -> Any:
    if not isinstance(rpb, Tensor):
        raise TypeError(f"rpb: required a tensor where no kernel_size is given, got {type(rpb).__name__}")
    return tuple((n + 1) // 2 for n in rpb.shape[1:])


def _kernel_of_attn(attn: Any, rank: int) -> int:
    require_tensor("attn", attn, rank + 3, _WEIGHTS_LAYOUT)
    return round(attn.shape[-1] ** (1 / rank))


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


# --- 0.14 to 0.17


def _qkrpb(rank: int) -> Callable[..., Tensor]:
    name = f"natten{rank}dqkrpb"

    def qkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, *window: Any, **named: Any) -> Tensor:
        return scores(rank, query, key, **_window(name, rank, window, named, lambda: _kernel_of_rpb(rpb)), rpb=rpb)

    text = f"Scores with a relative position bias, ``(query, key, rpb, {', '.join(_WINDOWS[rank])})``."
    return _named(qkrpb, name, text)


def _dqk(rank: int) -> Callable[..., Tensor]:
    name = f"natten{rank}dqk"

    def dqk(query: Tensor, key: Tensor, *window: Any, additional_keys: Tensor | None = None, **named: Any) -> Tensor:
        return scores(rank, query, key, **_window(name, rank, window, named), additional_keys=additional_keys)

    return _named(dqk, name, f"Scores, ``(query, key, {', '.join(_WINDOWS[rank])})``.")


def _dav(rank: int) -> Callable[..., Tensor]:
    name = f"natten{rank}dav"

    def dav(attn: Tensor, value: Tensor, *window: Any, additional_values: Tensor | None = None, **named: Any) -> Tensor:
        found = _window(name, rank, window, named, lambda: _kernel_of_attn(attn, rank))
        return weighted_sums(rank, attn, value, **found, additional_values=additional_values)

    return _named(dav, name, f"Weighted sums of values, ``(attn, value, {', '.join(_WINDOWS[rank])})``.")


def _qk_with_bias(rank: int) -> Callable[..., Tensor]:
    name, many = f"na{rank}d_qk_with_bias", len(_WINDOWS[rank])

    def qk_with_bias(
        query: Tensor, key: Tensor, bias: Tensor | None, *window: Any, additional_keys: Any = None, **named: Any
    ) -> Tensor:
        if len(window) == many + 1:
            window, additional_keys = window[:many], window[many]
        found = _window(name, rank, window, named)
        return scores(rank, query, key, **found, rpb=bias, additional_keys=additional_keys)

    text = f"Scores with a bias, ``(query, key, bias, {', '.join(_WINDOWS[rank])}, additional_keys=None)``."
    return _named(qk_with_bias, name, text)


# --- 0.15 to 0.17


def _either(
    function: Callable[..., Tensor], name: str, rank: int, extra: str, given: list[Any], named: dict[str, Any]
) -> Tensor:
    """A call of 0.17, or in 3D of 0.15 with four numbers for the window and perhaps ``extra`` behind them."""
    third = given[4] if len(given) > 4 else None  # a number in 0.15 alone
    if rank < 3 or not ({"kernel_size_d", "dilation_d"} & named.keys() or isinstance(third, int)):
        return function(rank, *given, **named)
    if len(given) == 7 and extra not in named:
        named = {**named, extra: given.pop()}
    others = {extra: named.pop(extra)} if extra in named else {}
    return function(rank, *given[:2], **_window(name, rank, tuple(given[2:]), named), **others)


def _qk(rank: int) -> Callable[..., Tensor]:
    name = f"na{rank}d_qk"

    def qk(query: Tensor, key: Tensor, *given: Any, **named: Any) -> Tensor:
        return _either(scores, name, rank, "additional_keys", [query, key, *given], named)

    arguments = "query, key, kernel_size, dilation=1, additional_keys=None, is_causal=False, rpb=None"
    return _named(qk, name, f"Scores, ``({arguments})``.{_OF_0_15 if rank == 3 else ''}")


def _av(rank: int) -> Callable[..., Tensor]:
    name = f"na{rank}d_av"

    def av(attn: Tensor, value: Tensor, *given: Any, **named: Any) -> Tensor:
        return _either(weighted_sums, name, rank, "additional_values", [attn, value, *given], named)

    arguments = "attn, value, kernel_size, dilation=1, additional_values=None, is_causal=False"
    return _named(av, name, f"Weighted sums of values, ``({arguments})``.{_OF_0_15 if rank == 3 else ''}")


_OF_0_15 = " 0.15's four numbers kernel_size_d, kernel_size, dilation_d, dilation are understood as well."

natten1dqkrpb, natten2dqkrpb, natten3dqkrpb = _qkrpb(1), _qkrpb(2), _qkrpb(3)
natten1dqk, natten2dqk, natten3dqk = _dqk(1), _dqk(2), _dqk(3)
natten1dav, natten2dav, natten3dav = _dav(1), _dav(2), _dav(3)
na1d_qk_with_bias, na2d_qk_with_bias, na3d_qk_with_bias = _qk_with_bias(1), _qk_with_bias(2), _qk_with_bias(3)
na1d_qk, na2d_qk, na3d_qk = _qk(1), _qk(2), _qk(3)
na1d_av, na2d_av, na3d_av = _av(1), _av(2), _av(3)

__all__ = [
    *(f"natten{rank}d{part}" for rank in (1, 2, 3) for part in ("qkrpb", "qk", "av")),
    *(f"na{rank}d_{part}" for rank in (1, 2, 3) for part in ("qk", "av", "qk_with_bias")),
]
