"""Uploads: every format, what is too large before it is decoded, and whatever may come."""

from __future__ import annotations

import io
import random
import struct
import zlib

import pytest
from PIL import Image

from tests.serve.serving import PREPROCESSING, picture
from tvm_na.models.registry import Preprocessing
from tvm_na.serve.uploads import FORMATS, HttpError, decode_image


def decode(data: bytes, max_pixels: int = 1_000_000) -> Image.Image:
    return decode_image(data, PREPROCESSING, max_pixels)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header names a size, of which there is no data."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("file_format", FORMATS)
def test_formats(file_format):
    image = decode(picture(200, file_format))
    assert (image.mode, image.size) == ("RGB", (12, 10))
    assert abs(image.getpixel((5, 5))[0] - 200) <= 8  # JPEG, WebP and GIF change colors a little


def test_modes_become_rgb():
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        file = io.BytesIO()
        Image.new(mode, (6, 5)).save(file, "PNG")
        assert decode(file.getvalue()).mode == "RGB"


def test_the_exif_orientation_is_applied():
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(file, "JPEG", exif=exif)
    assert decode(file.getvalue()).size == (4, 8)


def test_of_an_animation_the_first_frame():
    file = io.BytesIO()
    frames = [Image.new("RGB", (5, 5), color) for color in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert decode(file.getvalue()).getpixel((2, 2)) == (255, 0, 0)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG", EPS, b"<svg/>"])
def test_unknown_formats(data):
    with pytest.raises(HttpError, match="image: required JPEG, PNG") as caught:
        decode(data)
    assert caught.value.status == 415


@pytest.mark.parametrize("file_format", FORMATS)
def test_files_that_are_cut_off(file_format):
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(file, file_format)
    data = file.getvalue()
    with pytest.raises(HttpError, match="image: required") as caught:
        decode(data[: len(data) // 2])
    assert caught.value.status in (400, 415)


@pytest.mark.parametrize("size", [(1001, 1000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_by_the_header(size):
    with pytest.raises(HttpError, match="image: required at most 1000000 pixels, got") as caught:
        decode(png_claiming(*size))
    assert caught.value.status == 413
    assert decode(picture(1, size=(1000, 1000))).size == (1000, 1000)


def test_a_line_of_pixels_would_be_resized_to_a_huge_strip():
    preprocessing = Preprocessing(input_size=224)
    with pytest.raises(HttpError, match="ratio of at most 15, got 1x900") as caught:
        decode_image(picture(1, size=(1, 900)), preprocessing, 1_000_000)
    assert caught.value.status == 413
    assert decode_image(picture(1, size=(1, 15)), preprocessing, 1_000_000).size == (1, 15)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_images_or_errors(file_format):
    rng, file = random.Random(file_format), io.BytesIO()
    Image.effect_noise((24, 24), 90).convert("RGB").save(file, file_format)
    outcomes = set()
    for _ in range(400):
        data = bytearray(file.getvalue())
        for _ in range(rng.randint(1, 12)):
            data[rng.randrange(min(len(data), rng.choice((64, len(data)))))] = rng.randrange(256)
        try:
            outcomes.add(decode(bytes(data)).mode)
        except HttpError as error:
            outcomes.add(error.status)
    assert outcomes & {400, 415}
    assert len(outcomes) > 1
