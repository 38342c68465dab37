"""How a model is trained: by AdamW, with a learning rate that rises and then falls as a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tvm_na.models import NAModel


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        epochs: Passes over the data.
        steps: Updates of the weights in an epoch.
        lr: The highest learning rate: it rises linearly to there, then falls to 0 as a cosine.
        warmup: Share of all steps in which it rises.
        weight_decay: Of matrices and convolutions; norms, biases and relative position biases have none.
        label_smoothing: Share of the target that is spread over all classes.
        accumulate: Batches that share an update.
        amp: Compute in bfloat16 where autocast does.
        ema: Decay of a moving average of the weights, which is then what is evaluated; 0 for none.
    """

    epochs: int
    steps: int
    lr: float
    warmup: float = 0.1
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    accumulate: int = 1
    amp: bool = False
    ema: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr: required a learning rate above 0, got {self.lr}")

    @property
    def total(self) -> int:
        """Updates of the whole run."""
        return self.epochs * self.steps

    def rate(self, step: int) -> float:
        """Share of the highest learning rate at a step."""
        rising = max(1, round(self.warmup * self.total))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.total - rising)))


def optimizer_of(model: NAModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over what of ``model`` requires a gradient."""
    spared = model.no_weight_decay()
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in learning if p.ndim > 1 and name not in spared]
    others = [p for name, p in learning if p.ndim <= 1 or name in spared]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    # Fused: one pass over the weights, a third of a small model's time otherwise.
    return torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
