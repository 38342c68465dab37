"""``tvm-na serve``: classify images that come over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_na.cli.common import BackendName, build, fail, own_size, reports_errors, warn
from tvm_na.cli.run import IMAGENET_CLASSES, is_artifact, load_model, read_labels

if TYPE_CHECKING:
    from tvm_na.models import NAModel
    from tvm_na.serve.classifier import Classifier


@reports_errors
def serve(
    name: Annotated[
        str, typer.Argument(metavar="MODEL|ARTIFACT", help="Name of a model, such as nat_mini, or path of an artifact.")
    ],
    weights: Annotated[
        Path | None,
        typer.Option(help="Checkpoint (.pth, .safetensors); of a model, random if none; of an artifact, for overlays."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With an artifact and --weights: the model's name, if not the artifact's.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Text file with the label of each class, one per line.")] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Classes of a model; by default those of --labels, or 1000.")
    ] = None,
    backend: Annotated[BackendName | None, typer.Option(help="Who computes a model's attention; auto if none.")] = None,
    input_size: Annotated[
        int | None, typer.Option(min=32, help="Pixels in height and width that a model sees; its own size if none.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8000,
    max_batch: Annotated[int, typer.Option(help="Images computed at once, at most.")] = 8,
    max_delay_ms: Annotated[float, typer.Option(help="Milliseconds that an image waits for others, at most.")] = 5.0,
    max_queue: Annotated[int, typer.Option(help="Requests in the server at once; more get 503.")] = 64,
    max_request_mb: Annotated[float, typer.Option(help="Megabytes of a request, at most; more get 413.")] = 20.0,
    max_pixels: Annotated[int, typer.Option(help="Pixels of an image, at most; more get 413.")] = 50_000_000,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take; then it gets 408 or 504.")] = 30.0,
) -> None:
    """Classify images that come over HTTP, and serve a page to drop them on."""
    try:
        from tvm_na.serve.app import run_server
        from tvm_na.serve.limits import Limits
        from tvm_na.serve.service import Service
    except ModuleNotFoundError as error:
        raise fail(f"serve: required the extra 'serve' (pip install 'tvm_na[serve]'), got {error}") from error

    limits = Limits(max_batch, max_delay_ms, max_queue, max_request_mb, max_pixels, timeout)
    names = tuple(read_labels(labels)) if labels else None
    if is_artifact(name):
        settled: dict[str, object] = {"num_classes": num_classes, "backend": backend, "input_size": input_size}
        classifier = _artifact(name, weights, model, names, settled)
    else:
        if model is not None:
            raise ValueError(f"model: required an artifact with it, got {model!r} and {name!r}")
        classifier = _eager(name, weights, names, num_classes, backend or "auto", input_size or own_size(name))
    _warm_up(classifier, max_batch)
    raise typer.Exit(run_server(Service(classifier, limits), host, port))


def _eager(
    name: str, weights: Path | None, labels: tuple[str, ...] | None, num_classes: int | None, backend: str, size: int
) -> Classifier:
    from dataclasses import replace

    from tvm_na.jit.build import is_supported
    from tvm_na.models import problems_of
    from tvm_na.models.registry import get_spec
    from tvm_na.serve.classifier import eager_classifier

    preprocessing = replace(get_spec(name).preprocessing, input_size=size)
    if labels and num_classes not in (None, len(labels)):
        raise ValueError(f"labels: required {num_classes} labels, one per class, got {len(labels)}")
    classes = num_classes or (len(labels) if labels else IMAGENET_CLASSES)
    model = load_model(name, weights, classes, backend)
    if backend != "reference":
        build([p for p in problems_of(model, size) if backend == "compiled" or is_supported(p)])
    return eager_classifier(model, name, preprocessing, labels, weights is None)


def _artifact(
    path: str, weights: Path | None, model: str | None, labels: tuple[str, ...] | None, settled: dict[str, object]
) -> Classifier:
    from tvm_na.serve.classifier import artifact_classifier

    for option, value in settled.items():
        if value is not None:
            raise ValueError(f"{option}: required a model's name with it (an artifact has its own), got {value}")
    if model is not None and weights is None:
        raise ValueError(f"weights: required those of the artifact with --model {model}, got none")

    def eager_copy(name: str, classes: int) -> NAModel:
        return load_model(model or name, weights, classes, "reference")  # needs no compiler

    classifier = artifact_classifier(path, labels, None if weights is None else eager_copy)
    if classifier.random_weights:
        warn("the weights of the artifact are RANDOM, and so are the classes")
    return classifier


def _warm_up(classifier: Classifier, max_batch: int) -> None:
    """The smallest and the largest batch, so that no client waits for what is done once; fails if the model does."""
    import torch

    size = classifier.preprocessing.input_size
    for batch in sorted({1, max_batch}):
        try:
            results = classifier.predict([torch.zeros(3, size, size)] * batch)
        except RuntimeError as error:
            raise fail(str(error)) from error
        for result in results:
            if isinstance(result, Exception):
                raise fail(str(result)) from result
