"""``attention``: every query sees every key, or of its own sequence; computed by PyTorch's operations."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tvm_na.compat.natten.ignored import DENSE_BACKENDS, DENSE_HINTS, backend_of, ignore_all
from tvm_na.compat.natten.signatures import Meaning, Reading, read, value_or
from tvm_na.compat.natten.utils.varlen import bounds, check_packed, generate_varlen_parameters
from tvm_na.functional import Backend
from tvm_na.ops import autocast
from tvm_na.problems.attention import DTYPES
from tvm_na.problems.checks import check_scale, require_like, require_shape, require_tensor
from tvm_na.reference.attention import softmax_and_lse

_VARLEN = ("seqlens_Q", "seqlens_KV", "cumulative_seqlen_Q", "cumulative_seqlen_KV", "max_seqlen_Q", "max_seqlen_KV")

#: Arguments after ``value``, and what they are if nobody gives them.
_OF_0_20 = ("scale", "backend", *DENSE_HINTS, "return_lse")
_NEWEST = ("is_causal", "scale", *_VARLEN, "backend", *DENSE_HINTS, "return_lse")
_DEFAULTS: Meaning = dict.fromkeys(_NEWEST) | {"is_causal": False, "return_lse": False, **DENSE_HINTS}
_READINGS = (Reading("0.21.5", _DEFAULTS, _NEWEST), Reading("0.20", _DEFAULTS, _OF_0_20))

_KINDS: dict[str, tuple[type, ...]] = {
    "is_causal": (bool,),
    "return_lse": (bool,),
    "backend": (str, type(None)),
    **{name: (Tensor, type(None)) for name in _VARLEN[:4]},
    **{name: (int, type(None)) for name in _VARLEN[4:]},
}


def _check_kinds(meaning: Meaning) -> Meaning:
    """The same, with types that are those of the arguments; is_causal may be None."""
    meaning = {**meaning, "is_causal": value_or(meaning["is_causal"], False)}
    check_scale(meaning["scale"], 1)
    for name, kinds in _KINDS.items():
        value = meaning[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__.replace("NoneType", "None") for kind in kinds)
            raise TypeError(f"{name}: required {wanted}, got {type(value).__name__} {value!r}")
    return meaning


def _meaning(args: tuple[Any, ...], named: dict[str, Any]) -> Meaning:
    """What follows ``value`` in a call."""
    if not args and named.keys() <= _DEFAULTS.keys():  # all by name: no release reads it differently
        return _check_kinds({**_DEFAULTS, **named})
    return read("attention", _READINGS, args, named, _check_kinds)


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        require_tensor(name, tensor, 4, "[batch, tokens, heads, head_dim]")
    dtype = str(query.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise TypeError(f"query: required dtype {', '.join(DTYPES)}, got {dtype}")
    require_like("key", key, query)
    require_like("value", value, query)
    wanted = (query.shape[0], key.shape[1], key.shape[2], query.shape[3])
    require_shape("key", key, wanted, "(query's batch, tokens, heads_kv, query's head_dim)")
    require_shape("value", value, (*key.shape[:3], value.shape[3]), "(key's batch, tokens, heads_kv)")
    if not key.shape[2] or query.shape[2] % key.shape[2]:
        raise ValueError(f"query: required a multiple of key's {key.shape[2]} heads, got {query.shape[2]}")


def _dense(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Output and log-sum-exp of one attention; a query without a key has zeros and minus infinity."""
    heads, heads_kv = query.shape[2], key.shape[2]
    if not with_lse and key.shape[1]:
        q, k, v = (t.transpose(1, 2) for t in (query, key, value))
        grouped = heads != heads_kv
        out = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale, enable_gqa=grouped)
        return out.transpose(1, 2), None
    accum = torch.float64 if query.dtype == torch.float64 else torch.float32
    q = query.to(accum).unflatten(2, (heads_kv, heads // heads_kv))
    scores = torch.einsum("bnhgd,bmhd->bnhgm", q, key.to(accum)) * scale
    if is_causal:
        seen = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~seen[:, None, None], -math.inf)
    weights, lse = softmax_and_lse(scores)
    out = torch.einsum("bnhgm,bmhd->bnhgd", weights, value.to(accum)).flatten(2, 3)
    return out.to(query.dtype), lse.flatten(2)


def _packed(query: Tensor, key: Tensor, value: Tensor, meaning: Meaning, scale: float) -> tuple[Tensor, Tensor | None]:
    """Each sequence by itself."""
    check_packed(query, key, value)
    for name in ("cumulative_seqlen_Q", "cumulative_seqlen_KV"):
        if meaning[name] is None:
            raise ValueError(f"{name}: required together with its counterpart, got None")
    at_q = bounds("cumulative_seqlen_Q", meaning["cumulative_seqlen_Q"], query.shape[1], meaning["max_seqlen_Q"])
    at_kv = bounds("cumulative_seqlen_KV", meaning["cumulative_seqlen_KV"], key.shape[1], meaning["max_seqlen_KV"])
    if len(at_q) != len(at_kv):
        raise ValueError(f"cumulative_seqlen_KV: required {len(at_q)} elements, as for queries, got {len(at_kv)}")
    lengths_q, lengths_kv = ([b - a for a, b in itertools.pairwise(at)] for at in (at_q, at_kv))
    parts = [
        _dense(q, k, v, meaning["is_causal"], scale, meaning["return_lse"])
        for q, k, v in zip(
            query.split(lengths_q, dim=1), key.split(lengths_kv, dim=1), value.split(lengths_kv, dim=1), strict=True
        )
    ]
    lse = torch.cat([part[1] for part in parts if part[1] is not None], dim=1) if meaning["return_lse"] else None
    return torch.cat([part[0] for part in parts], dim=1), lse


def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **named: Any) -> Any:
    """Attention of every query to every key, with NATTEN's arguments.

    ``attention(query, key, value, is_causal=False, scale=None, seqlens_Q=None, seqlens_KV=None,
    cumulative_seqlen_Q=None, cumulative_seqlen_KV=None, max_seqlen_Q=None, max_seqlen_KV=None, backend=None, ...,
    return_lse=False)``; positional arguments may also be those of 0.20, from ``scale`` on.

    Args:
        query: ``[batch, tokens, heads, head_dim]``, float16, bfloat16, float32 or float64.
        key: ``[batch, tokens_kv, heads_kv, head_dim]``; heads is a multiple of heads_kv.
        value: ``[batch, tokens_kv, heads_kv, head_dim_v]``.
        is_causal: Whether query i sees keys 0 to i only.
        scale: Factor of the scores; ``head_dim ** -0.5`` if None.
        seqlens_Q, seqlens_KV: Lengths of sequences that are packed into a batch of one, int32 or int64.
        cumulative_seqlen_Q, cumulative_seqlen_KV, max_seqlen_Q, max_seqlen_KV: The same, as
            :func:`~tvm_na.compat.natten.utils.varlen.generate_varlen_parameters` returns it.
        backend: auto, reference, or a name of NATTEN's, which means auto. PyTorch computes in each case.
        return_lse: Whether the log-sum-exp is returned too; needs the memory of all scores.

    All others choose among NATTEN's kernels and are ignored.

    Returns:
        ``[batch, tokens, heads, head_dim_v]``; with return_lse also ``[batch, tokens, heads]`` in float32 (float64 for
        float64). A query without keys has zeros and minus infinity.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
        NotImplementedError: for backend="compiled".
    """
    meaning = _meaning(args, named)
    if backend_of(meaning["backend"], DENSE_BACKENDS) is Backend.COMPILED:
        raise NotImplementedError("backend='compiled': there is no kernel for dense attention; PyTorch computes it")
    ignore_all(meaning, DENSE_HINTS)
    if autocast.is_on(query):
        query, key, value = autocast.cast(query.device, query, key, value)
        with autocast.off(query.device):
            return _attention(query, key, value, meaning)
    return _attention(query, key, value, meaning)


def _attention(query: Tensor, key: Tensor, value: Tensor, meaning: Meaning) -> Any:
    _check(query, key, value)
    scale = check_scale(meaning["scale"], query.shape[-1], "float64" if query.dtype == torch.float64 else "float32")
    lengths = (meaning["seqlens_Q"], meaning["seqlens_KV"])
    if lengths != (None, None):
        meaning = meaning | dict(zip(_VARLEN[2:], generate_varlen_parameters(query, key, value, *lengths), strict=True))
    if any(meaning[name] is not None for name in _VARLEN[2:4]) or meaning["max_seqlen_Q"] or meaning["max_seqlen_KV"]:
        out, lse = _packed(query, key, value, meaning, scale)
    else:
        out, lse = _dense(query, key, value, meaning["is_causal"], scale, meaning["return_lse"])
    return (out, lse) if meaning["return_lse"] else out
