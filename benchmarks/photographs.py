"""Crops of photographs, as inputs that are no noise."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor

from tvm_na.images.preprocessing import Preprocessing
from tvm_na.models.preprocessing import preprocess

_NAMES = ("china.jpg", "flower.jpg")  # they come with scikit-learn


def crops(count: int, preprocessing: Preprocessing, input_size: int, seed: int = 0) -> Tensor:
    """Random squares of two photographs, some mirrored, as a model's inputs ``[count, 3, input_size, input_size]``."""
    from PIL import Image, ImageOps
    from sklearn.datasets import load_sample_image

    draw = random.Random(seed)
    photographs = [Image.fromarray(load_sample_image(name)) for name in _NAMES]
    whole = replace(preprocessing, input_size=input_size, crop_pct=1.0)
    found = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        side = draw.randint(min(photograph.size) // 4, min(photograph.size))
        left, top = (draw.randint(0, length - side) for length in photograph.size)
        crop = photograph.crop((left, top, left + side, top + side))
        found.append(preprocess(ImageOps.mirror(crop) if draw.random() < 0.5 else crop, whole))
    return torch.stack(found)
