"""The operators as PyTorch sees them: schemas, fake kernels, autograd formulas, and compiled kernels underneath.

``torch.ops.tvm_na.na_forward``, ``na_forward_lse`` and ``na_backward`` take any rank in their schema;
:mod:`tvm_na.functional` is the front door. TVM is not imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from tvm_na.ops import autocast
from tvm_na.ops import vmap as batching
from tvm_na.ops.dispatch_state import any_requires_grad, any_tangent
from tvm_na.ops.launch import backward_launcher_for, gradient_outputs, launcher_for, outputs
from tvm_na.problems.attention import NAProblem, problem_of
from tvm_na.problems.backward import backward_problem_of
from tvm_na.problems.registry import Problem
from tvm_na.reference import attention as reference

_TENSORS = "Tensor query, Tensor key, Tensor value, Tensor? rpb"
_NUMBERS = "int[] kernel_size, int[] stride, int[] dilation, bool[] is_causal, float scale"

_library = torch.library.Library("tvm_na", "DEF")
_library.define(f"na_forward({_TENSORS}, {_NUMBERS}) -> Tensor")
_library.define(f"na_forward_lse({_TENSORS}, {_NUMBERS}) -> (Tensor, Tensor)")
# d_rpb has no elements where there is no rpb: an optional result is not everywhere what a compiler expects.
_library.define(
    f"na_backward({_TENSORS}, Tensor lse, Tensor d_out, Tensor? d_lse, {_NUMBERS}) -> (Tensor, Tensor, Tensor, Tensor)"
)

na_forward = torch.ops.tvm_na.na_forward.default
na_forward_lse = torch.ops.tvm_na.na_forward_lse.default
na_backward = torch.ops.tvm_na.na_backward.default

_Four = tuple[Tensor, Tensor, Tensor, Tensor]


def why_no_kernel(problem: Problem, device: torch.device) -> str | None:
    """Why there is no kernel for ``problem`` on a CUDA device, in words; None if there is one, or can be built."""
    from tvm_na.jit.build import is_supported, target_for, unsupported

    try:
        target = target_for("cuda", device.index)
    except ValueError as error:
        return str(error)
    return None if is_supported(problem, target) else unsupported(problem, target)


# --- what computes: the same arguments as in the schemas


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> Tensor:
    window = (kernel_size, stride, dilation, is_causal)
    return launcher_for(query, key, value, rpb, window, False)(query, key, value, rpb, scale)[0]


def _forward_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> tuple[Tensor, Tensor]:
    window = (kernel_size, stride, dilation, is_causal)
    out, lse = launcher_for(query, key, value, rpb, window, True)(query, key, value, rpb, scale)
    assert lse is not None
    return out, lse


def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> _Four:
    window = (kernel_size, stride, dilation, is_causal)
    launch = backward_launcher_for(query, key, value, rpb, window, lse, d_out, d_lse)
    d_query, d_key, d_value, d_rpb = launch(query, key, value, rpb, scale, lse, d_out, d_lse)
    return d_query, d_key, d_value, query.new_empty(0) if d_rpb is None else d_rpb


for _device in ("CPU", "CUDA"):
    _library.impl("na_forward", _forward, _device)
    _library.impl("na_forward_lse", _forward_lse, _device)
    _library.impl("na_backward", _backward, _device)


# --- what shapes come out: with symbolic batches, on the meta device, while a compiler traces


def _problem(
    query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, numbers: tuple[Any, ...], lse: bool
) -> NAProblem:
    kernel_size, stride, dilation, is_causal, _ = numbers
    return problem_of(query, key, value, kernel_size, stride, dilation, is_causal, rpb, lse, query.ndim - 3)


@torch.library.register_fake("tvm_na::na_forward", lib=_library)
def _fake_forward(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, *numbers: Any) -> Tensor:
    return outputs(_problem(query, key, value, rpb, numbers, False), query)[0]


@torch.library.register_fake("tvm_na::na_forward_lse", lib=_library)
def _fake_forward_lse(
    query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, *numbers: Any
) -> tuple[Tensor, Tensor]:
    out, lse = outputs(_problem(query, key, value, rpb, numbers, True), query)
    assert lse is not None
    return out, lse


@torch.library.register_fake("tvm_na::na_backward", lib=_library)
def _fake_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor | None,
    *numbers: Any,
) -> _Four:
    window = (numbers[0], numbers[1], numbers[2], numbers[3])
    backward_problem_of(query, key, value, window, rpb, lse, d_out, d_lse)
    d_query, d_key, d_value, *d_rpb = gradient_outputs(query, key, value, rpb)
    return d_query, d_key, d_value, d_rpb[0] if d_rpb else query.new_empty(0)


# --- derivatives: by hand, since torch.library.register_autograd refuses torch.func, loses tangents in silence, and
# cannot save what na_forward does not return


def below_autograd(operator: Any, keys: Any, *arguments: Any) -> Any:
    """What the operator gives where derivatives are somebody else's: what its implementation for Autograd calls."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator.redispatch(keys & torch._C._after_autograd_keyset, *arguments)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a call must be recorded.

    Raises:
        NotImplementedError: its derivatives are of a kind that no kernel has.
    """
    if any_tangent(*tensors):
        raise NotImplementedError(
            "compiled kernels have no forward-mode derivatives: required tensors without tangents; "
            "backend='reference' has them"
        )
    return torch.is_grad_enabled() and any_requires_grad(*tensors)


class _ForwardLse(torch.autograd.Function):
    """na_forward_lse, which saves query, key, value, rpb and the log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, keys: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        # Where transforms of torch.func are nested, what is below is a level that records for itself.
        with torch.enable_grad(), _set_fwd_grad_enabled(True):
            out, lse = below_autograd(na_forward_lse, keys, *arguments)
        ctx.save_for_backward(*arguments[:4], lse)
        ctx.set_materialize_grads(False)
        ctx.numbers = arguments[4:]
        return out, lse

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Any, ...]:
        if d_out is None and d_lse is None:
            return (None,) * len(ctx.needs_input_grad)
        query, key, value, rpb, lse = ctx.saved_tensors
        if d_out is None:
            d_out = query.new_zeros((*query.shape[:-1], value.shape[-1]))
        found = na_backward(query, key, value, rpb, lse, d_out, d_lse, *ctx.numbers)
        wanted = ctx.needs_input_grad[1:5]
        used = [gradient if needed else None for gradient, needed in zip(found, wanted, strict=True)]
        return None, *used, *[None] * len(ctx.numbers)


_apply = super(torch.autograd.Function, _ForwardLse).apply


def _recorded(*arguments: Any) -> tuple[Tensor, Tensor]:
    """_ForwardLse.apply, which refuses transforms of torch.func.

    They need nothing of it here: the dispatcher has brought the call to the level that is to be recorded, and what is
    below autograd is the next level.
    """
    with enable_single_level_autograd_function():
        both: tuple[Tensor, Tensor] = _apply(*arguments)
    return both


def _autograd_forward(keys: Any, *arguments: Any) -> Tensor:
    if needs_gradient(*arguments[:4]):
        out: Tensor = na_forward_lse(*arguments)[0]
        return out
    result: Tensor = below_autograd(na_forward, keys, *arguments)
    return result


def _autograd_forward_lse(keys: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
    if needs_gradient(*arguments[:4]):
        return _recorded(keys, *arguments)
    result: tuple[Tensor, Tensor] = below_autograd(na_forward_lse, keys, *arguments)
    return result


def _autograd_backward(keys: Any, *arguments: Any) -> _Four:
    """The gradients; where they need gradients themselves, in operations that have them, of any order."""
    query, key, value, rpb, lse, d_out, d_lse, *numbers = arguments
    if not needs_gradient(query, key, value, rpb, lse, d_out, d_lse):
        result: _Four = below_autograd(na_backward, keys, *arguments)
        return result
    window = (numbers[0], numbers[1], numbers[2], numbers[3])
    problem = backward_problem_of(query, key, value, window, rpb, lse, d_out, d_lse).forward
    with autocast.off(query.device):
        found = reference.gradients(problem, query, key, value, numbers[4], rpb, lse, d_out, d_lse)
    return found[0], found[1], found[2], query.new_empty(0) if found[3] is None else found[3]


_library.impl("na_forward", _autograd_forward, "Autograd", with_keyset=True)
_library.impl("na_forward_lse", _autograd_forward_lse, "Autograd", with_keyset=True)
_library.impl("na_backward", _autograd_backward, "Autograd", with_keyset=True)

torch.library.register_vmap("tvm_na::na_forward", batching.rule(na_forward, 4, False), lib=_library)
torch.library.register_vmap("tvm_na::na_forward_lse", batching.rule(na_forward_lse, 4, False), lib=_library)
torch.library.register_vmap("tvm_na::na_backward", batching.rule(na_backward, 7, True), lib=_library)
