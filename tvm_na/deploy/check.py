"""What an artifact must compute: the eager reference's outputs for random inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tvm_na.deploy.export import with_backend
from tvm_na.functional import Backend
from tvm_na.reference.accuracy import relative_error

# A batch of one, the batch that the model was traced with, and another.
_BATCHES = (1, 2, 3)


@dataclass(frozen=True)
class Expected:
    """Random inputs, one of each batch, and the right outputs for each; whether the model gives them as a list."""

    inputs: list[Tensor]
    outputs: list[list[Tensor]]
    returns_list: bool

    def error_of(self, function: Callable[[Tensor], Any]) -> float:
        """The largest relative error of a function's outputs for the inputs."""
        errors = []
        for images, rights in zip(self.inputs, self.outputs, strict=True):
            outs = _as_list(function(images))
            errors += [relative_error(out, right) for out, right in zip(outs, rights, strict=True)]
        return max(errors)


def reference_of(model: nn.Module, example: Tensor, batch: int | None) -> Expected:
    """What the eager reference computes of inputs like ``example``, for a batch of ``batch`` or for several (None).

    Raises:
        ValueError: the model gives something else than tensors ``[batch, ...]``.
    """
    reference = with_backend(model, Backend.REFERENCE)
    inputs = [_random_like(example, size) for size in ((batch,) if batch else _BATCHES)]
    with torch.no_grad():
        returned = [reference(images) for images in inputs]
    outputs = [_as_list(out) for out in returned]
    for images, outs in zip(inputs, outputs, strict=True):
        for out in outs:
            _require_batch(out, len(images))
    return Expected(inputs, outputs, not isinstance(returned[0], Tensor))


def name_of(dtype: torch.dtype) -> str:
    """``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def _random_like(example: Tensor, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn((batch, *example.shape[1:]), generator=generator, dtype=example.dtype)


def _require_batch(out: Any, batch: int) -> None:
    if not isinstance(out, Tensor) or out.ndim < 1 or out.shape[0] != batch:
        got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"model: required a tensor [batch, ...] or a list of such, got {got}")


def _as_list(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
