"""Image files: every format and mode, what is too large before it is decoded, and whatever may come."""

from __future__ import annotations

import random
import struct
import time
import zlib

import pytest
from PIL import Image

from tests.helpers import run_python
from tests.images.files import bytes_of, many_scans
from tvm_na.images.budget import MOST_SCANS, MOST_SEGMENTS, jpeg_excess
from tvm_na.images.decode import FORMATS, ImageError, decode_image, load_image
from tvm_na.images.preprocessing import Preprocessing


def picture(file_format: str, size: tuple[int, int] = (12, 10)) -> bytes:
    return bytes_of(Image.new("RGB", size, (200, 55, 77)), file_format)


def noise(side: int, file_format: str) -> bytes:
    return bytes_of(Image.effect_noise((side, side), 90).convert("RGB"), file_format)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header names a size, of which there is no data."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(bits: int, photometric: int, data: bytes, order: str = "<", sample_format: int = 1) -> bytes:
    """A gray TIFF of 2x2 pixels."""
    tags = {256: 2, 257: 2, 258: bits, 259: 1, 262: photometric, 273: 200, 277: 1, 278: 2, 279: len(data)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, v) for tag, v in {**tags, 339: sample_format}.items())
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, len(tags) + 1) + entries + bytes(4)
    return head.ljust(200, b"\0") + data


# --- formats and modes


def test_decoding_needs_no_torch():
    run_python("import tvm_na.images.decode, sys; assert not {'torch', 'numpy', 'tvm'} & set(sys.modules)")


@pytest.mark.parametrize("file_format", FORMATS)
def test_formats(file_format):
    image = decode_image(picture(file_format))
    assert (image.mode, image.size) == ("RGB", (12, 10))
    assert abs(image.getpixel((5, 5))[0] - 200) <= 8  # JPEG, WebP and GIF change colors a little


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
def test_modes_of_8_bits_are_pillows(mode):
    image = Image.new("RGB", (6, 5), (90, 90, 90)).convert("L" if mode == "PA" else mode).convert(mode)
    assert decode_image(bytes_of(image, "TIFF")).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("value", [0, 1, 127, 128, 200, 255])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_gray_of_16_bits_is_scaled(value, file_format, tmp_path):
    for offset in (-128, 0, 128):  # rounded to the nearest
        wide = min(65535, max(0, value * 257 + offset))
        data = bytes_of(Image.new("I;16", (3, 2), wide), file_format)
        assert set(decode_image(data).tobytes()) == {value}
    (tmp_path / "gray").write_bytes(data)
    assert load_image(tmp_path / "gray").tobytes() == decode_image(data).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        tiff(16, 1, struct.pack("<4H", *[127 * 257] * 4)),
        tiff(16, 1, struct.pack(">4H", *[127 * 257] * 4), ">"),
        tiff(16, 0, struct.pack("<4H", *[128 * 257] * 4)),  # white is zero
        tiff(12, 1, bytes([0x7F, 0x77, 0xF7] * 2)),  # 0x7f7 is half of 4095
    ],
    ids=["little", "big", "inverted", "12 bits"],
)
def test_gray_tiffs(data):
    assert set(decode_image(data).tobytes()) == {127}


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (bytes_of(Image.new("I", (3, 2), 127), "TIFF"), "mode I"),
        (bytes_of(Image.new("F", (3, 2), 0.5), "TIFF"), "mode F"),
        (tiff(16, 1, bytes(8), sample_format=2), "mode I"),
        (tiff(32, 1, bytes(16)), "mode I"),
        (tiff(32, 1, bytes(16), sample_format=3), "mode F"),
    ],
    ids=["I", "F", "signed 16", "unsigned 32", "float"],
)
def test_modes_without_a_known_white_are_refused(data, mode, tmp_path):
    with pytest.raises(ImageError, match=f"required a mode of 8 bits per channel or 16 bits of gray, got {mode}") as e:
        decode_image(data)
    assert e.value.kind == "unknown"
    (tmp_path / "gray.tiff").write_bytes(data)
    with pytest.raises(ValueError, match=f"got .*gray.tiff: {mode}"):
        load_image(tmp_path / "gray.tiff")


def test_the_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(bytes_of(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).size == (4, 8)
    assert decode_image(bytes_of(Image.new("I;16", (8, 4)), "PNG", exif=exif)).size == (4, 8)


def test_of_an_animation_the_first_frame():
    frames = [Image.new("RGB", (5, 5), color) for color in ("red", "blue")]
    data = bytes_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).getpixel((2, 2)) == (255, 0, 0)


# --- what is no image


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG", b"\xff\xd8", EPS, b"<svg/>"])
def test_unknown_formats(data):
    with pytest.raises(ImageError, match="image: required JPEG, PNG") as caught:
        decode_image(data)
    assert caught.value.kind == "unknown"


def test_paths_that_hold_no_image(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "half.png").write_bytes(noise(64, "PNG")[:900])
    cases = [
        ("none.png", FileNotFoundError, "required an existing file, got .*none.png"),
        (".", FileNotFoundError, "required an existing file"),
        ("text.png", ValueError, "required JPEG, PNG.*, got .*text.png: 8 bytes of something else"),
        ("half.png", ValueError, "required a whole PNG file, got .*half.png: "),
    ]
    for name, kind, message in cases:
        with pytest.raises(kind, match=message):
            load_image(tmp_path / name)


@pytest.mark.parametrize("file_format", FORMATS)
def test_files_that_are_cut_off(file_format):
    data = noise(64, file_format)
    with pytest.raises(ImageError, match="image: required") as caught:
        decode_image(data[: len(data) // 2])
    assert caught.value.kind in ("damaged", "unknown")


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_images_or_errors(file_format):
    rng, whole, outcomes = random.Random(file_format), noise(24, file_format), set()
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 12)):
            data[rng.randrange(min(len(data), rng.choice((64, len(data)))))] = rng.randrange(256)
        try:
            outcomes.add(decode_image(bytes(data), 1_000_000).mode)
        except ImageError as error:
            outcomes.add(error.kind)
    assert outcomes & {"damaged", "unknown"}
    assert len(outcomes) > 1


# --- budgets


@pytest.mark.parametrize("size", [(1001, 1000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_by_the_header(size):
    with pytest.raises(ImageError, match="image: required at most 1000000 pixels, got") as caught:
        decode_image(png_claiming(*size), 1_000_000)
    assert caught.value.kind == "too_large"
    assert decode_image(picture("PNG", (1000, 1000)), 1_000_000).size == (1000, 1000)


def test_a_line_of_pixels_would_be_resized_to_a_huge_strip():
    preprocessing = Preprocessing(input_size=224)
    with pytest.raises(ImageError, match="ratio of at most 15, got 1x900") as caught:
        decode_image(picture("PNG", (1, 900)), 1_000_000, preprocessing)
    assert caught.value.kind == "too_large"
    assert decode_image(picture("PNG", (1, 15)), 1_000_000, preprocessing).size == (1, 15)


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded():
    data, start = many_scans(4000), time.process_time()
    assert len(data) < 500_000
    with pytest.raises(ImageError, match=f"image: required at most {MOST_SCANS} scans, got more") as caught:
        decode_image(data)
    assert caught.value.kind == "too_large"
    assert time.process_time() - start < 0.5
    assert decode_image(many_scans(20)).size == (1024, 1024)


def test_a_jpeg_of_many_segments_is_refused():
    data = picture("JPEG")
    comments = b"\xff\xfe\x00\x02" * MOST_SEGMENTS
    with pytest.raises(ImageError, match=f"image: required at most {MOST_SEGMENTS} segments, got more"):
        decode_image(data[:2] + comments + data[2:])


def test_scans_of_thumbnails_and_of_what_follows_do_not_count():
    data, many = picture("JPEG"), many_scans(MOST_SCANS + 1, side=64)
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(many) + 2) + many
    assert len(many) < 65_000
    assert jpeg_excess(many) is not None
    for allowed in (data[:2] + thumbnail + data[2:], data + many):
        assert jpeg_excess(allowed) is None
        assert decode_image(allowed).size == (12, 10)


@pytest.mark.parametrize("compression", ["group3", "group4"])
def test_compressions_of_fax_machines_are_refused(compression):
    data = bytes_of(Image.new("1", (64, 64)), "TIFF", compression=compression)
    with pytest.raises(ImageError, match=f"image: required a TIFF compressed as one of raw, .*, got {compression}"):
        decode_image(data)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg"])
def test_compressions_of_photographs_are_read(compression):
    image = Image.new("RGB", (64, 64), (9, 9, 9))
    assert decode_image(bytes_of(image, "TIFF", compression=compression)).tobytes() == image.tobytes()
