"""The image in a request: its bytes counted while they arrive, and refused before they cost anything."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncGenerator

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from tvm_na.serve.errors import HttpError
from tvm_na.serve.limits import Arrival

FIELD = "image"
_FIELDS = 8
_PIECE = 65_536  # bytes

# Of what the form's texts are in; a name of a codec runs it, and Python has stranger ones.
_CHARSETS = ("utf-8", "ascii", "iso8859-1")


async def read_image(request: Request, max_bytes: int, arrival: Arrival) -> bytes:
    """The image file that a request brings: as its body with a content type ``image/...``, or as the file ``image`` of
    a ``multipart/form-data`` body.

    No more than ``max_bytes`` of the body are kept, whatever length the client names. ``arrival`` counts what comes.

    Raises:
        HttpError: 400, 413 or 415.
        starlette.requests.ClientDisconnect: The client went away.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data" and not kind.startswith("image/"):
        got = repr(kind) if kind else "none"
        raise HttpError(415, f"content-type: required multipart/form-data or image/..., got {got}")
    body = await _read_body(request, max_bytes, arrival)
    return body if kind.startswith("image/") else await _file_of_form(request, body)


async def _read_body(request: Request, max_bytes: int, arrival: Arrival) -> bytes:
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
        arrival.count(len(chunk))
        if size > 2 * max_bytes:
            raise too_large
        if size > max_bytes:
            chunks.clear()
        else:
            chunks.append(chunk)
    if size > max_bytes:
        raise too_large
    return b"".join(chunks)


def _check_charset(content_type: str) -> None:
    charset = parse_options_header(content_type)[1].get(b"charset", b"utf-8").decode("latin-1")
    try:
        known = codecs.lookup(charset).name in _CHARSETS
    except (LookupError, ValueError):
        known = False
    if not known:
        raise HttpError(400, f"content-type: required a charset of {', '.join(_CHARSETS)}, got {charset!r}")


async def _file_of_form(request: Request, body: bytes) -> bytes:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), _PIECE):
            await asyncio.sleep(0)  # parsing takes up to 0.2 us per byte, in which others would wait
            yield body[start : start + _PIECE]

    wanted = f"form: required one file named {FIELD!r}"
    _check_charset(request.headers["content-type"])
    parser = MultiPartParser(request.headers, pieces(), max_files=1, max_fields=_FIELDS)
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
