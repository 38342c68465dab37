"""A small model with two levels, and an artifact that the command line makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tvm_na.cli import app
from tvm_na.models import create_model, registry

SMALL = registry.ModelSpec("small_for_tests", 16, (1, 1), (2, 4), 2.0, 0.0, parameters=0, kernel_size=3)
SIZE, CLASSES = 32, 7
#: The outputs' error budget of an artifact.
LIMIT = 1e-4


def invoke(*arguments: object, code: int = 0) -> Any:
    """What a command said, which must end with ``code``."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


@contextmanager
def made_by_command(folder: Path, *options: object) -> Iterator[tuple[Path, nn.Module, str]]:
    """An artifact, the model that it was made of (on the reference backend), and what the command line said.

    Meanwhile ``SMALL`` is one of the models.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.SPECS, SMALL.name, SMALL)
        torch.manual_seed(1)
        model = create_model(SMALL.name, num_classes=CLASSES, backend="reference").eval()
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))  # so that every bias and norm counts
        torch.save(model.state_dict(), folder / "small.pth")
        output = folder / "small.artifact"
        said = invoke(
            *("compile", SMALL.name, "--weights", folder / "small.pth", "--num-classes", CLASSES),
            *("--input-size", SIZE, "--target", "native", "-o", output, *options),
        )
        yield output, model, said.output
    shutil.rmtree(folder)
