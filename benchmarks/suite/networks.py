"""The models that are compared: NAT-Tiny, itself without attention, Swin-T and ConvNeXt-T."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.suite.turns import in_short
from tvm_na.models import create_model
from tvm_na.nn import NeighborhoodAttention2D
from tvm_na.ops import residual
from tvm_na.ops.launch import launcher_for
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.base import Problem

NAT, FLOOR, SWIN, CONVNEXT = "NAT-Tiny", "NAT-Tiny without attention", "Swin-T", "ConvNeXt-T"
NAMES = (NAT, FLOOR, SWIN, CONVNEXT)
#: What NAT-Tiny of another dtype is measured beside.
NAT_IN_FLOAT32 = f"{NAT}, float32"
#: Of NAT and itself without attention in a rehearsal, which has no others.
_TINY = "nat_pico"


@dataclass(frozen=True)
class Network:
    """A model in evaluation mode with random weights, whose it is, and its height and width in pixels."""

    model: nn.Module
    source: str
    size: int


class _Logits(nn.Module):
    """A model of transformers that gives its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).logits
        return logits


#: The window of an attention that is taken out. No model has it, so whoever launches kernels tells it apart.
_NO_WINDOW = (1, 1)


def _added(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """In place of attention: every projection remains, and is read."""
    return query + key + value


def without_attention(model: nn.Module) -> nn.Module:
    """A copy of which no neighborhood attention attends, and all else is as it was, to be compiled as it is.

    :func:`attention_taken_out` must be entered when what a compiler made of it is first called.
    """
    floor = copy.deepcopy(model)
    for module in floor.modules():
        if type(module) is NeighborhoodAttention2D:  # and remains one, for whom blocks are made of fewer operators
            module._attend = _added  # type: ignore[method-assign]
            module.kernel_size, module.rpb = _NO_WINDOW, None
    return floor


@contextlib.contextmanager
def attention_taken_out() -> Iterator[None]:
    """While this lasts, operators that hold half a block find no kernel for a window that was taken out, but a sum."""

    def launcher(problem: Problem, device: torch.device) -> Callable[..., tuple[Tensor, ...]]:
        if isinstance(problem, NAProblem) and problem.kernel_size == _NO_WINDOW:
            return lambda tensors, scale: (_added(*tensors[:3]),)
        return launcher_for(problem, device)

    with patch.object(residual, "launcher_for", launcher):
        yield


def network(name: str, quick: bool = False) -> Network:
    """A network by its name, with random weights, drop path 0.

    Raises:
        RuntimeError: neither timm nor transformers gives it.
    """
    torch.manual_seed(0)
    if name in (NAT, FLOOR):
        ours = _TINY if quick else "nat_tiny"
        model = create_model(ours, backend="compiled", drop_path_rate=0.0).eval()
        return Network(without_attention(model) if name == FLOOR else model, "tvm_na.models", 64 if quick else 224)
    reasons = []
    for source, make in (("timm", _of_timm), ("transformers", _of_transformers)):
        try:
            return Network(make(name).eval(), source, 224)
        except (
            Exception
        ) as error:  # timm imports torchvision, which fails in its own ways where it is not this PyTorch's
            reasons.append(f"{source}: {in_short(error)}")
    raise RuntimeError("; ".join(reasons))


def _of_timm(name: str) -> nn.Module:
    import timm

    names = {SWIN: "swin_tiny_patch4_window7_224", CONVNEXT: "convnext_tiny"}
    model: nn.Module = timm.create_model(names[name], pretrained=False, drop_path_rate=0.0)
    return model


def _of_transformers(name: str) -> nn.Module:
    import transformers

    makers: dict[str, Callable[[], nn.Module]] = {
        SWIN: lambda: transformers.SwinForImageClassification(
            transformers.SwinConfig(num_labels=1000, drop_path_rate=0.0)
        ),
        CONVNEXT: lambda: transformers.ConvNextForImageClassification(
            transformers.ConvNextConfig(num_labels=1000, drop_path_rate=0.0)
        ),
    }
    return _Logits(makers[name]())
