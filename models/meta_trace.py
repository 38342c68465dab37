"""A model's forward pass without its arithmetic: a copy without storage, on the meta device."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tvm_na.nn import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D
from tvm_na.problems.checks import per_axis_ints

#: The modules that attend.
ATTENTION = (NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D)

#: Called with a module, its input and its output.
Visit = Callable[[nn.Module, Tensor, Tensor], None]


def visit_layers(model: nn.Module, input_size: int | tuple[int, int], visit: Visit) -> None:
    """Call ``visit`` for each use of a module without children, or of an attention, in the order of the forward pass.

    Nothing is computed and ``model`` is left as it is. Tensors are on the meta device; an attention's output stands for
    itself alone: its own layers are not visited.

    Args:
        model: Any module that takes ``[batch, channels, height, width]``; ``channels`` is its ``in_chans``, or 3. A
            batch of one goes through it, in evaluation mode.
        input_size: Height and width of the image in pixels; an integer counts for both.
        visit: What is called.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: required a torch.nn.Module, got {type(model).__name__}")
    height, width = per_axis_ints("input_size", input_size, 2)
    shadow = _without_storage(model)
    for module in shadow.modules():
        if isinstance(module, ATTENTION):
            # Attention keeps the shape, which is all that the layers after it need.
            vars(module)["forward"] = functools.partial(_attend, visit, module)
    inside = {id(child) for m in shadow.modules() if isinstance(m, ATTENTION) for child in m.modules()}
    for module in shadow.modules():
        if id(module) not in inside and next(module.children(), None) is None:
            module.register_forward_hook(functools.partial(_visit_leaf, visit))
    dtype = next((p.dtype for p in shadow.parameters() if p.is_floating_point()), torch.float32)
    with torch.no_grad():
        shadow(torch.empty(1, getattr(model, "in_chans", 3), height, width, dtype=dtype, device="meta"))


def _attend(visit: Visit, module: nn.Module, x: Tensor) -> Tensor:
    visit(module, x, x)
    return x


def _visit_leaf(visit: Visit, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
    if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
        visit(module, args[0], out)


def _without_storage(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on the meta device, in evaluation mode; its weights are not copied."""
    stand_ins: dict[int, Any] = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        meta = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        stand_ins[id(tensor)] = nn.Parameter(meta, requires_grad=False) if is_parameter else meta
    return copy.deepcopy(model, stand_ins).eval()
