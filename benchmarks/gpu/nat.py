"""A whole model: its forward pass, call by call and as a CUDA graph, and a training step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu import cases
from benchmarks.gpu.folder import RunFolder
from benchmarks.gpu.points import best_kernel
from benchmarks.gpu.recorded import prepare_operators
from benchmarks.gpu.results import Results
from benchmarks.gpu.steps import Item
from benchmarks.gpu.worker import here
from tvm_na.functional import Backend
from tvm_na.measure.cuda import rotating
from tvm_na.models import create_model
from tvm_na.models.base import NAModel
from tvm_na.reference.accuracy import relative_error
from tvm_na.reference.case import WrongNumbers

#: Of logits in float16 through some twenty layers, relative to the largest.
BUDGET = 2e-2
_CHECKED = 2  # images
_ROUNDS = 5


def items(folder: RunFolder, results: Results) -> list[Item]:
    """The two passes; the first with the best kernels, the second with the default ones."""
    best = tuple(best_kernel(folder, results, problem) for problem in folder.plan.searched)
    return [Item("forward", ("forward", best)), Item("training step", ("training step", ()))]


def nat(what: str, best: Sequence[int]) -> dict[str, Any]:
    """Time one of them."""
    records = prepare_operators(best)
    torch.manual_seed(0)
    name, size, batch = here().folder.plan.model
    model = create_model(name, backend=here().device.backend, drop_path_rate=0.0).to(here().device.name)
    images = torch.randn(batch, 3, size, size, device=here().device.name)
    found = _forward(model.eval().half(), images.half()) if what == "forward" else _training(model.train(), images)
    return {"model": name, "input_size": size, "batch": batch, "records": records, **found}


def _exact(model: NAModel) -> NAModel:
    """The same model by the reference in float64."""
    exact = copy.deepcopy(model).double()
    exact.set_backend(Backend.REFERENCE)
    return exact


def _forward(model: NAModel, images: Tensor) -> dict[str, Any]:
    """Call by call, and by a graph; the host has no part in the latter's time."""
    with torch.inference_mode():
        expected = _exact(model)(images[:_CHECKED].double())
        replay = here().device.captured(lambda: model(images))
        errors = {}
        for name, call in {"eager": lambda: model(images), "graph": replay}.items():
            errors[name] = relative_error(call()[:_CHECKED], expected)
            if not errors[name] <= BUDGET:
                raise WrongNumbers(f"logits, {name}: required an error <= {BUDGET:g}, got {errors[name]:.1e}")
        others = [(images,), (images.flip(0),)]
        timings = cases.time_of({"eager": rotating(model, others), "graph": replay}, _ROUNDS, 0.0)
    return {"errors": errors, **{name: timing.to_dict() for name, timing in timings.items()}}


def _training(model: NAModel, images: Tensor) -> dict[str, Any]:
    """Loss and gradients in mixed precision."""
    target = torch.randint(0, 1000, (len(images),), device=images.device)

    def loss_of(one: nn.Module, some: Tensor) -> Tensor:
        one.zero_grad()
        with torch.autocast(images.device.type, torch.float16, enabled=some.dtype == torch.float32):
            loss = nn.functional.cross_entropy(one(some), target[: len(some)])
        loss.backward()
        return loss.detach()

    exact = _exact(model)
    wanted, found = loss_of(exact, images[:_CHECKED].double()), loss_of(model, images[:_CHECKED])
    error = relative_error(found, wanted)
    largest = max(relative_error(*pair) for pair in zip(_gradients(model), _gradients(exact), strict=True))
    if not (error <= BUDGET and largest < 1):  # gradients of single parameters are small sums of large numbers
        raise WrongNumbers(f"loss: required an error <= {BUDGET:g}, got {error:.1e}; gradients: {largest:.1e}")
    timing = cases.time_of({"step": lambda: loss_of(model, images)}, _ROUNDS, 0.0)["step"]
    return {"loss_error": error, "largest_gradient_error": largest, "step": timing.to_dict()}


def _gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]
