"""A small model with two levels, and artifacts of it, each made once per session by the process that needs it first."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from filelock import FileLock

from tests.cli.invoking import invoke
from tvm_na.deploy import compiler, manifest
from tvm_na.deploy.weights import write_weights
from tvm_na.models import NAModel, create_model, registry

SMALL = registry.ModelSpec("small_for_tests", 16, (1, 1), (2, 4), 2.0, 0.0, parameters=0, kernel_size=3)
SIZE, CLASSES = 32, 7
#: The outputs' error budget of an artifact.
LIMIT = 1e-4


@dataclass(frozen=True)
class Made:
    """An artifact, and what was said while it was made: by the command line, or as warnings."""

    path: Path
    said: list[str]


def small_model(seed: int = 1, backend: str = "reference", levels: int = 2) -> NAModel:
    """A model of ``SMALL``, or of its first level, whose every bias and norm counts; the same for the same seed."""
    sizes = {"depths": SMALL.depths[:levels], "num_heads": SMALL.num_heads[:levels]}
    with mock.patch.dict(registry.SPECS, {SMALL.name: SMALL}):
        torch.manual_seed(seed)
        model = create_model(SMALL.name, num_classes=CLASSES, backend=backend, **sizes).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], list[str]]) -> Made:
    """The artifact that ``make`` puts into a folder, and what it returns; made by one process of a session alone."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"artifact-{name}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "said.json").exists():
            folder.mkdir(exist_ok=True)
            said = make(folder / "small.artifact")
            (folder / "said.json").write_text(json.dumps(said), encoding="utf-8")
    return Made(folder / "small.artifact", json.loads((folder / "said.json").read_text(encoding="utf-8")))


def by_command(*options: object, target: str = "native", levels: int = 2) -> Callable[[Path], list[str]]:
    """Makes an artifact, for this machine or a target, by the command line, of a checkpoint of so many levels."""
    spec = dataclasses.replace(SMALL, depths=SMALL.depths[:levels], num_heads=SMALL.num_heads[:levels])

    def make(output: Path) -> list[str]:
        weights = output.with_name("small.pth")
        torch.save(small_model(levels=levels).state_dict(), weights)
        model = ["compile", SMALL.name, "--weights", weights, "--num-classes", CLASSES, "--input-size", SIZE]
        with mock.patch.dict(registry.SPECS, {SMALL.name: spec}):
            return [invoke(*model, "--target", target, "-o", output, *options).output]

    return make


def tvm_artifact(factory: pytest.TempPathFactory) -> Made:
    """An artifact of the format ``tvm`` for this machine."""
    return once(factory, "tvm", by_command("--format", "tvm", "--records", "off"))


def wasm_artifact(factory: pytest.TempPathFactory) -> Made:
    """An artifact of the format ``wasm``, of a model of one level."""
    make = by_command("--format", "wasm", "--records", "off", target="llvm-wasm32", levels=1)
    return once(factory, "wasm", make)


def for_target(target: str) -> Callable[[Path], list[str]]:
    """Makes an artifact of the first level, of the format ``tvm``, for a target; says what the compiler warned of."""

    def make(output: Path) -> list[str]:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", UserWarning)
            compiler.compile(
                small_model(levels=1),
                torch.zeros(1, 3, SIZE, SIZE),
                target,
                output=output,
                format="tvm",
                records="off",
                preprocessing=dataclasses.replace(registry.IMAGENET_224, input_size=SIZE),
            )
        return [str(warning.message) for warning in warned]

    return make


def add_expected(folder: Path, wrong_by: float = 0.0, levels: int = 2) -> None:
    """Put an input and its outputs into an artifact, as the compiler does where it cannot run it.

    One output is wrong by ``wrong_by``, relative to the largest.
    """
    images = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        right = small_model(levels=levels)(images).numpy()
    right[0, 0] += wrong_by * np.abs(right).max()
    write_weights(folder / manifest.EXPECTED, {"input": images.numpy(), "output_0": right})
    seal(folder)


def seal(folder: Path, **changes: Any) -> None:
    """Write an artifact's manifest anew, for its files as they are now and with other values in some fields."""
    found = dataclasses.replace(manifest.read_manifest(folder), **changes)
    manifest.write_manifest(folder, dataclasses.replace(found, files=manifest.describe_files(folder)))
