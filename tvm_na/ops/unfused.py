"""The unfused operators as PyTorch sees them: schemas, fake kernels, derivatives, and compiled kernels underneath.

``torch.ops.tvm_na.na_qk`` (scores), ``na_av`` (sums over the keys of a query), ``na_av_transposed`` (sums over the
queries of a key) and ``na_bias_sums`` (sums over the pairs that share an index of a bias) are linear in each of their
tensors, and the derivatives of each are others of them; so there are derivatives of any order. They take any rank;
:mod:`tvm_na.unfused` is the front door. TVM is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from tvm_na.ops.attention import below_autograd, needs_gradient, why_no_kernel
from tvm_na.ops.launch_unfused import launcher_for, output, problem_for
from tvm_na.reference import unfused as unfused_reference

__all__ = ["na_av", "na_av_transposed", "na_bias_sums", "na_qk", "why_no_kernel"]

_WINDOW = "int[] kernel_size, int[] stride, int[] dilation, bool[] is_causal"

_library = torch.library.Library("tvm_na", "FRAGMENT")
_library.define(f"na_qk(Tensor query, Tensor key, Tensor? rpb, {_WINDOW}, float scale, bool zero) -> Tensor")
_library.define(f"na_av(Tensor attn, Tensor value, {_WINDOW}, float scale) -> Tensor")
_library.define(f"na_av_transposed(Tensor attn, Tensor query, {_WINDOW}, float scale, int heads_kv) -> Tensor")
_library.define(f"na_bias_sums(Tensor attn, {_WINDOW}) -> Tensor")

#: Scores; with ``zero`` they are 0, not minus infinity, where there is no key, and there is no bias.
na_qk = torch.ops.tvm_na.na_qk.default
na_av = torch.ops.tvm_na.na_av.default
na_av_transposed = torch.ops.tvm_na.na_av_transposed.default
na_bias_sums = torch.ops.tvm_na.na_bias_sums.default


@dataclass(frozen=True)
class _Operator:
    """One of the operators, by its tensors, its name, and what it calls with them.

    Attributes:
        name: In ``torch.ops.tvm_na``.
        tensors: How many of its arguments are tensors or None; kernel_size, stride, dilation and is_causal follow.
        gradients: ``gradients(call, needed, gradient)``: those of the tensors, None where one is not needed.
    """

    name: str
    tensors: int
    gradients: Callable[[_Call, Any, Tensor], tuple[Tensor | None, ...]]

    def call(self, arguments: tuple[Any, ...]) -> _Call:
        """The arguments of a call, which are in the order of the schema."""
        tensors, window = arguments[: self.tensors], arguments[self.tensors : self.tensors + 4]
        more = arguments[self.tensors + 4 :]
        return _Call(tensors, window, more[0] if more else 1.0, int(more[1]) if len(more) > 1 else 0)


@dataclass(frozen=True)
class _Call:
    """The arguments of one call; without a scale it is 1, without an option 0."""

    tensors: tuple[Tensor | None, ...]
    window: tuple[Any, ...]
    scale: float
    option: int


def _gradients_qk(call: _Call, needed: Any, d_scores: Tensor) -> tuple[Tensor | None, ...]:
    query, key, _ = call.tensors
    assert query is not None and key is not None
    return (
        na_av(d_scores, key, *call.window, call.scale) if needed[0] else None,
        na_av_transposed(d_scores, query, *call.window, call.scale, key.shape[-2]) if needed[1] else None,
        na_bias_sums(d_scores, *call.window) if needed[2] else None,
    )


def _gradients_av(call: _Call, needed: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    attn, value = call.tensors
    assert attn is not None and value is not None
    return (
        na_qk(d_out, value, None, *call.window, call.scale, True) if needed[0] else None,
        na_av_transposed(attn, d_out, *call.window, call.scale, value.shape[-2]) if needed[1] else None,
    )


def _gradients_transposed(call: _Call, needed: Any, d_keys: Tensor) -> tuple[Tensor | None, ...]:
    attn, query = call.tensors
    return (
        na_qk(query, d_keys, None, *call.window, call.scale, True) if needed[0] else None,
        na_av(attn, d_keys, *call.window, call.scale) if needed[1] else None,
    )


def _gradients_bias(call: _Call, needed: Any, d_rpb: Tensor) -> tuple[Tensor | None, ...]:
    (attn,) = call.tensors
    assert attn is not None
    problem = problem_for("na_bias_sums", attn, window=call.window).forward
    return (unfused_reference.bias_gather(problem, d_rpb).expand(attn.shape),)


_OPERATORS = (
    _Operator("na_qk", 3, _gradients_qk),
    _Operator("na_av", 2, _gradients_av),
    _Operator("na_av_transposed", 2, _gradients_transposed),
    _Operator("na_bias_sums", 1, _gradients_bias),
)


class _Recorded(torch.autograd.Function):
    """An operator, which saves its tensors."""

    @staticmethod
    def forward(ctx: Any, keys: Any, operator: _Operator, *arguments: Any) -> Tensor:
        # Where transforms of torch.func are nested, what is below is a level that records for itself.
        with torch.enable_grad(), _set_fwd_grad_enabled(True):
            out: Tensor = below_autograd(getattr(torch.ops.tvm_na, operator.name).default, keys, *arguments)
        ctx.save_for_backward(*arguments[: operator.tensors])
        ctx.operator, ctx.numbers = operator, arguments[operator.tensors :]
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[2:]
        call = ctx.operator.call((*ctx.saved_tensors, *ctx.numbers))
        found = ctx.operator.gradients(call, needed, gradient)
        return None, None, *found, *[None] * len(ctx.numbers)


_apply = super(torch.autograd.Function, _Recorded).apply


def _register(operator: _Operator) -> None:
    """What computes, what shapes come out while a compiler traces, and the derivatives."""
    name, overload = operator.name, getattr(torch.ops.tvm_na, operator.name).default

    def compute(*arguments: Any) -> Tensor:
        call = operator.call(arguments)
        launch = launcher_for(name, *call.tensors, window=call.window, option=call.option)
        return launch(*call.tensors, call.scale)

    def fake(*arguments: Any) -> Tensor:
        call = operator.call(arguments)
        first = call.tensors[0]
        assert first is not None
        return output(problem_for(name, *call.tensors, window=call.window, option=call.option), first)

    def record(keys: Any, *arguments: Any) -> Tensor:
        if needs_gradient(*arguments[: operator.tensors]):
            # Transforms of torch.func need nothing of a Function here: see ops.py.
            with enable_single_level_autograd_function():
                result: Tensor = _apply(keys, operator, *arguments)
        else:
            result = below_autograd(overload, keys, *arguments)
        return result

    for device in ("CPU", "CUDA"):
        _library.impl(name, compute, device)
    torch.library.register_fake(f"tvm_na::{name}", fake, lib=_library)
    _library.impl(name, record, "Autograd", with_keyset=True)


for _operator in _OPERATORS:
    _register(_operator)
