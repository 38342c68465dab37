"""Image files to inputs."""

from __future__ import annotations

import pytest
import torch

from tvm_na.images.preprocessing import Preprocessing, resize_and_crop
from tvm_na.models.preprocessing import preprocess

Image = pytest.importorskip("PIL.Image")
SMALL = Preprocessing(input_size=28, crop_pct=0.875)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (10, 90), (32, 32), (33, 1000), (1, 1)])
def test_every_shape_becomes_the_input_size(size):
    x = preprocess(Image.new("RGB", size, "red"), SMALL)
    assert x.shape == (3, 28, 28)
    assert x.dtype == torch.float32


def test_a_color_is_normalised():
    x = preprocess(Image.new("RGB", (40, 40), (255, 0, 51)), SMALL)
    expected = [(value - m) / s for value, m, s in zip((1.0, 0.0, 0.2), SMALL.mean, SMALL.std, strict=True)]
    assert x.mean((1, 2)).tolist() == pytest.approx(expected, abs=1e-5)


def test_channels_first_rows_before_columns():
    image = Image.new("RGB", (32, 32))
    image.putpixel((20, 5), (0, 255, 0))  # column 20, row 5
    x = preprocess(image, Preprocessing(input_size=32, crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1)))
    assert x.nonzero().tolist() == [[1, 5, 20]]


def test_the_center_is_cropped():
    image = Image.new("RGB", (96, 32))
    image.paste((255, 255, 255), (34, 0, 62, 32))  # the 28 columns in the center
    cropped = resize_and_crop(image, SMALL)
    assert cropped.size == (28, 28)
    assert min(cropped.convert("L").tobytes()) > 250
