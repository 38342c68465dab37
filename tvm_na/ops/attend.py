"""The attention of a call: checked, computed by whoever serves it, and merged with additional keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from tvm_na.ops import autocast, calls, table
from tvm_na.ops.backend import Backend, choose_backend, why_not_compiled
from tvm_na.ops.calls import Checked
from tvm_na.ops.dispatch_state import any_requires_grad, in_forward_mode, is_watched
from tvm_na.ops.fast_path import Differentiable
from tvm_na.ops.launch import launcher_for
from tvm_na.problems.attention import NAProblem, problem_of
from tvm_na.problems.checks import check_additional, check_scale
from tvm_na.reference import attention as reference

_Result = Tensor | tuple[Tensor, Tensor]


def attend(
    rank: int,
    tensors: tuple[Any, ...],
    axes: calls.Window,
    scale: float | None,
    extra: tuple[Tensor | None, Tensor | None],
    return_lse: bool,
    backend: Backend | str,
) -> Any:
    """What ``na1d``, ``na2d`` and ``na3d`` do: check, choose who computes, then launch a kernel or dispatch."""
    if autocast.is_on(tensors[0]):
        query, key, value, rpb, *more = autocast.cast(tensors[0].device, *tensors, *extra)
        with autocast.off(query.device):
            return attend(rank, (query, key, value, rpb), axes, scale, (more[0], more[1]), return_lse, backend)
    chosen = Backend.of(backend)
    query, key, value, rpb = tensors
    arguments = (query, key, value, *axes, rpb, return_lse, rank)
    call = calls.checked("na", rank, tensors, axes, return_lse, problem_of, arguments)
    factor = call.scale if scale is None else check_scale(scale, call.problem.head_dim, call.problem.accum_dtype)
    has_extra = (extra[0] is not None or extra[1] is not None) and check_additional(*extra, query, key, value)

    needs_grad = torch.is_grad_enabled() and any_requires_grad(query, key, value, rpb)
    direct = call.is_direct and not has_extra and chosen is not Backend.REFERENCE and not is_watched()
    if direct:
        if needs_grad:
            if call.differentiable is not None:
                return call.differentiable(tensors, factor, return_lse)
        elif call.launch is not None:
            known = call.launch(tensors, factor)
            return (known[0], known[1]) if return_lse else known[0]
    reason = why_not_compiled(call.problem, query.device, in_forward_mode(*tensors, *extra))
    if choose_backend(chosen, reason) is Backend.REFERENCE:
        out, lse = reference.neighborhood_attention(call.problem, query, key, value, factor, rpb, *extra)
        return (out, lse) if return_lse else out
    if direct:
        return _first_direct(call, tensors, factor, needs_grad, return_lse)
    if not has_extra and not return_lse:
        return table.na_forward(*tensors, *call.window, factor)
    out, lse = table.na_forward_lse(*tensors, *call.window, factor)
    if has_extra:
        dense = _dense_attention(query, *cast("tuple[Tensor, Tensor]", extra), factor)
        out, lse = merge_attentions([out, dense[0]], [lse, dense[1]])
    return (out, lse) if return_lse else out


def _first_direct(
    call: Checked[NAProblem], tensors: tuple[Any, ...], scale: float, needs_grad: bool, return_lse: bool
) -> _Result:
    """What a kernel gives that is launched without PyTorch's dispatcher, from now on at once."""
    if needs_grad:
        call.differentiable = Differentiable.of(call.problem, tensors[0].device)
        found: _Result = call.differentiable(tensors, scale, return_lse)
        return found
    call.launch = launcher_for(call.problem, tensors[0].device)
    outputs = call.launch(tensors, scale)
    return (outputs[0], outputs[1]) if return_lse else outputs[0]


def _dense_attention(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of every query to ``[batch, extra, heads_kv, ...]``, with its log-sum-exp."""
    accum = reference.accum_dtype(query)
    group = query.shape[-2] // keys.shape[-2]
    grouped = query.to(accum).flatten(1, -3).unflatten(-2, (keys.shape[-2], group))
    scores = torch.einsum("bnhgd,behd->bnhge", grouped, keys.to(accum)) * scale
    weights, lse = reference.softmax_and_lse(scores)
    out = torch.einsum("bnhge,behd->bnhgd", weights, values.to(accum))
    tokens = query.shape[:-1]
    return out.reshape(*tokens, values.shape[-1]).to(query.dtype), lse.reshape(tokens)


def merge_attentions(outputs: Sequence[Tensor], lse_tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The attention to the union of disjoint sets of keys, from the attentions to each.

    Args:
        outputs: At least two of ``[batch, *spatial, heads, head_dim_v]``.
        lse_tensors: Their log-sum-exps, ``[batch, *spatial, heads]``.

    Returns:
        The merged output and log-sum-exp, in the dtypes of the first ones. A log-sum-exp of minus infinity is one of no
        keys; where all are, they are 0 and minus infinity.

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
    weights, merged = reference.softmax_and_lse(torch.stack(list(lse_tensors), dim=-1))
    out = sum(w.unsqueeze(-1) * o.to(w.dtype) for w, o in zip(weights.movedim(-1, 0), outputs, strict=True))
    assert isinstance(out, Tensor)
    return out.to(outputs[0].dtype), merged
