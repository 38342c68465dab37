"""Gradients of a call that nothing watches: kernels are launched without PyTorch's dispatcher.

Every other call (``torch.compile``, transforms, modes, tracing) goes through the operators of ``table.py``,
which have the same derivatives.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from tvm_na.ops import autocast, table
from tvm_na.ops.dispatch_state import is_watched
from tvm_na.ops.launch import Launcher, launcher_for
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.reference import attention as reference

_unwrapped = torch._C._functorch.unwrap_if_dead
_is_batched = torch._C._functorch.is_legacy_batchedtensor


def _is_special(gradient: Any) -> bool:
    """Whether a gradient is more than its storage: a subclass, or many in one (``is_grads_batched``)."""
    return type(gradient) is not Tensor or _is_batched(gradient)


@dataclasses.dataclass
class Differentiable:
    """One kind of call, and what it launches.

    Attributes:
        problem: The attention, with a log-sum-exp.
        forward: Its launcher.
        backward: The launchers of the gradients, by whether the log-sum-exp has one.
    """

    problem: NAProblem
    forward: Launcher
    backward: dict[bool, Launcher] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, problem: NAProblem, device: torch.device) -> Differentiable:
        """That of an attention; its kernel is built now if need be."""
        with_lse = dataclasses.replace(problem, return_lse=True)
        return cls(with_lse, launcher_for(with_lse, device))

    def __call__(self, tensors: tuple[Any, ...], scale: float, return_lse: bool) -> Any:
        """The output, with return_lse also the log-sum-exp, of tensors that the call was checked for."""
        # What Function.apply does where there are no transforms, which takes half as long as the kernel's call.
        query, key, value, rpb = tensors
        rpb = None if rpb is None else _unwrapped(rpb)
        return _apply(_unwrapped(query), _unwrapped(key), _unwrapped(value), rpb, self, scale, return_lse)

    def gradients(
        self, tensors: tuple[Any, ...], scale: float, d_out: Tensor | None, d_lse: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of query, key, value and rpb; tensors are these and the log-sum-exp."""
        query, key, value, rpb, lse = tensors
        if d_out is None:
            d_out = query.new_zeros((*query.shape[:-1], value.shape[-1]))
        if torch.is_grad_enabled():  # gradients of gradients
            with autocast.off(query.device):
                return reference.gradients(self.problem, query, key, value, scale, rpb, d_out, d_lse)
        has_d_lse = d_lse is not None
        if torch.compiler.is_compiling() or is_watched() or _is_special(d_out) or (has_d_lse and _is_special(d_lse)):
            return table.na_backward(query, key, value, rpb, lse, d_out, d_lse, *self.problem.window, scale)
        launch = self.backward.get(has_d_lse)
        if launch is None:
            problem = BackwardProblem(dataclasses.replace(self.problem, return_lse=has_d_lse))
            launch = self.backward[has_d_lse] = launcher_for(problem, query.device)
        found = launch((query, key, value, rpb, lse, d_out, d_lse), scale)
        return found[0], found[1], found[2], None if rpb is None else found[3]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rpb: Tensor | None,
        call: Differentiable,
        scale: float,
        return_lse: bool,
    ) -> Any:
        out, lse = call.forward((query, key, value, rpb), scale)
        ctx.save_for_backward(query, key, value, rpb, lse)
        ctx.set_materialize_grads(False)
        ctx.call, ctx.scale = call, scale
        return (out, lse) if return_lse else out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None = None) -> tuple[Any, ...]:
        if d_out is None and d_lse is None:
            return (None,) * 7
        found = ctx.call.gradients(ctx.saved_tensors, ctx.scale, d_out, d_lse)
        needs = ctx.needs_input_grad
        return (
            found[0] if needs[0] else None,
            found[1] if needs[1] else None,
            found[2] if needs[2] else None,
            found[3] if needs[3] else None,
            *(None, None, None),
        )


_apply = super(torch.autograd.Function, _Attention).apply
