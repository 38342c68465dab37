"""From a request to its answer: read, decode, wait for a place in a batch, compute; counted and logged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.requests import ClientDisconnect
from torch import Tensor

from tvm_na.models.preprocessing import to_tensor
from tvm_na.serve.batcher import Batcher
from tvm_na.serve.classifier import Classifier, Prediction
from tvm_na.serve.decoders import Decoded, Decoders
from tvm_na.serve.errors import HttpError, error_response
from tvm_na.serve.limits import Arrivals, Deadline, Gate, Limits
from tvm_na.serve.observability import Metrics, log
from tvm_na.serve.overlay import draw_overlay
from tvm_na.serve.uploads import read_image
from tvm_na.settings import available_cores

#: From the bytes of an upload to the response.
Work = Callable[[bytes], Coroutine[Any, Any, Response]]

_MOST_DECODERS = 4
_CLIENT_GONE = 499  # nobody reads it; what others log in such a case


@dataclass(frozen=True)
class Asked:
    """An overlay that is asked for: the image as the model sees it, and row and column of the pixel."""

    seen: Decoded
    pixel: tuple[int, int]


class Service:
    """A classifier behind limits. Made in any thread; requests are answered in one event loop.

    Attributes:
        requests: How many have come.
        answered: How many of them were answered, with an error or without.
    """

    def __init__(self, classifier: Classifier, limits: Limits) -> None:
        self.classifier, self.limits = classifier, limits
        self.metrics, self.gate, self.arrivals = Metrics(), Gate(limits.max_queue), Arrivals(limits.max_queue)
        self.requests = self.answered = 0
        self.decoders = Decoders(classifier.preprocessing, limits, min(_MOST_DECODERS, available_cores()))
        self._predictions: Batcher[Decoded, list[Prediction]] = Batcher(
            lambda batch: classifier.predict([self._input(seen) for seen in batch]),
            max_batch=limits.max_batch,
            max_delay=limits.max_delay_ms / 1000,
            name="classify",
            observe=self.metrics.batch,
        )
        self._overlays: Batcher[Asked, bytes] = Batcher(self._draw, max_batch=1, max_delay=0, name="overlay")
        self.metrics.gauge("tvm_na_queue_length", "Images that wait for a batch", lambda: len(self._predictions))
        self.metrics.gauge("tvm_na_requests_in_progress", "Requests in the server", lambda: self.inside)
        self.metrics.gauge("tvm_na_decoders_busy", "Processes that decode", lambda: self.decoders.state()["busy"])
        self.metrics.gauge("tvm_na_decoders_replaced", "Processes replaced", lambda: self.decoders.replaced)

    @property
    def inside(self) -> int:
        """How many requests are in the server: arriving, decoded, waiting or computed."""
        return len(self.arrivals) + self.gate.inside

    async def classify(self, request: Request) -> Response:
        """The best classes of the image in a request, as JSON."""

        async def work(data: bytes) -> Response:
            seen = await self.decoders.decode(data)
            predictions = await asyncio.wrap_future(self._predictions.submit(seen))
            return JSONResponse(
                {
                    "model": self.classifier.name,
                    "random_weights": self.classifier.random_weights,
                    "image": {"width": seen.size[0], "height": seen.size[1]},
                    "predictions": predictions,
                }
            )

        return await self._answer(request, "classify", work)

    async def overlay(self, request: Request, row: int | None, column: int | None) -> Response:
        """What a pixel of the image in a request attends to, as PNG; the pixel is the center if none is named."""

        async def work(data: bytes) -> Response:
            size = self.classifier.preprocessing.input_size
            pixel = tuple(size // 2 if value is None else value for value in (row, column))
            for name, value in zip(("row", "column"), pixel, strict=True):
                if not 0 <= value < size:
                    raise HttpError(400, f"{name}: required 0 to {size - 1}, got {value}")
            if self.classifier.attention is None:
                raise HttpError(501, f"overlay: not offered by this server: {self.classifier.no_attention}")
            asked = Asked(await self.decoders.decode(data), (pixel[0], pixel[1]))
            png = await asyncio.wrap_future(self._overlays.submit(asked))
            return Response(png, media_type="image/png")

        return await self._answer(request, "overlay", work)

    def info(self) -> dict[str, Any]:
        """What is served, and its limits."""
        classifier, limits = self.classifier, self.limits
        return {
            "model": classifier.name,
            "classes": classifier.classes,
            "labels": classifier.labels is not None,
            "random_weights": classifier.random_weights,
            "input_size": classifier.preprocessing.input_size,
            "crop_pct": classifier.preprocessing.crop_pct,
            "overlay": classifier.attention is not None,
            "no_overlay": classifier.no_attention or None,
            "max_bytes": limits.max_bytes,
            "max_pixels": limits.max_pixels,
            "timeout": limits.timeout,
            "decode_timeout": limits.decode_timeout,
        }

    def why_not_ready(self) -> str | None:
        """What keeps the server from answering; None if nothing does."""
        for name, batcher in (("classify", self._predictions), ("overlay", self._overlays)):
            if not batcher.is_alive:
                return f"the thread {name!r} has ended"
            if batcher.busy_seconds > self.limits.timeout:
                return f"the thread {name!r} has computed for {batcher.busy_seconds:.0f} s"
        self.decoders.heal()
        if not self.decoders.state()["alive"]:
            return "no decoder is alive"
        return None

    def close(self, timeout: float) -> bool:
        """Work off what waits, stop the threads, end the decoders; whether that was done within ``timeout`` seconds."""
        deadline = Deadline(timeout)
        self.decoders.close()
        closed = [batcher.close(deadline.left) for batcher in (self._predictions, self._overlays)]
        return all(closed)

    async def _answer(self, request: Request, endpoint: str, work: Work) -> Response:
        self.requests += 1
        start, size = time.perf_counter(), 0
        deadline = Deadline(self.limits.timeout)
        try:
            self.gate.require_room()  # before the client sends what will be refused
            data = await self.arrivals.read(partial(read_image, request, self.limits.max_bytes), deadline)
            size = len(data)
            with self.gate:
                response = await deadline.compute(request, work(data))
            outcome = "ok"
        except HttpError as error:
            outcome, response = error.outcome, error.response()
        except ClientDisconnect:
            outcome, response = "disconnected", Response(status_code=_CLIENT_GONE)
        except Exception as error:  # the model's or ours; the next request may do better
            log("failed", endpoint=endpoint, error=error)
            outcome, response = "failed", error_response(500, "server: the model failed; see the server's log")
        self.answered += 1
        seconds = time.perf_counter() - start
        self.metrics.request(endpoint, outcome, seconds)
        log(
            "request",
            endpoint=endpoint,
            status=response.status_code,
            outcome=outcome,
            bytes=size,
            milliseconds=round(seconds * 1000, 1),
        )
        return response

    def _input(self, seen: Decoded) -> Tensor:
        return to_tensor(self._image(seen), self.classifier.preprocessing)

    def _image(self, seen: Decoded) -> Image.Image:
        size = self.classifier.preprocessing.input_size
        return Image.frombytes("RGB", (size, size), seen.pixels)

    def _draw(self, batch: list[Asked]) -> list[bytes | Exception]:
        maps = [self.classifier.attend(self._input(asked.seen), asked.pixel) for asked in batch]
        return [draw_overlay(self._image(a.seen), m, a.pixel) for a, m in zip(batch, maps, strict=True)]
