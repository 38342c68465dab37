"""Images to what a model takes: resize the shorter side, crop the center, normalise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm_na.images.preprocessing import Preprocessing, resize_and_crop

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


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
