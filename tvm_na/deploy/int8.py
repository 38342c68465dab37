"""Weights of one byte: symmetric int8 and a scale for each output channel, of linear layers and convolutions.

Or of two, float16, where they are but stored so.

First the model's weights are rounded to what int8 and a scale can hold. What that changes is one question, asked of
eager PyTorch; whether an artifact computes what the rounded model does is the other one, asked as of any artifact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from tvm_na.deploy.check import Expected, reference_of
from tvm_na.deploy.export import sharing_copy
from tvm_na.deploy.products import drop_unused
from tvm_na.deploy.rewrite import constant_of, dense, dequantized, new_constant
from tvm_na.reference.accuracy import relative_error

if TYPE_CHECKING:
    from typing import TypeGuard

#: Largest relative error of a model's outputs that rounding its weights may cause, by what they are rounded to.
BUDGETS = {"int8": 5e-2, "float16": 2e-3}

_LARGEST = 127  # and -127: with -128 the steps would not be symmetric
# By how much a rounded weight may differ from a multiple of its scale: some roundings of float32.
_EXACT = 1e-5


@dataclass(frozen=True)
class Rounding:
    """What rounding the weights changed in the outputs for random inputs.

    Attributes:
        relative_error: The largest one against the model as it was.
        budget: What it may be.
        same_class: For how many inputs the largest output is the same one; None if outputs are no ``[batch, classes]``.
        inputs: How many there were.
    """

    relative_error: float
    budget: float
    same_class: int | None
    inputs: int


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight [out, ...]`` in int8, and scales ``[out]``: the nearest multiples of 1/127 of a channel's largest."""
    largest = weight.flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest / _LARGEST, 1)
    steps = (weight / scale.view(-1, *(1,) * (weight.ndim - 1))).round()
    return steps.clamp(-_LARGEST, _LARGEST).to(torch.int8), scale


def rounded(model: nn.Module, weights_dtype: str = "int8") -> nn.Module:
    """A copy of ``model`` that shares all but its linear layers' and convolutions' weights, which are rounded.

    Raises:
        ValueError: one is too large for float16.
    """
    twin = sharing_copy(model)
    for module in twin.modules():
        if _is_product(module) and "weight" in module._parameters:  # not one that is computed of others
            weight = module.weight.detach()
            near = dequantized(*quantized(weight)) if weights_dtype == "int8" else _halved(weight)
            module.weight = nn.Parameter(near, requires_grad=False)
    return twin


def _halved(weight: Tensor) -> Tensor:
    """The nearest numbers of float16."""
    half = weight.half()
    if half.isinf().any():
        largest, got = torch.finfo(torch.float16).max, f"{weight.abs().max():.3g}"
        raise ValueError(f"weights_dtype: required weights of at most {largest:.0f} with float16, got {got}")
    return half.to(weight.dtype)


def _is_product(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether it is one that :mod:`tvm_na.deploy.rewrite` makes a product of."""
    is_plain = isinstance(module, nn.Conv2d) and module.groups == 1 and set(module.dilation) == {1}
    return isinstance(module, nn.Linear) or is_plain


def rounding_of(
    model: nn.Module, twin: nn.Module, example: Tensor, batch: int | None, weights_dtype: str = "int8"
) -> Rounding:
    """What rounding changed between ``model`` and ``twin``, by eager PyTorch, for inputs like ``example``.

    Raises:
        RuntimeError: it changed more than :data:`BUDGETS` has for what they were rounded to.
    """
    budget = BUDGETS[weights_dtype]
    before, after = reference_of(model, example, batch), reference_of(twin, example, batch)
    errors = [
        relative_error(out, right)
        for outs, rights in zip(after.outputs, before.outputs, strict=True)
        for out, right in zip(outs, rights, strict=True)
    ]
    found = Rounding(max(errors), budget, _same_class(before, after), sum(map(len, before.inputs)))
    if not found.relative_error <= budget:
        wanted = f"outputs within {budget:.0e} of those with {example.dtype} weights"
        raise RuntimeError(f"weights_dtype: required {wanted}, got {found.relative_error:.1e} with {weights_dtype}")
    return found


def _same_class(before: Expected, after: Expected) -> int | None:
    if before.returns_list or before.outputs[0][0].ndim != 2:
        return None
    pairs = zip(before.outputs, after.outputs, strict=True)
    return sum(int((one.argmax(1) == other.argmax(1)).sum()) for [one], [other] in pairs)


def narrow(module: fx.GraphModule) -> None:
    """Let the products of a graph have int8 weights where that changes none, which is where they were rounded."""
    for node in [n for n in module.graph.nodes if n.target is dense]:
        x, weight, *others = node.args
        matrix = constant_of(module, weight)
        steps, scale = quantized(matrix)
        if not torch.allclose(dequantized(steps, scale), matrix, rtol=_EXACT, atol=0):
            continue
        with module.graph.inserting_before(node):
            narrow_weight = new_constant(module, f"{weight.name}_int8", steps)
            node.args = (x, narrow_weight, *others, new_constant(module, f"{weight.name}_scale", scale))
    module.graph.eliminate_dead_code()
    drop_unused(module)
    module.recompile()
