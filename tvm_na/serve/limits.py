"""How much the server takes: a value checked once, how many requests are inside, how long each may take."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from tvm_na.images.budget import MOST_PIXELS
from tvm_na.serve.errors import HttpError

R = TypeVar("R")

MEGABYTE = 1_000_000
_PATIENCE = 1.0  # seconds that an upload has before it makes room for others


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        max_batch: Images that the model computes at once.
        max_delay_ms: Milliseconds that an image waits for others, at most.
        max_queue: Requests that are decoded, wait or are computed at once; as many more may be arriving.
        max_request_mb: Megabytes (10**6 bytes) of a request's body.
        max_pixels: Pixels of an image, as uploaded and as resized.
        timeout: Seconds that a request may take, from its first byte to its answer.
        decode_timeout: Seconds that decoding an image may take.

    Raises:
        TypeError, ValueError: name the limit, what was required and what came.
    """

    max_batch: int = 8
    max_delay_ms: float = 5.0
    max_queue: int = 64
    max_request_mb: float = 20.0
    max_pixels: int = 50_000_000
    timeout: float = 30.0
    decode_timeout: float = 5.0

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

    def require_room(self) -> None:
        """HttpError if there is no room: 503 with ``Retry-After``."""
        if self.inside >= self.capacity:
            raise _full(self.capacity)

    def __enter__(self) -> Gate:
        """Let a request in; HttpError if there is no room."""
        self.require_room()
        self.inside += 1
        return self

    def __exit__(self, *error: object) -> None:
        self.inside -= 1


def _full(capacity: int) -> HttpError:
    message = f"server: required fewer than {capacity} requests at once, got them; try again later"
    return HttpError(503, message, {"Retry-After": "1"})


class Arrival:
    """An upload on its way."""

    def __init__(self) -> None:
        self._bytes, self._since = 0, time.monotonic()

    def count(self, size: int) -> None:
        """Note that so many bytes more have come."""
        self._bytes += size

    @property
    def seconds(self) -> float:
        """How long it has been on its way."""
        return time.monotonic() - self._since

    @property
    def speed(self) -> float:
        """Bytes per second."""
        return self._bytes / max(self.seconds, 1e-9)


class Arrivals:
    """At most ``capacity`` uploads on their way, which hold no place of what is computed; in the event loop alone.

    Where all places are taken, the slowest upload makes room for a new one: clients that send a byte now and then keep
    nobody out.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._arriving: dict[asyncio.Future[Any], Arrival] = {}

    def __len__(self) -> int:
        return len(self._arriving)

    async def read(self, read: Callable[[Arrival], Coroutine[Any, Any, R]], deadline: Deadline) -> R:
        """What ``read`` gives, which counts the bytes that arrive.

        Raises:
            HttpError: 408, it did not arrive in time, or had to make room; 503, there is no room.
        """
        self._make_room()
        arrival = Arrival()
        reading = asyncio.ensure_future(read(arrival))
        self._arriving[reading] = arrival
        try:
            await asyncio.wait({reading}, timeout=deadline.left)
            if reading.done() and not reading.cancelled():
                return reading.result()
            within = f"{deadline.timeout:g} s" if not deadline.left else "less time while others wait for its place"
        finally:
            self._arriving.pop(reading, None)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        raise HttpError(408, f"body: required within {within}, got a part of it", {"Connection": "close"})

    def end(self) -> None:
        """Wait for none of them any more."""
        for reading in self._arriving:
            reading.cancel()

    def _make_room(self) -> None:
        if len(self._arriving) < self._capacity:
            return
        slowest = min(self._arriving, key=lambda reading: self._arriving[reading].speed)
        if self._arriving[slowest].seconds < _PATIENCE:
            raise _full(self._capacity)
        del self._arriving[slowest]
        slowest.cancel()


class Deadline:
    """When a request is to be answered at the latest: ``timeout`` seconds from now."""

    def __init__(self, timeout: float) -> None:
        self.timeout, self._end = timeout, time.monotonic() + timeout

    @property
    def left(self) -> float:
        """Seconds until then; 0 afterwards."""
        return max(0.0, self._end - time.monotonic())

    async def compute(self, request: Request, work: Coroutine[Any, Any, R]) -> R:
        """The result of ``work``, which is cancelled when the time is over or the client of ``request`` goes away.

        Raises:
            HttpError: 504; there was no result in time.
            ClientDisconnect: The client went away.
        """
        working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait({working, leaving}, timeout=self.left, return_when=asyncio.FIRST_COMPLETED)
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
