"""A training step: loss, gradients and AdamW, of NAT-Tiny beside Swin-T."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.suite.cases import Case, Part, Setting
from benchmarks.suite.networks import NAT, SWIN, network
from benchmarks.suite.turns import Call, Candidates
from tvm_na.functional import Backend
from tvm_na.models.base import NAModel
from tvm_na.reference.accuracy import relative_error

#: Of the gradient of any parameter, beside the same model in float64.
BUDGET = 1e-3


def _cases(setting: Setting) -> list[Case]:
    if not setting.is_main:
        return []
    if setting.quick:
        return [Case("eager, batch 2", {"batch": 2, "networks": [NAT], "seconds": 0.5})]
    about = {"batch": 8, "networks": [NAT, SWIN], "seconds": 30.0}
    return [Case("eager, batch 8", about, 300.0)]


def run(case: Case, setting: Setting) -> dict[str, Any]:
    """Measure steps in turns."""
    found, sources = Candidates(BUDGET), {}
    for name in case.about["networks"]:
        try:
            one = network(name, setting.quick)
        except RuntimeError as error:
            found.refused[name] = str(error)
            continue
        sources[name] = one.source
        model = one.model.train().to(setting.device)
        found.add(name, partial(_prepared, model, one.size, case.about["batch"], setting.device))
    about = {"batch": case.about["batch"], "sources": sources, "dtype": "float32"}
    return {**about, **found.timed(case.about["seconds"], setting.device)}


def loss_of(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Cross entropy."""
    return nn.functional.cross_entropy(model(x), target)


def _gradients(model: nn.Module, x: Tensor, target: Tensor) -> list[Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [g.cpu() for g in torch.autograd.grad(loss_of(model, x, target), parameters)]


def error_of_gradients(model: nn.Module, x: Tensor, target: Tensor) -> float:
    """The largest relative error of a parameter's gradient beside those in float64."""
    exact = copy.deepcopy(model).cpu().double()
    if isinstance(exact, NAModel):
        exact.set_backend(Backend.REFERENCE)
    right = _gradients(exact, x.cpu().double(), target.cpu())
    return max(relative_error(a, b) for a, b in zip(_gradients(model, x, target), right, strict=True))


def _prepared(model: nn.Module, size: int, batch: int, device: str) -> tuple[Call, float]:
    torch.manual_seed(1)
    x, target = torch.randn(batch, 3, size, size).to(device), torch.randint(0, 1000, (batch,)).to(device)
    error = error_of_gradients(model, x[:1], target[:1])  # kernels are of any batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model, x, target).backward()
        optimizer.step()

    step()
    return step, error


TRAINING = Part("training", _cases, run)
