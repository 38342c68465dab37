"""Train nat_pico on scikit-learn's digits: handwritten, 8x8 pixels, 1797 of them.

``make demo`` does it for some epochs; ``python examples/train_digits.py`` for as many as it takes. Repeat the
command to go on after Ctrl-C. Needs scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from guards import drawing, reproducible, stopping
from PIL import Image
from recipe import Recipe
from rich.console import Console
from saving import Checkpoints, save_weights
from torch import Tensor
from torch.nn import functional as F
from training import Batch, Learner, Loop, accuracy_of, begin, build_for

from tvm_na.cli.common import console, errors, reports_errors
from tvm_na.cli.options import BackendName
from tvm_na.images.preprocessing import resize_and_crop
from tvm_na.models import create_model
from tvm_na.models.registry import get_spec

MODEL = "nat_pico"
CLASSES = 10
#: A quarter is for testing: the same images in every run, whatever its seed.
TEST_IMAGES, SPLIT_SEED = 450, 0
#: One is quick enough; more wait for each other most of the time where others use the cores too.
THREADS = 1
Precision = Literal["float32", "bfloat16"]
#: How far an image is turned (radians), scaled (share) and shifted (share of half its side) in training, at most.
TURN, SCALE, SHIFT = 0.2, 0.1, 0.15


@dataclass(frozen=True)
class Settings:
    """What the result follows from.

    Attributes:
        epochs: Passes over the training images.
        batch_size: The most images in a step; the batches of an epoch differ by one image at most.
        lr: The highest learning rate.
        seed: Of weights, order and augmentation.
        images: How many of the training images are used; None for all.
        precision: What autocast computes in, ``float32`` for none; weights are float32 in any case.
    """

    epochs: int = 25
    batch_size: int = 32
    lr: float = 3e-3
    seed: int = 0
    images: int | None = None
    precision: Precision = "float32"


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        accuracy: Share of the test images whose digit the model says; that of the last epoch if interrupted.
        seconds: What training took, in this process.
        images: How many images it was, in this process.
        ended: Why it ended before its last epoch; empty if it did not.
        weights: The model's weights; None if interrupted.
    """

    accuracy: float
    seconds: float
    images: int
    ended: str
    weights: Path | None


@dataclass(frozen=True)
class Digits:
    """Images, float32 ``[N, 1, 32, 32]`` in 0..1, and what they show, int64 ``[N]``."""

    images: Tensor
    labels: Tensor

    def batch(self, chosen: Tensor | slice) -> Batch:
        """Some of them as the model's input ``[B, 3, 32, 32]``."""
        return as_input(self.images[chosen]), self.labels[chosen]


def load_digits() -> tuple[Digits, Digits, Image.Image]:
    """Digits for training and for testing, each class with the same share of both, and a test image as it is."""
    import sklearn.datasets
    from sklearn.model_selection import train_test_split

    data = sklearn.datasets.load_digits()
    # Seen as `tvm-na run` will see an image file: in values of 0 to 255, resized by Pillow.
    small = [Image.fromarray((image * (255 / 16)).round().astype("uint8")) for image in data.images]
    resized = [resize_and_crop(image, get_spec(MODEL).preprocessing).convert("L") for image in small]
    pixels = torch.stack([torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in resized])
    images = pixels.view(-1, 1, *resized[0].size).float() / 255
    labels = torch.from_numpy(data.target).long()
    chosen = train_test_split(range(len(small)), test_size=TEST_IMAGES, random_state=SPLIT_SEED, stratify=data.target)
    train, test = (Digits(images[indices], labels[indices]) for indices in chosen)
    return train, test, small[chosen[1][0]]


def as_input(images: Tensor) -> Tensor:
    """Gray images ``[B, 1, H, W]`` in 0..1 as the model's input, normalised ``[B, 3, H, W]``."""
    preprocessing = get_spec(MODEL).preprocessing
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (images - mean) / std


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned, scaled and shifted a bit; black comes in from outside."""
    draw = torch.rand(4, len(images), generator=generator) * 2 - 1
    angle, scale, shift = draw[0] * TURN, 1 + draw[1] * SCALE, draw[2:] * SHIFT
    cos, sin = angle.cos() / scale, angle.sin() / scale
    maps = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def batches_of(digits: Digits, settings: Settings, steps: int, epoch: int, skipped: int) -> Iterator[Batch]:
    """The batches of an epoch, augmented, without the first ``skipped``."""
    order = torch.Generator().manual_seed(drawing(settings.seed, epoch).getrandbits(63))
    parts = torch.randperm(len(digits.labels), generator=order).tensor_split(steps)
    for step, chosen in enumerate(parts[skipped:], start=skipped):
        generator = torch.Generator().manual_seed(drawing(settings.seed, epoch, step).getrandbits(63))
        yield as_input(augment(digits.images[chosen], generator)), digits.labels[chosen]


def train(
    settings: Settings,
    folder: Path,
    out: Console,
    *,
    backend: str = "auto",
    resume: bool = True,
    time_limit: float | None = None,
    threads: int = THREADS,
) -> Result:
    """Train nat_pico, keeping in ``folder`` a checkpoint, and at the end its weights and what `tvm-na run` needs.

    Args:
        settings: What the result follows from.
        folder: Where everything goes; made if there is none.
        out: Where it shows how it goes.
        backend: ``auto``, ``compiled`` or ``reference``.
        resume: Go on where a run in ``folder`` ended.
        time_limit: Seconds after which training ends early; None for none.
        threads: Threads of the CPU.

    Raises:
        ValueError: There is a run with other settings in ``folder``, or an argument makes no sense.
        NotImplementedError: ``backend`` is ``compiled`` and a kernel is missing.
    """
    digits, test, sample = load_digits()
    if settings.images is not None:
        if not 1 <= settings.images <= len(digits.labels):
            raise ValueError(f"images: required 1 to {len(digits.labels)} images, got {settings.images}")
        digits = Digits(digits.images[: settings.images], digits.labels[: settings.images])
    steps = math.ceil(len(digits.labels) / settings.batch_size)
    with reproducible(settings.seed, threads), stopping(time_limit) as stop:
        model = create_model(MODEL, num_classes=CLASSES, backend=backend)
        recipe = Recipe(settings.epochs, steps, settings.lr, amp=settings.precision == "bfloat16")
        learner, checkpoints = Learner(model, recipe, asdict(settings)), Checkpoints(folder)
        begin(learner, checkpoints, resume, out)
        build_for(learner, get_spec(MODEL).preprocessing.input_size)
        evaluate = partial(evaluate_on, learner, test)
        loop = Loop(learner, partial(batches_of, digits, settings, steps), evaluate, checkpoints, out)
        loop.run(stop)
        if stop.reason != "interrupted":
            weights = keep(learner, folder, sample)
            accuracy = learner.accuracy if learner.between_epochs else evaluate()
            return Result(accuracy, loop.seconds, loop.images, stop.reason, weights)
    return Result(learner.accuracy, loop.seconds, loop.images, stop.reason, None)


def evaluate_on(learner: Learner, test: Digits) -> float:
    """The accuracy on the test images."""
    return accuracy_of(learner.result, (test.batch(slice(at, at + 150)) for at in range(0, len(test.labels), 150)))


def keep(learner: Learner, folder: Path, sample: Image.Image) -> Path:
    """Write weights, labels and an image; the path of the weights."""
    weights = folder / f"{MODEL}.safetensors"
    save_weights(learner.result.state_dict(), weights)
    (folder / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(CLASSES)), encoding="utf-8")
    sample.save(folder / "digit.png")
    return weights


@reports_errors
def main(
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = Settings.epochs,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a step.")] = Settings.batch_size,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = Settings.lr,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = Settings.seed,
    images: Annotated[int | None, typer.Option(help="Training images to use; all if not given.")] = Settings.images,
    precision: Annotated[Precision, typer.Option(help="What autocast computes in.")] = Settings.precision,
    backend: Annotated[BackendName, typer.Option(help="Who computes attention.")] = "auto",
    output: Annotated[Path, typer.Option(help="Folder for checkpoint, weights and labels.")] = Path("demo/digits"),
    resume: Annotated[bool, typer.Option(help="Go on with the run in that folder, if there is one.")] = True,
    time_limit: Annotated[float | None, typer.Option(min=0, help="Seconds after which to end early.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the CPU.")] = THREADS,
    require_accuracy: Annotated[
        float | None, typer.Option(min=0, max=100, help="Percent; exit with 1 if it is not reached.")
    ] = None,
) -> None:
    """Train nat_pico on scikit-learn's digits. Ctrl-C loses nothing; the same command goes on."""
    out = console()
    settings = Settings(epochs, batch_size, lr, seed, images, precision)
    result = train(settings, output, out, backend=backend, resume=resume, time_limit=time_limit, threads=threads)
    if result.ended:
        kept = f"the run is kept in {output}: repeat the command to go on"
        out.print(f"{result.ended}; {kept}", markup=False, soft_wrap=True)
    if result.weights is None:
        raise typer.Exit(130)
    out.print(describe(result), style="bold", soft_wrap=True)
    run = f"tvm-na run {MODEL} {output / 'digit.png'} --weights {result.weights} --labels {output / 'labels.txt'}"
    out.print(f"{run} --input-size {get_spec(MODEL).preprocessing.input_size}", markup=False, soft_wrap=True)
    if require_accuracy is not None and result.accuracy * 100 < require_accuracy:
        errors().print(f"required {require_accuracy:g} % accuracy", style="bold red")
        raise typer.Exit(1)


def describe(result: Result) -> str:
    """The result in a line."""
    says = f"test accuracy {result.accuracy:.2%} of {TEST_IMAGES} images"
    if not result.images:
        return f"{says}; there was nothing left to train"
    return f"{says}; {result.seconds:.1f} s of training, {result.images / result.seconds:.0f} images/s"


if __name__ == "__main__":
    typer.run(main)
