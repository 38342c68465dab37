"""How many requests are in the server, and how long each may take."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from tvm_na.serve.refusal import Refusal

R = TypeVar("R")


class Gate:
    """Lets at most so many requests in at once; used in the event loop alone.

    Attributes:
        capacity: Most requests.
        inside: Requests that are in.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.inside = capacity, 0

    def __enter__(self) -> Gate:
        """Let a request in.

        Raises:
            Refusal: 503 with ``Retry-After``; there is no room.
        """
        if self.inside >= self.capacity:
            message = f"server: required fewer than {self.capacity} requests at once, got them; try again later"
            raise Refusal(503, "full", message, {"Retry-After": "1"})
        self.inside += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.inside -= 1


class Deadline:
    """When a request is to be answered at the latest.

    Attributes:
        timeout: Seconds from now.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout, self._end = timeout, time.monotonic() + timeout

    async def upload(self, reading: Coroutine[Any, Any, R]) -> R:
        """The result of reading a request's body.

        Raises:
            Refusal: 408; it did not arrive in time.
        """
        try:
            return await asyncio.wait_for(reading, max(0.0, self._end - time.monotonic()))
        except (asyncio.TimeoutError, TimeoutError) as error:  # the same from Python 3.11 on
            message = f"body: required within {self.timeout:g} s, got a part of it"
            raise Refusal(408, "timeout", message, {"Connection": "close"}) from error

    async def compute(self, request: Request, work: Coroutine[Any, Any, R]) -> R:
        """The result of ``work``, which is cancelled when the time is over or the client goes away.

        Args:
            request: Its body has been read.

        Raises:
            Refusal: 504; there was no result in time.
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
        raise Refusal(504, "timeout", message, {"Retry-After": str(max(1, math.ceil(self.timeout)))})


async def _left(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
