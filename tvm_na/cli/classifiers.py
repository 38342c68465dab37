"""What ``run`` and ``serve`` classify with: a model by name, or an artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_na.cli.common import build, own_size, warn
from tvm_na.cli.options import BackendName

if TYPE_CHECKING:
    from tvm_na.models import NAModel
    from tvm_na.serve.classifier import Classifier

IMAGENET_CLASSES = 1000


def read_labels(path: Path) -> tuple[str, ...]:
    """The labels in a text file, one per line, in the order of the classes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8 text, is empty, or has an empty line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"labels: required an existing file, got {path}")
    try:
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
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


def _is_artifact(name: str) -> bool:
    """Whether ``name`` is the path of an artifact (that may be missing) rather than a model's name."""
    return "/" in name or "." in name or Path(name, "manifest.json").is_file()


def load_classifier(
    name: str,
    weights: Path | None,
    labels: Path | None,
    num_classes: int | None,
    backend: BackendName | None,
    input_size: int | None,
    overlays: bool = False,
    model: str | None = None,
) -> Classifier:
    """A classifier that calls a model by name, whose kernels are built, or an artifact.

    An artifact has its own values of most options, which are refused. Where ``overlays`` are wanted, ``weights`` are
    for an eager copy of its model, whose name is ``model`` if it is not the artifact's.

    Raises:
        FileNotFoundError: there is no artifact, or no such file.
        TypeError, ValueError: there is no such model, labels and classes differ, an option does not go with an
            artifact, it cannot run here, or it is no classifier of images.
        RuntimeError: a kernel cannot be built.
    """
    if _is_artifact(name):
        settled = {"num_classes": num_classes, "backend": backend, "input_size": input_size}
        for option, value in (settled if overlays else {"weights": weights, **settled}).items():
            if value is not None:
                raise ValueError(f"{option}: required a model's name with it (an artifact has its own), got {value}")
        if model is not None and weights is None:
            raise ValueError(f"weights: required those of the artifact with --model {model}, got none")
        return _load_artifact(name, labels, weights, model)
    if model is not None:
        raise ValueError(f"model: required an artifact with it, got {model!r} and {name!r}")
    from tvm_na.jit.build import is_supported
    from tvm_na.models import problems_of
    from tvm_na.models.registry import get_spec
    from tvm_na.serve.classifier import eager_classifier

    names = read_labels(labels) if labels else None
    if names and num_classes not in (None, len(names)):
        raise ValueError(f"labels: required {num_classes} labels, one per class, got {len(names)} in {labels}")
    preprocessing = replace(get_spec(name).preprocessing, input_size=input_size or own_size(name))
    classes = num_classes or (len(names) if names else IMAGENET_CLASSES)
    network = load_model(name, weights, classes, backend or "auto")
    if backend != "reference":
        problems = problems_of(network, preprocessing.input_size)
        build(p for p in problems if backend == "compiled" or is_supported(p))
    return eager_classifier(network, name, preprocessing, names, weights is None)


def _load_artifact(path: str, labels: Path | None, weights: Path | None, model: str | None) -> Classifier:
    from tvm_na.serve.classifier import artifact_classifier

    def eager_copy(name: str, classes: int) -> NAModel:
        return load_model(model or name, weights, classes, "reference")  # needs no compiler

    names = read_labels(labels) if labels else None
    classifier = artifact_classifier(path, names, None if weights is None else eager_copy)
    if classifier.random_weights:
        warn("the weights of the artifact are RANDOM, and so are the classes")
    return classifier
