"""The models by name: ``create_model("nat_tiny")``.

Shapes and drop path rates are those of arXiv 2204.07143 and of the authors' code, but for ``nat_pico``: it is ours,
small enough to be trained on a CPU in a minute, and has no published checkpoint.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm_na.functional import Backend
from tvm_na.models.checkpoint import load_checkpoint
from tvm_na.models.nat import NAT

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input a checkpoint was trained on.

    The shorter side is resized to ``input_size / crop_pct``, the center cropped to ``input_size``, and each RGB
    channel of values in 0..1 normalised by ``mean`` and ``std``.
    """

    input_size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


IMAGENET_224 = Preprocessing()
#: Of our own small model: all of a small image, in the values that photographs have elsewhere.
SMALL_32 = Preprocessing(input_size=32, crop_pct=1.0)


@dataclass(frozen=True)
class ModelSpec:
    """A named model: arguments of :class:`NAT`, and its size in the ImageNet-1K form."""

    name: str
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: float
    drop_path_rate: float
    parameters: int
    layer_scale: float | None = None
    kernel_size: int = 7
    preprocessing: Preprocessing = field(default=IMAGENET_224)

    def arguments(self) -> dict[str, Any]:
        """What :class:`NAT` is called with, but for what the caller chooses."""
        names = ("embed_dim", "depths", "num_heads", "mlp_ratio", "drop_path_rate", "layer_scale", "kernel_size")
        return {name: getattr(self, name) for name in names}


_MINI_DEPTHS, _DEPTHS = (3, 4, 6, 5), (3, 4, 18, 5)

SPECS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        # Ours. At 32x32 its maps have 8x8 and 4x4 positions, of which 3x3 are a neighborhood, and 2x2, of which they
        # are everything.
        ModelSpec("nat_pico", 32, (2, 2, 2), (1, 2, 4), 2.0, 0.0, 576_294, kernel_size=3, preprocessing=SMALL_32),
        ModelSpec("nat_mini", 64, _MINI_DEPTHS, (2, 4, 8, 16), 3.0, 0.2, 19_984_174),
        ModelSpec("nat_tiny", 64, _DEPTHS, (2, 4, 8, 16), 3.0, 0.2, 27_901_582),
        ModelSpec("nat_small", 96, _DEPTHS, (3, 6, 12, 24), 2.0, 0.3, 50_743_297, layer_scale=1e-5),
        ModelSpec("nat_base", 128, _DEPTHS, (4, 8, 16, 32), 2.0, 0.5, 89_769_652, layer_scale=1e-5),
    )
}


def list_models() -> list[str]:
    """Every name that :func:`create_model` takes, smallest model first."""
    return list(SPECS)


def get_spec(name: str) -> ModelSpec:
    """The spec of a model.

    Raises:
        TypeError: ``name`` is not a string.
        ValueError: No such model; the message has the closest name and the list.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: required a model's name, got {type(name).__name__} {name!r}")
    if name not in SPECS:
        close = difflib.get_close_matches(name, SPECS, n=1, cutoff=0.4)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"name: required one of {', '.join(SPECS)}, got {name!r}{hint}")
    return SPECS[name]


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    weights: str | os.PathLike[str] | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    backend: Backend | str = Backend.AUTO,
    **overrides: Any,
) -> NAT:
    """A model by name, in training mode, on the default device.

    Args:
        name: One of :func:`list_models`.
        num_classes: Outputs of the head; 0 makes the head the identity.
        weights: A checkpoint, read with :func:`load_checkpoint`; None leaves the weights random. What had to be
            adapted (a head of another number of classes, say) is logged as a warning.
        features_only: Return a list of maps ``[B, C_i, H_i, W_i]`` in place of logits.
        out_indices: Stages whose maps ``features_only`` returns; None for all.
        backend: ``auto``, ``compiled`` or ``reference``, for every attention.
        **overrides: Arguments of :class:`NAT` that differ from the named model, such as ``kernel_size``.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
        FileNotFoundError: ``weights`` is no file.
    """
    arguments: dict[str, Any] = {**get_spec(name).arguments(), **overrides}
    if features_only and out_indices is None:
        out_indices = range(len(arguments["depths"]))
    arguments |= {"features_only": features_only, "out_indices": out_indices or ()}
    model = NAT(num_classes=num_classes, backend=backend, **arguments)
    if weights is not None:
        report = load_checkpoint(model, weights)
        if report.adapted:
            _logger.warning("%s: %s", name, report)
    return model
