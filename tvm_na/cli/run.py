"""``tvm-na run``: classify image files, with a model by name or an artifact."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_na.cli import options
from tvm_na.cli.classifiers import load_classifier
from tvm_na.cli.common import console, reports_errors

if TYPE_CHECKING:
    from torch import Tensor


@reports_errors
def run(
    name: options.ModelOrArtifact,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    weights: options.Weights = None,
    labels: options.Labels = None,
    num_classes: options.NumClasses = None,
    backend: options.Backend = None,
    input_size: options.InputSize = None,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to show per image.")] = 5,
) -> None:
    """Classify image files."""
    import torch

    from tvm_na.images.decode import load_image
    from tvm_na.models.preprocessing import preprocess

    pictures = [load_image(path) for path in images]  # before anything that takes long
    classifier = load_classifier(name, weights, labels, num_classes, backend, input_size)
    inputs = [preprocess(picture, classifier.preprocessing) for picture in pictures]
    with torch.inference_mode():
        classifier.logits(inputs[0][None])  # the first call starts thread pools, which is no image's time
        for path, x in zip(images, inputs, strict=True):
            start = time.perf_counter()
            probabilities = classifier.logits(x[None])[0].softmax(-1)
            seconds = time.perf_counter() - start
            _print_classes(path, probabilities, min(top, classifier.classes), classifier.labels, seconds)


def _print_classes(path: Path, probabilities: Tensor, top: int, labels: tuple[str, ...] | None, seconds: float) -> None:
    from rich.table import Table
    from rich.text import Text

    from tvm_na.measure.timing import format_time

    title = Text(f"{path.name}, {format_time(seconds)}", style="bold")
    table = Table(title=title, title_justify="left", show_header=False)
    best = probabilities.topk(top)
    for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        table.add_row(Text(labels[index] if labels else f"class {index}"), f"{probability:.2%}")
    console().print(table)
