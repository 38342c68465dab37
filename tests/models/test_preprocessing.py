"""Image files to inputs."""

from __future__ import annotations

import pytest
import torch

from tvm_na.images.decode import load_image
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


def test_formats_become_rgb(tmp_path):
    for mode, name in (("L", "gray.png"), ("RGBA", "alpha.png"), ("P", "palette.gif"), ("CMYK", "cmyk.jpg")):
        Image.new(mode, (8, 9)).save(tmp_path / name)
        image = load_image(tmp_path / name)
        assert (image.mode, image.size) == ("RGB", (8, 9))


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (4, 8)


def test_what_is_no_image(tmp_path):
    with pytest.raises(FileNotFoundError, match="image: required an existing file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(FileNotFoundError, match="image: required an existing file"):
        load_image(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="image: required an image file that Pillow reads"):
        load_image(tmp_path / "text.png")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    with pytest.raises(ValueError, match="image: required an image file that Pillow reads"):
        load_image(tmp_path / "half.png")
