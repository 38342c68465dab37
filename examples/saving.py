"""Files of a training run: a checkpoint that is there whole or not at all, and weights for everybody."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_WEIGHTS, _STATE = "model.safetensors", "state.pt"


def _to_disk(path: Path) -> None:
    """Wait until a file or a folder would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_weights(tensors: dict[str, Tensor], path: Path) -> None:
    """Weights as safetensors; a file that was there stays until the new one is whole."""
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
    _to_disk(partial)
    partial.replace(path)


class Checkpoints:
    """The last checkpoint of a run, a folder ``checkpoint-<steps>`` with its weights and everything else.

    Args:
        folder: Where it lies; made when there is something to keep.

    Raises:
        ValueError: ``folder`` is a file.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"output: required a folder, got the file {folder}")
        self.folder = folder

    def latest(self) -> Path | None:
        """The newest checkpoint, None if there is none."""
        found = self._all()
        return found[-1] if found else None

    def _all(self) -> list[Path]:
        found = [path for path in self.folder.glob("checkpoint-*") if path.name[11:].isdecimal()]
        return sorted(found, key=lambda path: int(path.name[11:]))

    def save(self, weights: dict[str, Tensor], state: dict[str, Any], steps: int) -> None:
        """Keep weights and ``state`` in place of what was kept before."""
        path, partial = self.folder / f"checkpoint-{steps}", self.folder / ".checkpoint.partial"
        if path in (older := self._all()):
            return  # nothing was learnt since
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_weights(weights, partial / _WEIGHTS)
        torch.save(state, partial / _STATE)
        _to_disk(partial / _STATE)
        partial.rename(path)
        _to_disk(self.folder)
        for other in older:
            shutil.rmtree(other)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Weights and state of the newest checkpoint, None if there is none; no code in the files runs.

        Raises:
            ValueError: It is damaged.
        """
        path = self.latest()
        if path is None:
            return None
        unreadable = (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError)
        try:
            return load_file(path / _WEIGHTS), torch.load(path / _STATE, map_location="cpu", weights_only=True)
        except unreadable as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"output: required a whole checkpoint, or --no-resume, got {path}: {why}") from error

    def clear(self) -> None:
        """Forget what was kept."""
        for path in self._all():
            shutil.rmtree(path)
