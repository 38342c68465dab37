"""Checks of arguments: each names the argument, what was required and what came."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Kernels multiply the scale by log2(e), which must be finite too.
_SCALE_BITS = {"float32": 127, "float64": 1023}


def check_int(argument: str, value: Any, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument}: required an integer, got {type(value).__name__} {value!r}")
    if value < minimum:
        raise ValueError(f"{argument}: required an integer >= {minimum}, got {value}")
    return value


def check_bool(argument: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{argument}: required bool, got {type(value).__name__} {value!r}")
    return value


def per_axis_ints(argument: str, value: Any, rank: int, minimum: int = 1) -> tuple[int, ...]:
    """An integer or a sequence of ``rank`` integers as a tuple, one per spatial axis.

    Raises TypeError for anything that is not an integer (a bool is none) and ValueError for a wrong
    length or an element below ``minimum``.
    """
    if value.__class__ is int and value >= minimum:
        return (value,) * rank
    if isinstance(value, (tuple, list)):
        if len(value) != rank:
            raise ValueError(f"{argument}: required {rank} values, one per spatial axis, got {len(value)}: {value!r}")
        return tuple(check_int(argument, v, minimum) for v in value)
    return (check_int(argument, value, minimum),) * rank


def per_axis_bools(argument: str, value: Any, rank: int) -> tuple[bool, ...]:
    """A bool or a sequence of ``rank`` bools as a tuple, one per spatial axis."""
    if value is True or value is False:
        return (value,) * rank
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    if len(values) != rank:
        raise ValueError(f"{argument}: required {rank} values, one per spatial axis, got {len(values)}: {value!r}")
    return tuple(check_bool(argument, v) for v in values)


def check_scale(scale: Any, head_dim: int, accum_dtype: str = "float64") -> float:
    """The factor of the scores: ``head_dim ** -0.5`` for None, else a finite float (zero is legal).

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite, or not small enough for ``accum_dtype``, float32 or float64.
    """
    if scale is None:
        return head_dim**-0.5
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"scale: required a number or None, got {type(scale).__name__} {scale!r}")
    try:
        number = float(scale)
    except OverflowError:
        number = math.inf
    bits = _SCALE_BITS[accum_dtype]
    if not abs(number) < 2.0**bits:
        raise ValueError(f"scale: required a finite number below 2^{bits} in magnitude, got {scale}")
    return number


# Classes of tensors that say themselves what operators do with them, and need no rules of ours for that: tracers see
# shapes alone, and a result of a collective operation is waited for.
_TRANSPARENT = (
    "torch._subclasses.fake_tensor.FakeTensor",
    "torch._subclasses.functional_tensor.FunctionalTensor",
    "torch.distributed._functional_collectives.AsyncCollectiveTensor",
)


def _has_own_rules(kind: type[Tensor]) -> bool:
    """Whether a class of tensors may be more than its data, or other data: a part, a mask, a quantization."""
    import torch

    if kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__:
        return False
    return f"{kind.__module__}.{kind.__qualname__}" not in _TRANSPARENT


def require_tensor(argument: str, value: Any, ndim: int, layout: str) -> None:
    """TypeError unless ``value`` is a dense tensor that is its data, ValueError unless it has ``ndim`` dimensions."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{argument}: required a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{argument}: required a dense (strided) tensor, got layout {value.layout}")
    if value.is_nested:  # strided ones have no shape to speak of
        raise TypeError(f"{argument}: required a dense (strided) tensor, got a nested tensor")
    kind = type(value)
    if kind is not torch.Tensor and kind is not torch.nn.Parameter and _has_own_rules(kind):
        wanted = "a plain tensor (of a DTensor its to_local())"
        raise TypeError(f"{argument}: required {wanted}, got a {kind.__name__}, for which there are no rules")
    if value.ndim != ndim:
        raise ValueError(f"{argument}: required {ndim} dimensions {layout}, got shape {tuple(value.shape)}")


def require_elements(argument: str, value: Tensor) -> None:
    """ValueError if each sample of ``value`` is empty."""
    if 0 in value.shape[1:]:
        raise ValueError(f"{argument}: required every size but the batch >= 1, got shape {tuple(value.shape)}")


def require_like(argument: str, value: Tensor, query: Tensor) -> None:
    """TypeError unless ``value`` has query's dtype, ValueError unless it is on its device."""
    if value.dtype != query.dtype:
        raise TypeError(f"{argument}: required query's dtype {query.dtype}, got {value.dtype}")
    if value.device != query.device:
        raise ValueError(f"{argument}: required query's device {query.device}, got {value.device}")


def require_shape(argument: str, value: Tensor, shape: tuple[Any, ...], meaning: str) -> None:
    """ValueError unless ``value`` has this shape."""
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{argument}: required shape {tuple(shape)} {meaning}, got {tuple(value.shape)}")


def check_additional(additional_keys: Any, additional_values: Any, query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether additional keys and values came, after checking them.

    Shapes are ``[batch, extra, heads_kv, head_dim]`` and ``[batch, extra, heads_kv, head_dim_v]``.
    """
    if (additional_keys is None) != (additional_values is None):
        missing = "additional_keys" if additional_keys is None else "additional_values"
        raise ValueError(f"{missing}: required together with its counterpart, got None")
    if additional_keys is None:
        return False
    for name, tensor, like in (
        ("additional_keys", additional_keys, key),
        ("additional_values", additional_values, value),
    ):
        require_tensor(name, tensor, 4, "[batch, extra, heads_kv, head_dim]")
        require_like(name, tensor, query)
        wanted = (like.shape[0], additional_keys.shape[1], *like.shape[-2:])
        require_shape(name, tensor, wanted, "[batch, extra, heads_kv, head_dim]")
    return True
