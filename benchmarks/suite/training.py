"""A training step: loss, gradients and AdamW, of NAT-Tiny beside Swin-T; in bfloat16 under autocast, beside float32."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.suite.cases import Case, Part, Setting
from benchmarks.suite.networks import NAT, NAT_IN_FLOAT32, SWIN, network
from benchmarks.suite.turns import Call, Candidates
from tvm_na.functional import Backend
from tvm_na.models.base import NAModel
from tvm_na.reference.accuracy import relative_error

#: Beside the same model in float64: of the gradient of any parameter, and under autocast of all of them together.
BUDGET, BUDGET_UNDER_AUTOCAST = 1e-3, 3e-2
#: Weights stay in float32, and so does what is numerically delicate.
_AUTOCAST = "bfloat16"


def _cases(setting: Setting) -> list[Case]:
    if not setting.is_main and setting.dtype != _AUTOCAST:
        return []
    way = "eager" if setting.is_main else "autocast"
    batch, seconds = (2, 0.5) if setting.quick else (8, 30.0)
    networks = [NAT, SWIN] if setting.is_main and not setting.quick else [NAT]
    return [Case(f"{way}, batch {batch}", {"batch": batch, "networks": networks, "seconds": seconds}, 300.0)]


def run(case: Case, setting: Setting) -> dict[str, Any]:
    """Measure steps in turns."""
    found, sources = Candidates(BUDGET if setting.is_main else BUDGET_UNDER_AUTOCAST), {}
    labels = [(name, name, not setting.is_main) for name in case.about["networks"]]
    if not setting.is_main:
        labels.append((NAT_IN_FLOAT32, NAT, False))
    for label, name, autocast in labels:
        try:
            one = network(name, setting.quick)
        except RuntimeError as error:
            found.refused[label] = str(error)
            continue
        sources[name] = one.source
        model = one.model.train().to(setting.device)
        found.add(label, partial(_prepared, model, one.size, case.about["batch"], setting.device, autocast))
    about = {"batch": case.about["batch"], "sources": sources, "dtype": "float32" if setting.is_main else _AUTOCAST}
    return {**about, **found.timed(case.about["seconds"], setting.device)}


def loss_of(model: nn.Module, x: Tensor, target: Tensor, autocast: bool = False) -> Tensor:
    """Cross entropy; in bfloat16 where that is safe, if wanted."""
    with torch.autocast(x.device.type, getattr(torch, _AUTOCAST), enabled=autocast):
        return nn.functional.cross_entropy(model(x), target)


def _gradients(model: nn.Module, x: Tensor, target: Tensor, autocast: bool = False) -> list[Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [g.cpu() for g in torch.autograd.grad(loss_of(model, x, target, autocast), parameters)]


def error_of_gradients(model: nn.Module, x: Tensor, target: Tensor, autocast: bool = False) -> float:
    """The largest relative error of a parameter's gradient beside those in float64.

    Under autocast that of all gradients together, by their norms: bfloat16 rounds the terms of sums that all but
    cancel, whoever attends. That of the bias of NAT-Tiny's first norm is 0.67 off by ours, and 0.66 by the reference
    backend; all together are 0.01 off by either.
    """
    exact = copy.deepcopy(model).cpu().double()
    if isinstance(exact, NAModel):
        exact.set_backend(Backend.REFERENCE)
    right = _gradients(exact, x.cpu().double(), target.cpu())
    found = _gradients(model, x, target, autocast)
    if not autocast:
        return max(relative_error(a, b) for a, b in zip(found, right, strict=True))
    far = sum(float((a - b).square().sum()) for a, b in zip(found, right, strict=True))
    return math.sqrt(far / sum(float(b.square().sum()) for b in right))


def _prepared(model: nn.Module, size: int, batch: int, device: str, autocast: bool) -> tuple[Call, float]:
    torch.manual_seed(1)
    x, target = torch.randn(batch, 3, size, size).to(device), torch.randint(0, 1000, (batch,)).to(device)
    error = error_of_gradients(model, x[:1], target[:1], autocast)  # kernels are of any batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model, x, target, autocast).backward()
        optimizer.step()

    step()
    return step, error


TRAINING = Part("training", _cases, run)
