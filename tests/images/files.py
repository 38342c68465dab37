"""Image files made in memory."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image


def bytes_of(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def many_scans(count: int, side: int = 1024) -> bytes:
    """A progressive JPEG whose last scan comes ``count`` times; libjpeg passes over the whole image for each."""
    data = bytes_of(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def slow(size: int = 19_000_000) -> bytes:
    """A file that takes Pillow seconds to find damaged: it looks for a JPEG's next segment in Python, byte by byte."""
    return b"\xff\xd8\xff\xfe\x00\x02" + bytes(size)
