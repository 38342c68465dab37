"""``tvm-na run``: classify image files, with a model by name or an artifact."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_na.cli.common import BackendName, build, console, own_size, reports_errors, warn

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tvm_na.models import NAModel
    from tvm_na.models.registry import Preprocessing

    Classify = Callable[[Tensor], Tensor]

IMAGENET_CLASSES = 1000


def read_labels(path: Path) -> list[str]:
    """The labels in a text file, one per line, in the order of the classes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8 text, is empty, or has an empty line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"labels: required an existing file, got {path}")
    try:
        labels = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"labels: required a text file in UTF-8, got {path}: {error}") from error
    if not labels or "" in labels:
        line = labels.index("") + 1 if labels else 1
        raise ValueError(f"labels: required one label per line, got {path} with nothing on line {line}")
    return labels


def load_model(name: str, weights: Path | None, num_classes: int, backend: str) -> NAModel:
    """A model in evaluation mode; says loudly what of its weights is random.

    Raises:
        TypeError, ValueError, FileNotFoundError: as :func:`tvm_na.models.create_model` does.
    """
    import torch

    from tvm_na.models import create_model, load_checkpoint

    torch.manual_seed(0)
    model = create_model(name, num_classes=num_classes, backend=backend)
    if weights is None:
        warn("no --weights: the weights are RANDOM, and so are the classes")
    else:
        report = load_checkpoint(model, weights)
        if report.adapted:
            warn(f"{weights} does not fit as it is\n{report}")
    return model.eval()


@reports_errors
def run(
    model_name: Annotated[
        str, typer.Argument(metavar="MODEL|ARTIFACT", help="Name of a model, such as nat_mini, or path of an artifact.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    weights: Annotated[Path | None, typer.Option(help="Checkpoint (.pth, .safetensors); random if none.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Text file with the label of each class, one per line.")] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Classes of the model; by default those of --labels, or 1000.")
    ] = None,
    backend: Annotated[BackendName | None, typer.Option(help="Who computes attention; auto if not given.")] = None,
    input_size: Annotated[
        int | None, typer.Option(min=32, help="Pixels in height and width that the model sees; its own if not given.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to show per image.")] = 5,
) -> None:
    """Classify image files."""
    names = read_labels(labels) if labels else None
    if is_artifact(model_name):
        settled = {"weights": weights, "num-classes": num_classes, "backend": backend, "input-size": input_size}
        for option, value in settled.items():
            if value is not None:
                raise ValueError(f"{option}: required a model's name with it (an artifact has its own), got {value}")
        classify, preprocessing = _artifact(model_name, names)
        inputs = _inputs(images, preprocessing)
    else:
        if names and num_classes not in (None, len(names)):
            raise ValueError(f"labels: required {num_classes} labels, one per class, got {len(names)} in {labels}")
        classes = num_classes or (len(names) if names else IMAGENET_CLASSES)
        preprocessing = _preprocessing(model_name, input_size)
        inputs = _inputs(images, preprocessing)  # before anything that takes long
        classify = _model(model_name, weights, classes, backend or "auto", preprocessing.input_size)
    _classify_all(classify, images, inputs, names, top)


def is_artifact(name: str) -> bool:
    """Whether ``name`` is the path of an artifact (that may be missing) rather than a model's name."""
    return "/" in name or "." in name or Path(name, "manifest.json").is_file()


def _preprocessing(model_name: str, input_size: int | None) -> Preprocessing:
    from dataclasses import replace

    from tvm_na.models.registry import get_spec

    return replace(get_spec(model_name).preprocessing, input_size=input_size or own_size(model_name))


def _model(name: str, weights: Path | None, classes: int, backend: str, input_size: int) -> Classify:
    from tvm_na.jit.build import is_supported
    from tvm_na.models import problems_of

    model = load_model(name, weights, classes, backend)
    if backend != "reference":
        problems = problems_of(model, input_size)
        build([p for p in problems if backend == "compiled" or is_supported(p)])
    return model


def _inputs(images: list[Path], preprocessing: Preprocessing) -> list[Tensor]:
    from tvm_na.models.preprocessing import load_image, preprocess

    return [preprocess(load_image(path), preprocessing) for path in images]


def _artifact(path: str, names: list[str] | None) -> tuple[Classify, Preprocessing]:
    from tvm_na.deploy.artifact import load
    from tvm_na.models.registry import Preprocessing

    artifact = load(path)
    manifest = artifact.manifest
    if manifest.preprocessing is None or manifest.returns_list:
        raise ValueError(f"artifact: required a classifier of images with preprocessing, got {path}")
    if manifest.batch not in (None, 1):
        raise ValueError(f"artifact: required one for any batch or a batch of 1, got one for {manifest.batch}: {path}")
    classes = manifest.outputs[0].shape[-1]
    if names and len(names) != classes:
        raise ValueError(f"labels: required {classes} labels, one per class, got {len(names)}")
    if manifest.model["weights"] is None:
        warn("the weights of the artifact are RANDOM, and so are the classes")
    return artifact, Preprocessing(**manifest.preprocessing)


def _classify_all(
    classify: Classify, images: list[Path], inputs: list[Tensor], names: list[str] | None, top: int
) -> None:
    import torch

    with torch.inference_mode():
        classes = classify(inputs[0][None]).shape[-1]  # the first call starts thread pools, which is no image's time
        for path, x in zip(images, inputs, strict=True):
            start = time.perf_counter()
            probabilities = classify(x[None])[0].softmax(-1)
            _print_classes(path, probabilities, min(top, classes), names, time.perf_counter() - start)


def _print_classes(path: Path, probabilities: Tensor, top: int, names: list[str] | None, seconds: float) -> None:
    from rich.table import Table
    from rich.text import Text

    from tvm_na.measure.timing import format_time

    table = Table(
        title=Text(f"{path.name}, {format_time(seconds)}", style="bold"), title_justify="left", show_header=False
    )
    best = probabilities.topk(top)
    for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        table.add_row(Text(names[index] if names else f"class {index}"), f"{probability:.2%}")
    console().print(table)
