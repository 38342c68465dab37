"""Train a NAT on photographs of your own, in one folder per class.

``python examples/finetune_photos.py photos --model nat_tiny --weights nat_tiny.pth`` takes ``photos/cat/1.jpg``,
``photos/dog/2.jpg`` and so on. Without ``--weights`` training starts from random ones. Repeat the command to go on
after Ctrl-C.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from guards import reproducible, stopping
from photos import Batches, Photo, classes_of, digest_of, find_photos, split
from recipe import Recipe
from rich.console import Console
from saving import Checkpoints, save_weights
from torch.utils.checkpoint import checkpoint
from training import Learner, Loop, accuracy_of, begin, build_for

from tvm_na.cli.common import console, reports_errors, warn
from tvm_na.cli.options import BackendName
from tvm_na.images.preprocessing import Preprocessing
from tvm_na.models import NAModel, create_model, load_checkpoint
from tvm_na.models.layers import NABlock
from tvm_na.models.registry import get_spec


@dataclass(frozen=True)
class Settings:
    """What the result follows from; the command's options have the same names.

    Attributes:
        model: One of :func:`tvm_na.models.list_models`.
        epochs: Passes over the photographs.
        batch_size: The most photographs that are computed at a time.
        accumulate: Batches that share an update of the weights.
        lr: The highest learning rate.
        weight_decay: Of matrices and convolutions.
        label_smoothing: Share of the target that is spread over all classes.
        seed: Of the split, of random weights, of order and crops.
        input_size: Pixels in height and width that the model sees; None for those of its checkpoints.
        val_share: Share of each class that is kept for validation where there is no folder for it.
        freeze_backbone: Train the head alone.
        ema: Decay of a moving average of the weights, 0 for none.
        amp: Compute in bfloat16 where autocast does.
    """

    model: str = "nat_mini"
    epochs: int = 10
    batch_size: int = 16
    accumulate: int = 1
    lr: float = 2e-4
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    seed: int = 0
    input_size: int | None = None
    val_share: float = 0.2
    freeze_backbone: bool = False
    ema: float = 0.0
    amp: bool = False

    @property
    def preprocessing(self) -> Preprocessing:
        """How a photograph becomes the model's input."""
        ours = get_spec(self.model).preprocessing
        return replace(ours, input_size=self.input_size or ours.input_size)


@dataclass(frozen=True)
class Machine:
    """What the result does not follow from.

    Attributes:
        backend: ``auto``, ``compiled`` or ``reference``.
        device: Where it is computed.
        threads: Threads of the CPU; None for PyTorch's number.
        workers: Processes that read photographs; 0 for none but this one.
        checkpoint_activations: Keep no activations inside blocks, but compute them again: less memory, more time.
        resume: Go on with the run in the folder, if there is one.
        time_limit: Seconds after which training ends early; None for none.
    """

    backend: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    workers: int = 0
    checkpoint_activations: bool = False
    resume: bool = True
    time_limit: float | None = None


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        accuracy: The best on the photographs for validation.
        weights: The weights that had it; None if no epoch has ended.
        labels: The file with the classes.
        ended: Why it ended before its last epoch; empty if it did not.
    """

    accuracy: float
    weights: Path | None
    labels: Path
    ended: str


def model_of(settings: Settings, classes: int, weights: Path | None, machine: Machine) -> NAModel:
    """The model with a head for the classes, on its device; says what of the weights was adapted.

    Raises:
        TypeError, ValueError, FileNotFoundError: as :func:`tvm_na.models.load_checkpoint` does.
    """
    try:
        device = torch.device(machine.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch has no CUDA
        raise ValueError(f"device: required one that PyTorch has, got {machine.device!r}") from error
    model = create_model(settings.model, num_classes=classes, backend=machine.backend)
    if weights is not None and (report := load_checkpoint(model, weights)).adapted:
        warn(f"{weights} does not fit as it is\n{report}")
    if settings.freeze_backbone:
        model.requires_grad_(False)
        model.head.requires_grad_(True)
    return model.to(device)


def checkpoint_blocks(model: NAModel) -> None:
    """Let every block keep its input alone for the backward pass. Names of parameters stay as they are."""
    for block in model.modules():
        if isinstance(block, NABlock):
            vars(block)["forward"] = partial(checkpoint, block.forward, use_reentrant=False)


def data_of(photos: Path, val: Path | None, settings: Settings, workers: int) -> tuple[list[str], Batches, Batches]:
    """The classes, batches for training and batches for validation.

    Raises:
        FileNotFoundError, ValueError: A folder is not as it must be.
    """
    classes = classes_of(photos)
    found = find_photos(photos, classes)
    parts: tuple[list[Photo], list[Photo]]
    parts = (found, find_photos(val, classes)) if val else split(found, settings.val_share, settings.seed)
    training, validation = (
        Batches(part, settings.preprocessing, settings.batch_size, settings.seed, workers) for part in parts
    )
    return classes, training, validation


def finetune(
    photos: Path,
    folder: Path,
    settings: Settings,
    machine: Machine,
    out: Console,
    *,
    weights: Path | None = None,
    val: Path | None = None,
) -> Result:
    """Train on photographs, keeping in ``folder`` a checkpoint, the best weights and the labels.

    Args:
        photos: A folder with a folder of images per class.
        folder: Where everything goes; made if there is none.
        settings: What the result follows from.
        machine: How it is computed.
        out: Where it shows how it goes.
        weights: A checkpoint to start from; None for random weights.
        val: Such a folder as ``photos`` for validation; None to keep a share of ``photos`` for it.

    Raises:
        TypeError, ValueError, FileNotFoundError: name the argument, what was required and what came.
    """
    classes, training, validation = data_of(photos, val, settings, machine.workers)
    sizes = f"{len(training.photos)} images for training, {len(validation.photos)} for validation"
    out.print(f"{len(classes)} classes, {sizes}")
    checkpoints = Checkpoints(folder)
    if weights is None and not (machine.resume and checkpoints.latest()):
        warn("no --weights: training starts from random ones")
    with reproducible(settings.seed, machine.threads), stopping(machine.time_limit) as stop:
        learner = learner_of(settings, machine, classes, weights, training)
        begin(learner, checkpoints, machine.resume, out)
        labels, best = folder / "labels.txt", folder / "best.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        labels.write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        build_for(learner, settings.preprocessing.input_size)

        def evaluate() -> float:
            accuracy = accuracy_of(learner.result, validation.in_order())
            if accuracy > learner.best:
                learner.best = accuracy
                save_weights(learner.result.state_dict(), best)
            return accuracy

        Loop(learner, training.of_epoch, evaluate, checkpoints, out).run(stop)
    return Result(learner.best, best if learner.best >= 0 else None, labels, stop.reason)


def learner_of(
    settings: Settings, machine: Machine, classes: list[str], weights: Path | None, training: Batches
) -> Learner:
    """What learns, before its first step."""
    model = model_of(settings, len(classes), weights, machine)
    recipe = Recipe(
        settings.epochs,
        math.ceil(len(training) / settings.accumulate),
        settings.lr,
        weight_decay=settings.weight_decay,
        label_smoothing=settings.label_smoothing,
        accumulate=settings.accumulate,
        amp=settings.amp,
        ema=settings.ema,
    )
    kept = {**asdict(settings), "classes": classes, "photos": digest_of(training.photos)}
    learner = Learner(model, recipe, kept)
    if machine.checkpoint_activations:
        checkpoint_blocks(model)
    return learner


@reports_errors
def main(
    photos: Annotated[Path, typer.Argument(help="Folder with a folder of images per class.")],
    model: Annotated[str, typer.Option(help="One of tvm_na.models.list_models().")] = Settings.model,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint to start from; random weights if none.")] = None,
    val: Annotated[Path | None, typer.Option(help="Such a folder for validation, in place of a share.")] = None,
    val_share: Annotated[float, typer.Option(help="Share of each class for validation.")] = Settings.val_share,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = Settings.epochs,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = Settings.batch_size,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches that share an update.")] = Settings.accumulate,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = Settings.lr,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of matrices.")] = Settings.weight_decay,
    label_smoothing: Annotated[float, typer.Option(min=0, max=1, help="Share.")] = Settings.label_smoothing,
    input_size: Annotated[int | None, typer.Option(min=32, help="Pixels; the model's own if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Of split, random weights, order and crops.")] = Settings.seed,
    freeze_backbone: Annotated[bool, typer.Option("--freeze-backbone", help="Train the head alone.")] = False,
    ema: Annotated[float, typer.Option(min=0, max=0.99999, help="Decay of averaged weights; 0: none.")] = Settings.ema,
    amp: Annotated[bool, typer.Option("--amp", help="bfloat16 where autocast computes in it.")] = False,
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Less memory, more time.")
    ] = False,
    backend: Annotated[BackendName, typer.Option(help="Who computes attention.")] = "auto",
    device: Annotated[str, typer.Option(help="Where: cpu or cuda.")] = Machine.device,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = Machine.workers,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the CPU; all cores if not given.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for checkpoint, weights and labels.")] = Path("demo/photos"),
    resume: Annotated[bool, typer.Option(help="Go on with the run in that folder, if there is one.")] = True,
    time_limit: Annotated[float | None, typer.Option(min=0, help="Seconds after which to end early.")] = None,
) -> None:
    """Train a NAT on photographs of your own. Ctrl-C loses nothing; the same command goes on."""
    out = console()
    given = locals()
    settings = Settings(**{name: given[name] for name in Settings.__dataclass_fields__})
    machine = Machine(**{name: given[name] for name in Machine.__dataclass_fields__})
    result = finetune(photos, output, settings, machine, out, weights=weights, val=val)
    if result.ended:
        kept = f"the run is kept in {output}: repeat the command to go on"
        out.print(f"{result.ended}; {kept}", markup=False, soft_wrap=True)
    if result.weights:
        out.print(f"best accuracy {result.accuracy:.2%} on images for validation", style="bold")
        run = f"tvm-na run {model} IMAGE --weights {result.weights} --labels {result.labels}"
        out.print(f"{run} --input-size {settings.preprocessing.input_size}", markup=False, soft_wrap=True)
    if result.ended == "interrupted":
        raise typer.Exit(130)


if __name__ == "__main__":
    typer.run(main)
