"""The image in a request: the body itself, or a part of a form; counted while it arrives."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from tvm_na.serve.refusal import Refusal

FIELD = "image"
_FIELDS = 8


async def read_image(request: Request, max_bytes: int) -> bytes:
    """The image file that a request brings: as its body with a content type ``image/...``, or as the file ``image`` of
    a ``multipart/form-data`` body.

    Args:
        request: Its body has not been read.
        max_bytes: Most bytes of the body. No more are kept, whatever length the client names.

    Raises:
        Refusal: 400, 413 or 415.
        starlette.requests.ClientDisconnect: The client went away.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data" and not kind.startswith("image/"):
        got = repr(kind) if kind else "none"
        raise Refusal(415, "invalid", f"content-type: required multipart/form-data or image/..., got {got}")
    body = await _read_body(request, max_bytes)
    return body if kind.startswith("image/") else await _file_of_form(request, body)


async def _read_body(request: Request, max_bytes: int) -> bytes:
    length = request.headers.get("content-length")
    announced = int(length) if length is not None else 0  # a server has checked that it is a number
    refusal = Refusal(413, "too_large", f"body: required at most {max_bytes} bytes, got more", {"Connection": "close"})
    # Many clients look for an answer only after they have sent everything, and fail if the connection is closed before.
    # So one that is not far too large is read to its end, but not kept.
    if announced > 2 * max_bytes or (announced > max_bytes and "expect" in request.headers):
        raise refusal
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > 2 * max_bytes:
            raise refusal
        if size > max_bytes:
            chunks.clear()
        else:
            chunks.append(chunk)
    if size > max_bytes:
        raise refusal
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
        raise Refusal(400, "invalid", f"{wanted}, got a form that cannot be read: {error.message}") from error
    try:
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            names = ", ".join(repr(name) for name in form) or "nothing"
            raise Refusal(400, "invalid", f"{wanted}, got {names if file is None else 'text'}")
        return await file.read()
    finally:
        await form.close()
