"""An upload's bytes to an image: what is too large, unknown or broken is an error before it costs anything."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from tvm_na.models.registry import Preprocessing

#: Formats that are read; Pillow knows more, of which one calls other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# What Pillow's decoders raise for damaged files, found by changing bytes at random (tests/serve/test_decode.py).
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, OverflowError, struct.error, zlib.error)


class UnknownFormatError(ValueError):
    """The bytes are no image of a known format."""


class TooManyPixelsError(ValueError):
    """The image has, or would have after resizing, too many pixels; it was not decoded."""


class BrokenImageError(ValueError):
    """The image's format is known, but its data is damaged or cut off."""


def decode_image(data: bytes, preprocessing: Preprocessing, max_pixels: int) -> Image.Image:
    """An image file as RGB, turned the way its EXIF orientation says; of an animation the first frame.

    Args:
        data: The file's content.
        preprocessing: How the image will be resized, which must not make it too large either.
        max_pixels: Most pixels.

    Raises:
        UnknownFormatError, TooManyPixelsError, BrokenImageError: ValueErrors that say what was required and what came.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        got = f"{len(data)} bytes of something else" if data else "nothing"
        raise UnknownFormatError(f"image: required {', '.join(FORMATS)}, got {got}") from error
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(f"image: required at most {max_pixels} pixels, got more: {error}") from error
    except _BROKEN as error:
        raise BrokenImageError(f"image: required a whole file, got a damaged one: {error}") from error
    with image:
        _check_size(image.size, preprocessing, max_pixels)
        try:
            return ImageOps.exif_transpose(image).convert("RGB")
        except _BROKEN as error:
            raise BrokenImageError(f"image: required a whole {image.format} file, got {error}") from error


def _check_size(size: tuple[int, int], preprocessing: Preprocessing, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise TooManyPixelsError(f"image: required at most {max_pixels} pixels, got {width}x{height}")
    # The shorter side is resized to a fixed length, so a line of pixels becomes a huge strip.
    shorter = preprocessing.input_size / preprocessing.crop_pct
    if shorter * shorter * max(size) / min(size) > max_pixels:
        most = int(max_pixels / shorter**2)
        raise TooManyPixelsError(f"image: required sides of a ratio of at most {most}, got {width}x{height}")
