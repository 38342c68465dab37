"""How an image becomes a model's input, and the part of that which is about pixels: resize, crop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


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


def resize_and_crop(image: Image, preprocessing: Preprocessing) -> Image:
    """The part of an image that the model sees, ``input_size`` pixels in height and width.

    The shorter side becomes ``input_size / crop_pct`` pixels (rounded down), the center is cropped.
    """
    from PIL import Image

    size = preprocessing.input_size
    shorter = int(size / preprocessing.crop_pct)
    width, height = (max(shorter, round(side * shorter / min(image.size))) for side in image.size)
    resized = image.convert("RGB").resize((width, height), Image.Resampling[preprocessing.interpolation.upper()])
    left, top = (width - size) // 2, (height - size) // 2
    return resized.crop((left, top, left + size, top + size))
