"""Damaged and strange checkpoints: every weight is the file's, or an error says why, and the model is as it was."""

from __future__ import annotations

import collections
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.fuzz.damage import damaged_bytes
from tests.fuzz.subject import Subject, promised
from tests.models.random_models import small
from tvm_na.models import load_checkpoint

_STRANGE: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "integer": lambda t: t.long(),
    "boolean": lambda t: t > 0,
    "complex": lambda t: t.to(torch.complex64),
    "NaN": lambda t: torch.full_like(t, float("nan")),
    "infinite": lambda t: torch.full_like(t, float("inf")),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "flat": lambda t: t.flatten(),
    "larger": lambda t: torch.cat([t, t]),
    "empty": lambda t: t[:0],
    "scalar": lambda t: t.sum(),
    "expanded": lambda t: torch.zeros(1).expand(t.shape),
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "text": lambda t: "weights",
    "nothing": lambda t: None,
    "a list": lambda t: [t],
    "a dictionary": lambda t: {"weight": t},
}


def _strange(rng: random.Random, state: dict[str, Any]) -> Any:
    content: dict[Any, Any] = collections.OrderedDict(state)
    for key in rng.sample(sorted(content), rng.choice([0, 1, 1, 3])):
        content[key] = _STRANGE[rng.choice(sorted(_STRANGE))](content[key])
    kind = rng.choice(["plain", "lost", "more", "wrapped", "deep", "itself", "number", "shared"])
    if kind == "lost":
        del content[rng.choice(sorted(content))]
    elif kind == "more":
        content[rng.choice(["more", "", "levels.99.x", 7])] = torch.zeros(rng.choice([0, 3]))
    elif kind == "wrapped":
        return {rng.choice(["model", "state_dict", "other"]): content}
    elif kind == "deep":
        for _ in range(rng.choice([3, 60])):
            content = {"state_dict": content}
    elif kind == "itself":
        content = {"state_dict": content}
        content[rng.choice(["model", "state_dict"])] = content
    elif kind == "number":
        return rng.choice([None, 3, [], {}, [content], (), {"state_dict": 1}])
    elif kind == "shared":
        first, second = rng.sample(sorted(content), 2)
        content[first] = content[second]
    return content


class Checkpoints(Subject):
    """See the module."""

    name = "checkpoints"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model = small(1)
        self.source: dict[str, Tensor] = dict(small(2).state_dict())
        torch.save(self.source, folder / "whole.pth")
        save_file(self.source, folder / "whole.safetensors")

    def _write(self, rng: random.Random) -> Path:
        kind = rng.choice(["strange", "strange", "pth", "safetensors"])
        file = self.folder / f"damaged.{'safetensors' if kind == 'safetensors' else 'pth'}"
        if kind == "strange":
            torch.save(_strange(rng, self.source), file)
            return file
        data = (self.folder / f"whole.{kind}").read_bytes()
        for _ in range(rng.choice([1, 1, 3])):
            data = damaged_bytes(rng, data)
        file.write_bytes(data)
        return file

    def round(self, rng: random.Random) -> None:
        """One file is loaded into the model."""
        file = self._write(rng)
        before = {key: value.clone() for key, value in self.model.state_dict().items()}
        strict, refused = rng.random() < 0.7, None
        try:
            report = load_checkpoint(self.model, file, strict=strict)
        except Exception as error:
            promised(error, ValueError)
            refused = error
        else:
            assert report.complete or not strict, str(report)
        for key, value in self.model.state_dict().items():
            assert refused is None or torch.equal(value, before[key]), f"{key} changed, in spite of {refused}"
            assert value.isfinite().all(), f"{key} is not finite"
