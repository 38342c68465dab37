"""Image files to RGB: the one decoder of the command line and of the server."""

from __future__ import annotations

import io
import os
import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401  reads WEBP

from tvm_na.images.budget import MOST_PIXELS, TIFF_COMPRESSIONS, jpeg_excess

if TYPE_CHECKING:
    from tvm_na.images.preprocessing import Preprocessing

#: Formats that are read; Pillow knows more, of which one calls other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# What Pillow's decoders raise for damaged files, found by changing bytes at random (tests/images/test_decode.py).
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, OverflowError, struct.error, zlib.error)

_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF


class ImageError(ValueError):
    """An image that is refused.

    Attributes:
        kind: ``"unknown"`` format or mode, ``"damaged"`` or ``"too_large"`` for a budget.
        required, got: What was required and what came.
    """

    def __init__(self, kind: str, required: str, got: str) -> None:
        super().__init__(f"image: required {required}, got {got}")
        self.kind, self.required, self.got = kind, required, got


def decode_image(data: bytes, max_pixels: int = 2 * MOST_PIXELS, resized: Preprocessing | None = None) -> Image.Image:
    """An image file as RGB, turned the way its EXIF orientation says; of an animation the first frame.

    Gray images of 12 and 16 bits are scaled to 8 bits. Those of 32 bits and of floating-point numbers do not say which
    value is white, and are refused. If it will be ``resized``, that must not make it larger than ``max_pixels`` either.

    Raises:
        ImageError: The file is damaged, no image that is read, or beyond a budget (:mod:`tvm_na.images.budget`).
    """
    if (most := jpeg_excess(data)) is not None:
        raise ImageError("too_large", most, "more")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        got = f"{len(data)} bytes of something else" if data else "nothing"
        raise ImageError("unknown", ", ".join(FORMATS), got) from error
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", f"at most {max_pixels} pixels", f"more: {error}") from error
    except MemoryError as error:
        raise _no_memory(error) from error
    except _BROKEN as error:
        raise ImageError("damaged", "a whole file", f"a damaged one: {error}") from error
    with image:
        _check_size(image.size, max_pixels, resized)
        _check_compression(image)
        try:
            levels = _gray_levels(image)
            upright = ImageOps.exif_transpose(image)
            return (upright if levels is None else upright.convert("I").point(levels, "L")).convert("RGB")
        except ImageError:
            raise
        except MemoryError as error:
            raise _no_memory(error) from error
        except _BROKEN as error:
            raise ImageError("damaged", f"a whole {image.format} file", str(error)) from error


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image file as RGB, as :func:`decode_image` does.

    Raises:
        FileNotFoundError: ``path`` is no file.
        ValueError: It cannot be read, or is refused.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"image: required an existing file, got {file}")
    try:
        return decode_image(file.read_bytes())
    except ImageError as error:
        raise ImageError(error.kind, error.required, f"{file}: {error.got}") from error
    except OSError as error:
        raise ImageError("damaged", "a file that can be read", f"{file}: {error}") from error


def _no_memory(error: MemoryError) -> ImageError:
    return ImageError("too_large", "one that fits into the decoder's memory", f"more: {error}")


def _check_size(size: tuple[int, int], max_pixels: int, resized: Preprocessing | None) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError("too_large", f"at most {max_pixels} pixels", f"{width}x{height}")
    if resized is None:
        return
    # The shorter side is resized to a fixed length, so a line of pixels becomes a huge strip.
    shorter = resized.input_size / resized.crop_pct
    if shorter * shorter * max(size) / min(size) > max_pixels:
        most = int(max_pixels / shorter**2)
        raise ImageError("too_large", f"sides of a ratio of at most {most}", f"{width}x{height}")


def _check_compression(image: Image.Image) -> None:
    if image.format == "TIFF" and (came := image.info.get("compression")) not in TIFF_COMPRESSIONS:
        raise ImageError("unknown", f"a TIFF compressed as one of {', '.join(TIFF_COMPRESSIONS)}", str(came))


def _gray_levels(image: Image.Image) -> list[int] | None:
    """What 8 bits each of 65 536 values becomes; None for modes that have 8 bits, which Pillow converts rightly."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # of older Pillows
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
        return _levels(tags.get(_BITS, (16,))[0], tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
    if image.mode in ("I", "F"):
        of = "integers of 32 bits or with a sign" if image.mode == "I" else "floating-point numbers"
        raise ImageError("unknown", "a mode of 8 bits per channel or 16 bits of gray", f"mode {image.mode} ({of})")
    return None


@lru_cache
def _levels(bits: int, inverted: bool) -> list[int]:
    most = 2**bits - 1
    levels = [min(255, (2 * value * 255 + most) // (2 * most)) for value in range(65536)]
    return [255 - level for level in levels] if inverted else levels
