"""Damaged artifacts: one is refused by the promised error, or gives the model's numbers."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import torch

import tvm_na
from tests.deploy.artifacts import LIMIT, SIZE, by_command, small_model
from tests.fuzz.damage import damage_folder
from tests.fuzz.subject import Subject, promised
from tests.helpers import relative_error


class Artifacts(Subject):
    """See the module."""

    name = "artifacts"

    def __init__(self, folder: Path, whole: Path | None = None) -> None:
        """``whole`` is an artifact of :func:`small_model`; made here if None."""
        super().__init__(folder)
        self.whole = whole or folder / "whole.artifact"
        if whole is None:
            by_command("--format", "tvm", "--records", "off")(self.whole)
        self.images = torch.randn(2, 3, SIZE, SIZE)
        with torch.no_grad():
            self.right = small_model()(self.images)

    def round(self, rng: random.Random) -> None:
        """A copy is damaged and loaded."""
        copy = Path(shutil.copytree(self.whole, self.folder / f"copy-{rng.getrandbits(64):x}.artifact"))
        try:
            for _ in range(rng.choice([1, 1, 2, 4])):
                damage_folder(rng, copy)
            try:
                artifact = tvm_na.load(copy)
            except (ValueError, OSError) as error:
                promised(error, ValueError, FileNotFoundError)
                return
            assert relative_error(artifact(self.images), self.right) <= LIMIT
        finally:
            shutil.rmtree(copy)
