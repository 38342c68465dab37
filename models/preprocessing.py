"""Image files to what a model takes: decode, resize the shorter side, crop the center, normalise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from tvm_na.models.registry import Preprocessing


def load_image(path: str | os.PathLike[str]) -> Image:
    """Read an image file as RGB, turned the way its EXIF orientation says.

    Raises:
        FileNotFoundError: ``path`` is no file.
        ValueError: It is not an image that Pillow reads whole.
    """
    from PIL import Image, ImageOps

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"image: required an existing file, got {file}")
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's for broken files
        raise ValueError(f"image: required an image file that Pillow reads, got {file}: {error}") from error


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


def to_tensor(image: Image, preprocessing: Preprocessing) -> Tensor:
    """An RGB image as float32 ``[3, height, width]``, each channel of 0..1 normalised by ``mean`` and ``std``."""
    import torch

    width, height = image.size
    pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (pixels.view(height, width, 3).permute(2, 0, 1).float() / 255 - mean) / std


def preprocess(image: Image, preprocessing: Preprocessing) -> Tensor:
    """An image as the model's input: float32 ``[3, input_size, input_size]``."""
    return to_tensor(resize_and_crop(image, preprocessing), preprocessing)
