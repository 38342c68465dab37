"""What is served: a classifier of images, made of a model by name or of an artifact."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tvm_na.deploy.artifact import load
from tvm_na.deploy.called import Artifact
from tvm_na.images.preprocessing import Preprocessing
from tvm_na.models import NAModel, attention_maps

TOP = 5
#: One class: its ``index``, its ``label`` (None without labels), its ``probability``.
Prediction = dict[str, Any]
#: How far the logits of an artifact and of an eager copy of its model may differ, relative to the largest.
_SAME_MODEL = 1e-3


@dataclass(frozen=True)
class Classifier:
    """A model, ready to be called.

    Attributes:
        logits: ``[batch, 3, S, S]`` to ``[batch, classes]``, with S the preprocessing's ``input_size``.
        random_weights: Whether its answers mean nothing.
        attention: One input ``[3, S, S]`` and a pixel (row, column) to a map ``[H_s, W_s]`` per stage, as
            :func:`tvm_na.models.attention_maps` gives them; None if there is no eager model that could tell.
        no_attention: Why not, for whoever asks.

    Raises:
        ValueError: The labels are not as many as the classes.
    """

    name: str
    logits: Callable[[Tensor], Tensor]
    preprocessing: Preprocessing
    classes: int
    labels: tuple[str, ...] | None = None
    random_weights: bool = False
    attention: Callable[[Tensor, tuple[int, int]], list[Tensor]] | None = None
    no_attention: str = ""
    # One call of a model at a time: attention maps hook into it, and two calls would share the cores.
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != self.classes:
            raise ValueError(f"labels: required {self.classes}, one per class, got {len(self.labels)}")

    def predict(self, inputs: list[Tensor]) -> list[list[Prediction] | Exception]:
        """The best classes of each input ``[3, S, S]``, best first; an exception where its logits are no numbers.

        Raises:
            RuntimeError: The model gave another shape than ``[batch, classes]``.
        """
        with self._lock, torch.inference_mode():
            logits = self.logits(torch.stack(inputs))
        if logits.shape != (len(inputs), self.classes):
            raise RuntimeError(f"model: required logits {(len(inputs), self.classes)}, got {tuple(logits.shape)}")
        return [self._best(row) for row in logits.double()]

    def attend(self, x: Tensor, pixel: tuple[int, int]) -> list[Tensor]:
        """The attention maps of a pixel of an input ``[3, S, S]``; see ``attention``."""
        if self.attention is None:
            raise ValueError(f"attention: required an eager model, got none: {self.no_attention}")
        with self._lock:
            return self.attention(x, pixel)

    def _best(self, logits: Tensor) -> list[Prediction] | Exception:
        best = logits.softmax(-1).topk(min(TOP, self.classes))
        found = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        if not all(math.isfinite(p) for _, p in found):
            return RuntimeError("model: required finite logits, got inf or NaN")
        return [{"index": i, "label": self.labels[i] if self.labels else None, "probability": p} for i, p in found]


def eager_classifier(
    model: NAModel, name: str, preprocessing: Preprocessing, labels: tuple[str, ...] | None, random_weights: bool
) -> Classifier:
    """A classifier that calls a model, in evaluation mode and with a head, as it is, and offers overlays."""
    return Classifier(
        name=name,
        logits=model,
        preprocessing=preprocessing,
        classes=model.num_classes,
        labels=labels,
        random_weights=random_weights,
        attention=partial(attention_maps, model),
    )


def artifact_classifier(
    path: str | os.PathLike[str], labels: tuple[str, ...] | None, eager_copy: Callable[[str, int], NAModel] | None
) -> Classifier:
    """A classifier that calls an artifact; with an eager copy of its model it offers overlays.

    ``eager_copy`` makes the copy, in evaluation mode, from the model's name and the number of its classes.

    Raises:
        FileNotFoundError: There is no artifact.
        ValueError: It cannot run here, is no classifier of RGB images, or the copy gives other logits.
    """
    artifact = load(path)
    manifest = artifact.manifest
    preprocessing = _preprocessing(artifact)
    classifier: dict[str, Any] = {
        "name": manifest.model["name"],
        "logits": _logits(artifact),
        "preprocessing": preprocessing,
        "classes": _classes(artifact),
        "labels": labels,
        "random_weights": manifest.model["weights"] is None,
    }
    if eager_copy is None:
        why = "it runs a compiled artifact, which gives no attention maps; start it with --weights for an eager copy"
        return Classifier(**classifier, no_attention=why)
    copy = eager_copy(classifier["name"], classifier["classes"])
    _check_same(artifact, copy, preprocessing.input_size)
    return Classifier(**classifier, attention=partial(attention_maps, copy))


def _preprocessing(artifact: Artifact) -> Preprocessing:
    if artifact.manifest.preprocessing is None:
        raise ValueError(f"artifact: required one that knows its preprocessing, got {artifact.path} without")
    preprocessing = Preprocessing(**artifact.manifest.preprocessing)
    size = preprocessing.input_size
    if artifact.manifest.input.shape[1:] != (3, size, size):
        raise ValueError(f"artifact: required the input [batch, 3, {size}, {size}], got {artifact.manifest.input}")
    return preprocessing


def _classes(artifact: Artifact) -> int:
    outputs = artifact.manifest.outputs
    if artifact.manifest.returns_list or len(outputs[0].shape) != 2 or outputs[0].shape[1] is None:
        got = ", ".join(str(output) for output in outputs)
        raise ValueError(f"artifact: required one output [batch, classes], got {got}")
    return int(outputs[0].shape[1])


def _logits(artifact: Artifact) -> Callable[[Tensor], Tensor]:
    """The artifact for any batch: one for a fixed batch is called with as many images, the last ones zero."""
    batch, dtype = artifact.manifest.batch, getattr(torch, artifact.manifest.input.dtype)

    def logits(images: Tensor) -> Tensor:
        images = images.to(dtype)
        if batch is None:
            return artifact(images)
        parts = []
        for part in images.split(batch):
            filler = part.new_zeros(batch - len(part), *part.shape[1:])
            parts.append(artifact(torch.cat([part, filler]))[: len(part)])
        return torch.cat(parts)

    return logits


def _check_same(artifact: Artifact, copy: NAModel, size: int) -> None:
    """ValueError unless artifact and copy are the same function of a random image."""
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs, ours = copy(x), _logits(artifact)(x).float()
    if theirs.shape != ours.shape:
        got = f"{theirs.shape[1]} classes in place of {ours.shape[1]}"
        raise ValueError(f"weights: required the model that the artifact was made of, got {got}")
    error = float((theirs - ours).abs().max() / ours.abs().max())
    if not error <= max(_SAME_MODEL, artifact.manifest.check["budget"]):
        got = f"logits that differ by {error:.1e}"
        raise ValueError(f"weights: required the model that the artifact was made of, got {got}")
