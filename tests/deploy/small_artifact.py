"""A model that is compiled in seconds, and artifacts of it."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tvm_na.deploy import compiler, manifest
from tvm_na.deploy.weights import write_weights
from tvm_na.models import create_model, registry

SPEC = registry.ModelSpec("smallest_for_tests", 16, (1,), (2,), 2.0, 0.0, parameters=0, kernel_size=3)
SIZE, CLASSES = 32, 7


def small_model() -> nn.Module:
    """A model of ``SPEC`` on the reference backend whose every bias and norm counts."""
    registry.SPECS[SPEC.name] = SPEC
    try:
        torch.manual_seed(1)
        model = create_model(SPEC.name, num_classes=CLASSES, backend="reference").eval()
    finally:
        del registry.SPECS[SPEC.name]
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def compiled(target: str, output: Path, **options: Any) -> list[str]:
    """Make an artifact of :func:`small_model`, of the format ``tvm``; what the compiler warned of."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        compiler.compile(
            *(small_model(), torch.zeros(1, 3, SIZE, SIZE), target),
            output=output,
            format="tvm",
            records="off",
            preprocessing=dataclasses.replace(registry.IMAGENET_224, input_size=SIZE),
            **options,
        )
    return [str(warning.message) for warning in warned]


def add_expected(folder: Path, wrong_by: float = 0.0) -> None:
    """Put an input and its outputs into an artifact, as the compiler does where it cannot run it.

    Args:
        folder: The artifact.
        wrong_by: What is added to one output, relative to the largest.
    """
    images = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        right = small_model()(images).numpy()
    right[0, 0] += wrong_by * np.abs(right).max()
    write_weights(folder / manifest.EXPECTED, {"input": images.numpy(), "output_0": right})
    seal(folder)


def seal(folder: Path, **changes: Any) -> None:
    """Write an artifact's manifest anew, for its files as they are now and with other values in some fields."""
    found = dataclasses.replace(manifest.read_manifest(folder), **changes)
    manifest.write_manifest(folder, dataclasses.replace(found, files=manifest.describe_files(folder)))
