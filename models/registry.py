"""The models by name: ``create_model("nat_tiny")``.

Names, shapes and drop path rates are those of arXiv 2204.07143, arXiv 2209.15001 and of the authors' code, but for
``nat_pico``: it is ours, small enough to be trained on a CPU in a minute, and has no published checkpoint.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tvm_na.functional import Backend
from tvm_na.images.preprocessing import Preprocessing
from tvm_na.models.base import NAModel
from tvm_na.models.checkpoint import load_checkpoint
from tvm_na.models.dilations import alternating_dilations
from tvm_na.models.dinat_s import DiNATs
from tvm_na.models.isotropic import NATIsotropic, ViTRPB
from tvm_na.models.layers import check_dtype
from tvm_na.models.nat import NAT

_logger = logging.getLogger(__name__)


IMAGENET_224 = Preprocessing()
#: Of models finetuned on larger images, of which nothing is cropped.
IMAGENET_384 = Preprocessing(input_size=384, crop_pct=1.0)
#: Of our own small model: all of a small image, in the values that photographs have elsewhere.
SMALL_32 = Preprocessing(input_size=32, crop_pct=1.0)


@dataclass(frozen=True)
class ModelSpec:
    """A named model: its class, the arguments of that, and its size in the ImageNet-1K form.

    An isotropic model has one stage. ``dilated`` says that odd layers have the largest dilation that fits into the maps
    of ``preprocessing.input_size``.
    """

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
    architecture: Callable[..., NAModel] = NAT
    dilated: bool = False

    def arguments(self, **overrides: Any) -> dict[str, Any]:
        """What the class is called with, but for what the caller chooses; ``overrides`` count more.

        Dilations that are not given follow from the depths and the window, be they overridden or not.
        """
        arguments: dict[str, Any] = {name: getattr(self, name) for name in _COMMON}
        if self.architecture in _ISOTROPIC:
            arguments |= {"depth": self.depths[0], "num_heads": self.num_heads[0]}
        else:
            arguments |= {"depths": self.depths, "num_heads": self.num_heads}
        if self.architecture is ViTRPB:
            arguments["img_size"] = self.preprocessing.input_size
        else:
            arguments["kernel_size"] = self.kernel_size
        if self.layer_scale is not None:
            arguments["layer_scale"] = self.layer_scale
        arguments |= overrides
        if self.dilated:
            arguments.setdefault("dilations", self._dilations(arguments))
        return arguments

    def _dilations(self, arguments: Mapping[str, Any]) -> Any:
        size, kernel_size = self.preprocessing.input_size, arguments["kernel_size"]
        if self.architecture not in _ISOTROPIC:
            return alternating_dilations(size, kernel_size, arguments["depths"])
        patch = arguments.get("patch_size", 16)
        return alternating_dilations(size, kernel_size, (arguments["depth"],), patch)[0]


_COMMON = ("embed_dim", "mlp_ratio", "drop_path_rate")
_ISOTROPIC: tuple[Callable[..., NAModel], ...] = (NATIsotropic, ViTRPB)
_MINI_DEPTHS, _DEPTHS = (3, 4, 6, 5), (3, 4, 18, 5)
_S_DEPTHS = (2, 2, 18, 2)
_FOR_384: dict[str, Any] = {"dilated": True, "preprocessing": IMAGENET_384}
_HEADS = {64: (2, 4, 8, 16), 96: (3, 6, 12, 24), 128: (4, 8, 16, 32), 192: (6, 12, 24, 48)}


def _nat(name: str, dim: int, depths: tuple[int, ...], ratio: float, drop: float, size: int, **more: Any) -> ModelSpec:
    return ModelSpec(name, dim, depths, _HEADS[dim], ratio, drop, size, **more)


def _dinat_s(name: str, dim: int, depths: tuple[int, ...], drop: float, size: int, **more: Any) -> ModelSpec:
    return ModelSpec(name, dim, depths, _HEADS[dim], 4.0, drop, size, architecture=DiNATs, dilated=True, **more)


def _isotropic(name: str, dim: int, drop: float, size: int, **more: Any) -> ModelSpec:
    return ModelSpec(name, dim, (12,), (dim // 32,), 4.0, drop, size, **{"architecture": NATIsotropic, **more})


SPECS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        # Ours. At 32x32 its maps have 8x8 and 4x4 positions, of which 3x3 are a neighborhood, and 2x2, of which they
        # are everything.
        ModelSpec("nat_pico", 32, (2, 2, 2), (1, 2, 4), 2.0, 0.0, 576_294, kernel_size=3, preprocessing=SMALL_32),
        _nat("nat_mini", 64, _MINI_DEPTHS, 3.0, 0.2, 19_984_174),
        _nat("nat_tiny", 64, _DEPTHS, 3.0, 0.2, 27_901_582),
        _nat("nat_small", 96, _DEPTHS, 2.0, 0.3, 50_743_297, layer_scale=1e-5),
        _nat("nat_base", 128, _DEPTHS, 2.0, 0.5, 89_769_652, layer_scale=1e-5),
        _nat("dinat_mini", 64, _MINI_DEPTHS, 3.0, 0.2, 19_984_174, dilated=True),
        _nat("dinat_tiny", 64, _DEPTHS, 3.0, 0.2, 27_901_582, dilated=True),
        _nat("dinat_small", 96, _DEPTHS, 2.0, 0.3, 50_719_681, dilated=True),
        _nat("dinat_base", 128, _DEPTHS, 2.0, 0.5, 89_769_652, dilated=True, layer_scale=1e-5),
        _nat("dinat_large", 192, _DEPTHS, 2.0, 0.35, 200_943_514, dilated=True),
        _nat("dinat_large_384", 192, _DEPTHS, 2.0, 0.35, 200_943_514, **_FOR_384),
        _nat("dinat_large_384_11x11", 192, _DEPTHS, 2.0, 0.35, 201_144_250, kernel_size=11, **_FOR_384),
        _dinat_s("dinat_s_tiny", 96, (2, 2, 6, 2), 0.2, 28_288_354),
        _dinat_s("dinat_s_small", 96, _S_DEPTHS, 0.3, 49_606_258),
        _dinat_s("dinat_s_base", 128, _S_DEPTHS, 0.5, 87_768_224),
        _dinat_s("dinat_s_large", 192, _S_DEPTHS, 0.35, 196_532_476),
        _dinat_s("dinat_s_large_384", 192, _S_DEPTHS, 0.35, 196_532_476, preprocessing=IMAGENET_384),
        _isotropic("nat_isotropic_small", 384, 0.1, 21_999_736),
        _isotropic("nat_isotropic_base", 768, 0.4, 86_465_800),
        _isotropic("dinat_isotropic_small", 384, 0.1, 21_999_736, dilated=True),
        _isotropic("dinat_isotropic_base", 768, 0.4, 86_465_800, dilated=True),
        _isotropic("vitrpb_small", 384, 0.1, 22_080_376, architecture=ViTRPB),
        _isotropic("vitrpb_base", 768, 0.4, 86_627_080, architecture=ViTRPB),
    )
}


def list_models() -> list[str]:
    """Every name that :func:`create_model` takes, family by family, the smallest model of each first."""
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
    dtype: torch.dtype | str | None = None,
    **overrides: Any,
) -> NAModel:
    """A model by name, in training mode, on the default device.

    Args:
        name: One of :func:`list_models`.
        num_classes: Outputs of the head; 0 makes the head the identity.
        weights: A checkpoint, read with :func:`load_checkpoint`; None leaves the weights random. What had to be
            adapted (a head of another number of classes, say) is logged as a warning.
        features_only: Return a list of maps ``[B, C_i, H_i, W_i]`` in place of logits.
        out_indices: Stages (of an isotropic model: layers) whose maps ``features_only`` returns; None for all.
        backend: ``auto``, ``compiled`` or ``reference``, for every attention.
        dtype: Of parameters and of buffers that are no integers: a ``torch.dtype`` or its name, one of float16,
            bfloat16, float32 and float64. They are drawn in PyTorch's default dtype, which None leaves, and then
            rounded.
        **overrides: Arguments of the model's class (:class:`NAT`, :class:`DiNATs`, :class:`NATIsotropic` or
            :class:`ViTRPB`) that differ from the named model, such as ``kernel_size``.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
        FileNotFoundError: ``weights`` is no file.
    """
    spec = get_spec(name)
    chosen = None if dtype is None else check_dtype("dtype", dtype)
    model = spec.architecture(
        num_classes=num_classes,
        features_only=features_only,
        out_indices=out_indices,
        backend=backend,
        **spec.arguments(**overrides),
    )
    if chosen is not None:
        model.to(chosen)
    if weights is not None:
        report = load_checkpoint(model, weights)
        if report.adapted:
            _logger.warning("%s: %s", name, report)
    return model
