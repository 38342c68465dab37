"""``tvm-na serve``: classify images that come over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_na.cli import options
from tvm_na.cli.classifiers import load_classifier
from tvm_na.cli.common import fail, reports_errors

if TYPE_CHECKING:
    from tvm_na.serve.classifier import Classifier


@reports_errors
def serve(
    name: options.ModelOrArtifact,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint (.pth, .safetensors); random weights if not given. Of an artifact: for overlays."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With an artifact and --weights: the model's name, if not the artifact's.")
    ] = None,
    labels: options.Labels = None,
    num_classes: options.NumClasses = None,
    backend: options.Backend = None,
    input_size: options.InputSize = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8000,
    server_name: Annotated[
        list[str] | None,
        typer.Option(help="A name that clients of a proxy use, for a server on 127.0.0.1; can be repeated."),
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Images computed at once, at most.")] = 8,
    max_delay_ms: Annotated[float, typer.Option(help="Milliseconds that an image waits for others, at most.")] = 5.0,
    max_queue: Annotated[int, typer.Option(help="Requests in the server at once; more get 503.")] = 64,
    max_request_mb: Annotated[float, typer.Option(help="Megabytes of a request, at most; more get 413.")] = 20.0,
    max_pixels: Annotated[int, typer.Option(help="Pixels of an image, at most; more get 413.")] = 50_000_000,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take; then it gets 408 or 504.")] = 30.0,
    decode_timeout: Annotated[float, typer.Option(help="Seconds that decoding an image may take; then 413.")] = 5.0,
) -> None:
    """Classify images that come over HTTP, and serve a page to drop them on."""
    try:
        from tvm_na.serve.app import run_server
        from tvm_na.serve.limits import Limits
        from tvm_na.serve.service import Service
    except ModuleNotFoundError as error:
        raise fail(f"serve: required the extra 'serve' (pip install 'tvm_na[serve]'), got {error}") from error

    limits = Limits(max_batch, max_delay_ms, max_queue, max_request_mb, max_pixels, timeout, decode_timeout)
    classifier = load_classifier(name, weights, labels, num_classes, backend, input_size, overlays=True, model=model)
    _warm_up(classifier, max_batch)
    raise typer.Exit(run_server(Service(classifier, limits), host, port, server_name or ()))


def _warm_up(classifier: Classifier, max_batch: int) -> None:
    """The smallest and the largest batch, so that no client waits for what is done once; fails if the model does."""
    import torch

    size = classifier.preprocessing.input_size
    for batch in sorted({1, max_batch}):
        for result in classifier.predict([torch.zeros(3, size, size)] * batch):
            if isinstance(result, Exception):
                raise result
