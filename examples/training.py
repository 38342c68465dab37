"""What examples/train_digits.py and examples/finetune_photos.py share: a loop that can be stopped and repeated.

Whatever a run draws at random follows from its seed and from where it is, so that a run that was interrupted,
resumed or repeated ends with the same bits (on one machine, with the same number of threads).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from guards import Stop
from recipe import Recipe, optimizer_of
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from saving import Checkpoints
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tvm_na.cli.common import build
from tvm_na.functional import Backend
from tvm_na.jit.build import is_supported
from tvm_na.models import NAModel, problems_of, training_problems_of
from tvm_na.nn import NeighborhoodAttention2D

#: Inputs ``[B, 3, H, W]`` and their classes, int64 ``[B]``.
Batch = tuple[Tensor, Tensor]


@dataclass
class Totals:
    """What an epoch has summed up so far."""

    loss: float = 0.0
    correct: int = 0
    seen: int = 0

    def __str__(self) -> str:
        seen = max(self.seen, 1)
        return f"loss {self.loss / seen:.3f}, accuracy {self.correct / seen:.1%}"


class Learner:
    """A model, and all that its training has come to.

    Args:
        model: What learns, on its device; with frozen parameters it stays in evaluation mode.
        recipe: How.
        settings: What a resumed run must have in common with this one, by the names of the options.
    """

    def __init__(self, model: NAModel, recipe: Recipe, settings: dict[str, Any]) -> None:
        self.model, self.recipe, self.settings = model, recipe, settings
        self.optimizer = optimizer_of(model, recipe)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, recipe.rate)
        average = get_ema_multi_avg_fn(recipe.ema) if recipe.ema else None
        self.average = AveragedModel(model, multi_avg_fn=average) if average else None
        self.learning = [p for p in model.parameters() if p.requires_grad]
        self.frozen = len(self.learning) < len(list(model.parameters()))
        self.device = self.learning[0].device
        self.steps, self.totals, self.accuracy, self.best = 0, Totals(), 0.0, -1.0

    @property
    def epoch(self) -> int:
        """Epochs that are complete."""
        return self.steps // self.recipe.steps

    @property
    def between_epochs(self) -> bool:
        """Whether the last epoch that was begun is complete."""
        return self.steps % self.recipe.steps == 0

    @property
    def done(self) -> bool:
        """Whether there is nothing left to train."""
        return self.steps >= self.recipe.total

    @property
    def result(self) -> NAModel:
        """What is evaluated and used: the model, or the moving average of it."""
        return self.average.module if self.average else self.model

    def step(self, group: Sequence[Batch]) -> None:
        """Update the weights by the mean loss over all samples of the batches."""
        count = sum(len(y) for _, y in group)
        self.model.train(not self.frozen)
        self.optimizer.zero_grad()
        for x, y in group:
            if len(y):
                self._learn(x.to(self.device), y.to(self.device), count)
        if count:  # 0 if every image was broken
            nn.utils.clip_grad_norm_(self.learning, 1.0)
        self.optimizer.step()
        self.scheduler.step()
        if self.average:
            self.average.update_parameters(self.model)
        self.steps += 1

    def _learn(self, x: Tensor, y: Tensor, count: int) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp):
            logits = self.model(x)
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits.float(), y, label_smoothing=smoothing, reduction="sum")
        (loss / count).backward()
        self.totals.loss += loss.item()
        self.totals.correct += int((logits.argmax(1) == y).sum())
        self.totals.seen += len(y)

    def state(self) -> dict[str, Any]:
        """All but the model's weights, of tensors, numbers, strings and containers."""
        return {
            "settings": self.settings,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "progress": [self.steps, self.accuracy, self.best],
            "totals": vars(self.totals),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }

    def load(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Be where :meth:`state` was taken.

        Raises:
            ValueError: It was taken in a run with other settings.
        """
        for name, value in self.settings.items():
            came = state["settings"].get(name)
            if came != value:
                raise ValueError(
                    f"{name}: required {came!r} as in the run to go on with, or --no-resume, got {value!r}"
                )
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.steps, self.accuracy, self.best = state["progress"]
        self.totals = Totals(**state["totals"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["cuda_rng"])


def begin(learner: Learner, checkpoints: Checkpoints, resume: bool, out: Console) -> None:
    """Put the learner where the run in a folder ended; without ``resume``, forget that run.

    Raises:
        ValueError: That run had other settings, or its checkpoint is damaged.
    """
    if not resume:
        checkpoints.clear()
    elif kept := checkpoints.load():
        learner.load(*kept)
        out.print(f"going on after step {learner.steps} of {learner.recipe.total}")


def build_for(learner: Learner, input_size: int) -> None:
    """Build ahead, with a progress bar, what kernels the model's backend wants on this machine's CPU.

    Those of training are in the precision that the recipe says, those of evaluation in that of the weights.

    Raises:
        typer.Exit: That is impossible, and was said.
    """
    model = learner.model
    backends = {module.backend for module in model.modules() if isinstance(module, NeighborhoodAttention2D)}
    if backends != {Backend.REFERENCE} and next(model.parameters()).device.type == "cpu":
        training = training_problems_of(model, input_size)
        mixed = (problem.with_dtype("bfloat16") for problem in training) if learner.recipe.amp else training
        build(problem for problem in (*mixed, *problems_of(model, input_size)) if is_supported(problem))


def accuracy_of(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Share of the samples whose class the model says; in float32 and evaluation mode, which it leaves it in."""
    model.eval()
    device = next(model.parameters()).device
    correct = seen = 0
    with torch.inference_mode():
        for x, y in batches:
            correct += int((model(x.to(device)).argmax(1).cpu() == y).sum()) if len(y) else 0
            seen += len(y)
    return correct / max(seen, 1)


@dataclass
class Loop:
    """The training of a learner.

    Attributes:
        learner: What learns.
        batches: From an epoch and a number of batches to leave out at its beginning, to the others.
        evaluate: The accuracy so far, after every epoch.
        checkpoints: Where the run is kept, after every epoch and when it ends early.
        out: Where it shows how it goes.
        seconds: What :meth:`run` took.
        images: How many it has trained on.
    """

    learner: Learner
    batches: Callable[[int, int], Iterable[Batch]]
    evaluate: Callable[[], float]
    checkpoints: Checkpoints
    out: Console
    seconds: float = field(default=0.0, init=False)
    images: int = field(default=0, init=False)

    def run(self, stop: Stop) -> None:
        """Train until the end, or until ``stop`` says so."""
        start, learner = time.perf_counter(), self.learner
        columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
        shown = TextColumn("{task.description}", markup=False)
        with Progress(*columns, TimeRemainingColumn(), shown, console=self.out) as progress:
            epochs = learner.recipe.epochs
            task = progress.add_task("", total=learner.recipe.total, completed=learner.steps, epoch=learner.epoch + 1)
            while not learner.done and not stop.reason:
                progress.update(task, epoch=f"{learner.epoch + 1}/{epochs}")
                for _ in self._epoch(stop):
                    progress.update(task, completed=learner.steps, description=str(learner.totals))
                self._end_of_epoch(progress.console)
                self.checkpoints.save(learner.model.state_dict(), learner.state(), learner.steps)
        self.seconds = time.perf_counter() - start

    def _epoch(self, stop: Stop) -> Iterator[None]:
        """What is left of an epoch, step by step."""
        learner, per_step = self.learner, self.learner.recipe.accumulate
        skipped = learner.steps % learner.recipe.steps * per_step
        batches = iter(self.batches(learner.epoch, skipped))
        before = learner.totals.seen
        while group := list(itertools.islice(batches, per_step)):
            learner.step(group)
            yield
            if learner.between_epochs or stop():
                break
        self.images += learner.totals.seen - before

    def _end_of_epoch(self, out: Console) -> None:
        learner = self.learner
        if not learner.between_epochs:
            return  # ended early
        learner.accuracy = self.evaluate()
        out.print(
            f"epoch {learner.epoch}: {learner.totals} in training, {learner.accuracy:.2%} in evaluation", markup=False
        )
        learner.totals = Totals()
