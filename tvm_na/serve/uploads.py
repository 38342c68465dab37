"""The image in a request: its bytes counted while they arrive, and refused before they cost anything."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from fastapi import Request
from fastapi.responses import JSONResponse
from PIL import Image, ImageOps, UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

if TYPE_CHECKING:
    from tvm_na.models.registry import Preprocessing

FIELD = "image"
_FIELDS = 8

#: Formats that are read; Pillow knows more, of which one calls other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# What Pillow's decoders raise for damaged files, found by changing bytes at random (tests/serve/test_uploads.py).
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, OverflowError, struct.error, zlib.error)

_OUTCOMES = {
    400: "invalid",
    408: "timeout",
    413: "too_large",
    415: "invalid",
    501: "not_offered",
    503: "full",
    504: "timeout",
}


class HttpError(Exception):
    """A request that is answered with an error; ``outcome`` is what metrics call it."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.outcome, self.headers = status, _OUTCOMES[status], headers or {}

    def response(self) -> JSONResponse:
        """``{"error": message}`` with the status."""
        return JSONResponse({"error": str(self)}, self.status, self.headers)


async def read_image(request: Request, max_bytes: int) -> bytes:
    """The image file that a request brings: as its body with a content type ``image/...``, or as the file ``image`` of
    a ``multipart/form-data`` body.

    No more than ``max_bytes`` of the body are kept, whatever length the client names.

    Raises:
        HttpError: 400, 413 or 415.
        starlette.requests.ClientDisconnect: The client went away.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data" and not kind.startswith("image/"):
        got = repr(kind) if kind else "none"
        raise HttpError(415, f"content-type: required multipart/form-data or image/..., got {got}")
    body = await _read_body(request, max_bytes)
    return body if kind.startswith("image/") else await _file_of_form(request, body)


async def _read_body(request: Request, max_bytes: int) -> bytes:
    length = request.headers.get("content-length")
    announced = int(length) if length is not None else 0  # a server has checked that it is a number
    too_large = HttpError(413, f"body: required at most {max_bytes} bytes, got more", {"Connection": "close"})
    # Many clients look for an answer only after they have sent everything, and fail if the connection is closed before.
    # So one that is not far too large is read to its end, but not kept.
    if announced > 2 * max_bytes or (announced > max_bytes and "expect" in request.headers):
        raise too_large
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > 2 * max_bytes:
            raise too_large
        if size > max_bytes:
            chunks.clear()
        else:
            chunks.append(chunk)
    if size > max_bytes:
        raise too_large
    return b"".join(chunks)


async def _file_of_form(request: Request, body: bytes) -> bytes:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    wanted = f"form: required one file named {FIELD!r}"
    parser = MultiPartParser(request.headers, whole(), max_files=1, max_fields=_FIELDS)
    parser.spool_max_size = len(body) + 1  # in memory, where the body is already
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HttpError(400, f"{wanted}, got a form that cannot be read: {error.message}") from error
    try:
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            names = ", ".join(repr(name) for name in form) or "nothing"
            raise HttpError(400, f"{wanted}, got {names if file is None else 'text'}")
        return await file.read()
    finally:
        await form.close()


def decode_image(data: bytes, preprocessing: Preprocessing, max_pixels: int) -> Image.Image:
    """An image file as RGB, turned the way its EXIF orientation says; of an animation the first frame.

    It will be resized for ``preprocessing``, which must not make it larger than ``max_pixels`` either.

    Raises:
        HttpError: 400 for a damaged file, 413 for too many pixels, 415 for an unknown format.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        got = f"{len(data)} bytes of something else" if data else "nothing"
        raise HttpError(415, f"image: required {', '.join(FORMATS)}, got {got}") from error
    except Image.DecompressionBombError as error:
        raise HttpError(413, f"image: required at most {max_pixels} pixels, got more: {error}") from error
    except _BROKEN as error:
        raise HttpError(400, f"image: required a whole file, got a damaged one: {error}") from error
    with image:
        _check_size(image.size, preprocessing, max_pixels)
        try:
            return ImageOps.exif_transpose(image).convert("RGB")
        except _BROKEN as error:
            raise HttpError(400, f"image: required a whole {image.format} file, got {error}") from error


def _check_size(size: tuple[int, int], preprocessing: Preprocessing, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise HttpError(413, f"image: required at most {max_pixels} pixels, got {width}x{height}")
    # The shorter side is resized to a fixed length, so a line of pixels becomes a huge strip.
    shorter = preprocessing.input_size / preprocessing.crop_pct
    if shorter * shorter * max(size) / min(size) > max_pixels:
        most = int(max_pixels / shorter**2)
        raise HttpError(413, f"image: required sides of a ratio of at most {most}, got {width}x{height}")
