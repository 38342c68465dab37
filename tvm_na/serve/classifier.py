"""What is served: a classifier of images, and the best classes of each."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tvm_na.models.registry import Preprocessing

TOP = 5
#: One class: its ``index``, its ``label`` (None without labels), its ``probability``.
Prediction = dict[str, Any]


@dataclass(frozen=True)
class Classifier:
    """A model, ready to be called.

    Attributes:
        name: What it is called.
        logits: ``[batch, 3, S, S]`` to ``[batch, classes]``, with S the preprocessing's ``input_size``.
        preprocessing: How an image becomes an input.
        classes: Their number.
        labels: One per class, or None.
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
