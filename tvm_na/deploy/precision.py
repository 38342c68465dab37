"""What the numbers of an artifact are: the same ones throughout, bfloat16 between layers, or float16 for weights alone.

Whatever it is, images and outputs of halves are float32.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from tvm_na.deploy.products import drop_unused
from tvm_na.deploy.rewrite import constant_of, dense, new_constant
from tvm_na.problems.base import HALVES
from tvm_na.reference.accuracy import LOGITS_BUDGET

#: Largest relative error of an artifact's outputs, by its precision: against the eager model in the same precision;
#: of halves against the model as it was, in float64, what rounding the weights changes included.
BUDGETS = {"float32": LOGITS_BUDGET, "float64": 1e-10, "bfloat16": 3e-2, "float16": 2e-3}


class Cast(nn.Module):
    """A model in a dtype that takes and gives float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = copy.deepcopy(model).to(dtype), dtype

    def forward(self, images: Tensor) -> Any:
        """The model's output or list of outputs, in float32."""
        outputs = self.model(images.to(self.dtype))
        return outputs.float() if isinstance(outputs, Tensor) else [out.float() for out in outputs]


def in_precision(model: nn.Module, example: Tensor, precision: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A model as it is to be compiled, the one that says what is right, and the example input of both."""
    if precision not in HALVES:
        dtype = getattr(torch, precision)
        if any(p.dtype != dtype for p in model.parameters()):
            model = copy.deepcopy(model).to(dtype)
        return model, model, example.to(dtype)
    exact = Cast(model, torch.float64)
    if precision == "bfloat16":
        return Cast(model, torch.bfloat16), exact, example.float()
    return copy.deepcopy(model).float(), exact, example.float()


def dtype_of(precision: str) -> torch.dtype:
    """What is computed in between layers."""
    found: torch.dtype = torch.float32 if precision == "float16" else getattr(torch, precision)
    return found


def round_weights(module: fx.GraphModule) -> None:
    """Let the products of a float32 graph have float16 weights.

    Raises:
        ValueError: one is too large for float16.
    """
    for node in [n for n in module.graph.nodes if n.target is dense]:
        x, weight, *others = node.args
        matrix = constant_of(module, weight)
        narrow = matrix.half()
        if narrow.isinf().any():
            largest = torch.finfo(torch.float16).max
            got = f"{matrix.abs().max():.3g} in {weight.target}"
            raise ValueError(f"precision: required weights of at most {largest:.0f} with float16, got {got}")
        with module.graph.inserting_before(node):
            node.args = (x, new_constant(module, f"{weight.name}_float16", narrow), *others)
    module.graph.eliminate_dead_code()
    drop_unused(module)
    module.recompile()


def widen_sums(module: fx.GraphModule) -> None:
    """Let means and sums over halves that no kernel of ours computes be float32 inside, as PyTorch's are."""
    aten = torch.ops.aten
    summing = {aten.mean.dim, aten.mean.default, aten.sum.dim_IntList, aten.adaptive_avg_pool2d.default}
    for node in [n for n in module.graph.nodes if n.target in summing]:
        value, given = node.meta["val"], node.args[0]
        if value.dtype not in (torch.bfloat16, torch.float16):
            continue
        with module.graph.inserting_before(node):
            wide = module.graph.call_function(aten._to_copy.default, (given,), {"dtype": torch.float32})
            wide.meta["val"] = given.meta["val"].float()
        with module.graph.inserting_after(node):
            narrow = module.graph.call_function(aten._to_copy.default, (node,), {"dtype": value.dtype})
            narrow.meta["val"] = value
        node.replace_all_uses_with(narrow, delete_user_cb=lambda user, own=narrow: user is not own)
        node.args, node.meta["val"] = (wide, *node.args[1:]), value.float()
    module.recompile()
