"""The operators: ``torch.ops.tvm_na.na_forward``, ``na_forward_lse``, ``na_backward``, and those of two steps.

``na_qk`` (scores), ``na_av`` (sums over the keys of a query), ``na_av_transposed`` (sums over the queries of a key) and
``na_bias_sums`` (sums over the pairs that share an index of a bias) are linear in each of their tensors, and the
derivatives of each are others of them; so there are derivatives of any order. Operators take any rank;
:mod:`tvm_na.functional` and :mod:`tvm_na.unfused` are the front doors.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tvm_na.ops import autocast
from tvm_na.ops.register import Call, Operator, register
from tvm_na.problems.attention import NAProblem, problem_of
from tvm_na.problems.backward import BackwardProblem, backward_problem_of
from tvm_na.problems.base import Problem
from tvm_na.problems.unfused import UnfusedProblem, av_problem_of, bias_problem_of, qk_problem_of, transposed_problem_of
from tvm_na.reference import attention as reference
from tvm_na.reference import unfused as unfused_reference

Gradients = Sequence["Tensor | None"]
_ATTENTION = "Tensor query, Tensor key, Tensor value, Tensor? rpb"


def why_no_kernel(problem: Problem, device: torch.device) -> str | None:
    """Why there is no kernel for ``problem`` on a CUDA device, in words; None if there is one, or can be built."""
    from tvm_na.jit.build import is_supported, target_for

    try:
        target = target_for("cuda", device.index)
    except ValueError as error:
        return str(error)
    return None if is_supported(problem, target) else problem.unsupported(target.kind)


def _rank(call: Call) -> int:
    return int(call.tensors[0].ndim) - 3


# --- attention and its gradients


def _attention(call: Call, return_lse: bool) -> NAProblem:
    query, key, value, rpb = call.tensors
    return problem_of(query, key, value, *call.window, rpb, return_lse, _rank(call))


def _attention_gradients(
    call: Call, saved: Sequence[Tensor], needed: Sequence[bool], d_results: Gradients
) -> Gradients:
    (lse,), (d_out, d_lse) = saved, d_results
    query, value = call.tensors[0], call.tensors[2]
    if d_out is None:
        d_out = query.new_zeros((*query.shape[:-1], value.shape[-1]))
    found = na_backward(*call.tensors, lse, d_out, d_lse, *call.window, call.scale)
    return [gradient if wanted else None for gradient, wanted in zip(found, needed, strict=True)]


def _backward(call: Call) -> BackwardProblem:
    query, key, value, rpb, *more = call.tensors
    return backward_problem_of(query, key, value, call.window, rpb, *more)


def _backward_by_reference(*arguments: Any) -> tuple[Tensor, ...]:
    """The gradients in operations that have gradients themselves, of any order."""
    call = _BACKWARD.call(arguments)
    query, key, value, rpb, _, d_out, d_lse = call.tensors
    with autocast.off(query.device):
        found = reference.gradients(_backward(call).forward, query, key, value, call.scale, rpb, d_out, d_lse)
    return found[0], found[1], found[2], query.new_empty(0) if found[3] is None else found[3]


_BACKWARD = Operator(
    "na_backward",
    f"{_ATTENTION}, Tensor lse, Tensor d_out, Tensor? d_lse",
    _backward,
    results=4,
    record=_backward_by_reference,
    sums=1,
)
na_backward = register(_BACKWARD)
_with_lse, _alone = (functools.partial(_attention, return_lse=lse) for lse in (True, False))
na_forward_lse = register(
    Operator("na_forward_lse", _ATTENTION, _with_lse, results=2, gradients=_attention_gradients, saved=(1,))
)
na_forward = register(
    Operator("na_forward", _ATTENTION, _alone, record=lambda *arguments: na_forward_lse(*arguments)[0])
)


# --- the two steps


def _qk(call: Call) -> UnfusedProblem:
    query, key, rpb = call.tensors
    return qk_problem_of(query, key, rpb, call.window, _rank(call), zero=bool(call.option))


def _av(call: Call) -> UnfusedProblem:
    attn, value = call.tensors
    return av_problem_of(attn, value, call.window, _rank(call))


def _transposed(call: Call) -> UnfusedProblem:
    attn, query = call.tensors
    return transposed_problem_of(attn, query, call.option, call.window, _rank(call))


def _bias_sums(call: Call) -> UnfusedProblem:
    (attn,) = call.tensors
    return bias_problem_of(attn, call.window, _rank(call))


def _qk_gradients(call: Call, saved: Sequence[Tensor], needed: Sequence[bool], d_results: Gradients) -> Gradients:
    (query, key, _), (d_scores,) = call.tensors, d_results
    return (
        na_av(d_scores, key, *call.window, call.scale) if needed[0] else None,
        na_av_transposed(d_scores, query, *call.window, call.scale, key.shape[-2]) if needed[1] else None,
        na_bias_sums(d_scores, *call.window) if needed[2] else None,
    )


def _av_gradients(call: Call, saved: Sequence[Tensor], needed: Sequence[bool], d_results: Gradients) -> Gradients:
    (attn, value), (d_out,) = call.tensors, d_results
    return (
        na_qk(d_out, value, None, *call.window, call.scale, True) if needed[0] else None,
        na_av_transposed(attn, d_out, *call.window, call.scale, value.shape[-2]) if needed[1] else None,
    )


def _transposed_gradients(
    call: Call, saved: Sequence[Tensor], needed: Sequence[bool], d_results: Gradients
) -> Gradients:
    (attn, query), (d_keys,) = call.tensors, d_results
    return (
        na_qk(query, d_keys, None, *call.window, call.scale, True) if needed[0] else None,
        na_av(attn, d_keys, *call.window, call.scale) if needed[1] else None,
    )


def _bias_gradients(call: Call, saved: Sequence[Tensor], needed: Sequence[bool], d_results: Gradients) -> Gradients:
    (attn,), (d_rpb,) = call.tensors, d_results
    assert d_rpb is not None
    return (unfused_reference.bias_gather(_bias_sums(call).forward, d_rpb).expand(attn.shape),)


_SCORES = "Tensor query, Tensor key, Tensor? rpb"
#: Scores; with ``zero`` they are 0, not minus infinity, where there is no key, and there is no bias.
na_qk = register(Operator("na_qk", _SCORES, _qk, "float scale, bool zero", gradients=_qk_gradients))
na_av = register(Operator("na_av", "Tensor attn, Tensor value", _av, gradients=_av_gradients))
na_av_transposed = register(
    Operator(
        "na_av_transposed",
        "Tensor attn, Tensor query",
        _transposed,
        "float scale, int heads_kv",
        gradients=_transposed_gradients,
    )
)
na_bias_sums = register(Operator("na_bias_sums", "Tensor attn", _bias_sums, "", gradients=_bias_gradients, sums=1))
