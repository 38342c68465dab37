"""How much the server takes: a value checked once, how many requests are inside, how long each may take."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from tvm_na.serve.uploads import HttpError

R = TypeVar("R")

MEGABYTE = 1_000_000
#: Pillow itself warns of larger images, and refuses those twice as large.
MOST_PIXELS = 89_478_485


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        max_batch: Images that the model computes at once.
        max_delay_ms: Milliseconds that an image waits for others, at most.
        max_queue: Requests that are in the server at once, from their first byte to their answer.
        max_request_mb: Megabytes (10**6 bytes) of a request's body.
        max_pixels: Pixels of an image, as uploaded and as resized.
        timeout: Seconds that a request may take, from its first byte to its answer.

    Raises:
        TypeError, ValueError: name the limit, what was required and what came.
    """

    max_batch: int = 8
    max_delay_ms: float = 5.0
    max_queue: int = 64
    max_request_mb: float = 20.0
    max_pixels: int = 50_000_000
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, whole = getattr(self, field.name), field.type == "int"
            wanted = "an integer" if whole else "a number"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise TypeError(f"{field.name}: required {wanted}, got {type(value).__name__} {value!r}")
            zero_allowed = field.name == "max_delay_ms"
            if not math.isfinite(value) or value < 0 or (value == 0 and not zero_allowed):
                raise ValueError(f"{field.name}: required {wanted} {'>= 0' if zero_allowed else '> 0'}, got {value!r}")
        if self.max_pixels > MOST_PIXELS:
            raise ValueError(f"max_pixels: required at most {MOST_PIXELS}, Pillow's limit, got {self.max_pixels}")

    @property
    def max_bytes(self) -> int:
        """Bytes of a request's body."""
        return int(self.max_request_mb * MEGABYTE)


class Gate:
    """Lets at most ``capacity`` requests in at once, and counts those ``inside``; used in the event loop alone."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.inside = capacity, 0

    def __enter__(self) -> Gate:
        """Let a request in.

        Raises:
            HttpError: 503 with ``Retry-After``; there is no room.
        """
        if self.inside >= self.capacity:
            message = f"server: required fewer than {self.capacity} requests at once, got them; try again later"
            raise HttpError(503, message, {"Retry-After": "1"})
        self.inside += 1
        return self

    def __exit__(self, *error: object) -> None:
        self.inside -= 1


class Deadline:
    """When a request is to be answered at the latest: ``timeout`` seconds from now."""

    def __init__(self, timeout: float) -> None:
        self.timeout, self._end = timeout, time.monotonic() + timeout

    async def upload(self, reading: Coroutine[Any, Any, R]) -> R:
        """The result of reading a request's body.

        Raises:
            HttpError: 408; it did not arrive in time.
        """
        try:
            return await asyncio.wait_for(reading, max(0.0, self._end - time.monotonic()))
        except (asyncio.TimeoutError, TimeoutError) as error:  # the same from Python 3.11 on
            message = f"body: required within {self.timeout:g} s, got a part of it"
            raise HttpError(408, message, {"Connection": "close"}) from error

    async def compute(self, request: Request, work: Coroutine[Any, Any, R]) -> R:
        """The result of ``work``, which is cancelled when the time is over or the client of ``request`` goes away.

        Raises:
            HttpError: 504; there was no result in time.
            ClientDisconnect: The client went away.
        """
        working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
        left = max(0.0, self._end - time.monotonic())
        try:
            await asyncio.wait({working, leaving}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if leaving.done():
                raise ClientDisconnect
        finally:
            working.cancel()
            leaving.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)
        message = f"server: required an answer within {self.timeout:g} s, got none; try again later"
        raise HttpError(504, message, {"Retry-After": str(max(1, math.ceil(self.timeout)))})


async def _left(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
