"""From a request to its answer: read, decode, wait for a place in a batch, compute; counted and logged."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.requests import ClientDisconnect
from torch import Tensor

from tvm_na.models.preprocessing import resize_and_crop, to_tensor
from tvm_na.serve.batcher import Batcher
from tvm_na.serve.classifier import Classifier, Prediction
from tvm_na.serve.limits import Deadline, Gate, Limits
from tvm_na.serve.observability import Metrics, log
from tvm_na.serve.overlay import draw_overlay
from tvm_na.serve.uploads import HttpError, decode_image, read_image

#: From the bytes of an upload to the response.
Work = Callable[[bytes], Coroutine[Any, Any, Response]]

_DECODERS = min(4, os.cpu_count() or 1)
_CLIENT_GONE = 499  # nobody reads it; what others log in such a case


@dataclass(frozen=True)
class Seen:
    """An upload as the model sees it.

    Attributes:
        size: Width and height as uploaded, upright.
        image: Resized and cropped, RGB.
        x: The model's input, float32 ``[3, S, S]``.
        pixel: Row and column in ``image`` whose attention is asked for.
    """

    size: tuple[int, int]
    image: Image.Image
    x: Tensor
    pixel: tuple[int, int]


class Service:
    """A classifier behind limits. Made in any thread; requests are answered in one event loop.

    Attributes:
        requests: How many have come.
        answered: How many of them were answered, with an error or without.
    """

    def __init__(self, classifier: Classifier, limits: Limits) -> None:
        self.classifier, self.limits = classifier, limits
        self.metrics, self.gate = Metrics(), Gate(limits.max_queue)
        self.requests = self.answered = 0
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self._predictions: Batcher[Seen, list[Prediction]] = Batcher(
            lambda batch: classifier.predict([seen.x for seen in batch]),
            max_batch=limits.max_batch,
            max_delay=limits.max_delay_ms / 1000,
            name="classify",
            observe=self.metrics.batch,
        )
        self._overlays: Batcher[Seen, bytes] = Batcher(self._draw, max_batch=1, max_delay=0, name="overlay")
        self.metrics.gauge("tvm_na_queue_length", "Images that wait for a batch", lambda: len(self._predictions))
        self.metrics.gauge("tvm_na_requests_in_progress", "Requests in the server", lambda: self.gate.inside)

    async def classify(self, request: Request) -> Response:
        """The best classes of the image in a request, as JSON."""

        async def work(data: bytes) -> Response:
            seen = await self._decoded(data, (0, 0))
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
            seen = await self._decoded(data, (pixel[0], pixel[1]))
            png = await asyncio.wrap_future(self._overlays.submit(seen))
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
        }

    def why_not_ready(self) -> str | None:
        """What keeps the server from answering; None if nothing does."""
        for name, batcher in (("classify", self._predictions), ("overlay", self._overlays)):
            if not batcher.is_alive:
                return f"the thread {name!r} has ended"
            if batcher.busy_seconds > self.limits.timeout:
                return f"the thread {name!r} has computed for {batcher.busy_seconds:.0f} s"
        return None

    def close(self, timeout: float) -> bool:
        """Work off what waits and stop the threads; whether that was done within about ``timeout`` seconds."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        closed = [batcher.close(timeout) for batcher in (self._predictions, self._overlays)]
        return all(closed)

    async def _answer(self, request: Request, endpoint: str, work: Work) -> Response:
        self.requests += 1
        start, size = time.perf_counter(), 0
        deadline = Deadline(self.limits.timeout)
        try:
            with self.gate:
                data = await deadline.upload(read_image(request, self.limits.max_bytes))
                size = len(data)
                response = await deadline.compute(request, work(data))
            outcome = "ok"
        except HttpError as error:
            outcome, response = error.outcome, error.response()
        except ClientDisconnect:
            outcome, response = "disconnected", Response(status_code=_CLIENT_GONE)
        except Exception as error:  # the model's or ours; the next request may do better
            log("failed", endpoint=endpoint, error=error)
            outcome, response = "failed", JSONResponse({"error": "server: the model failed; see the server's log"}, 500)
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

    def _decoded(self, data: bytes, pixel: tuple[int, int]) -> asyncio.Future[Seen]:
        return asyncio.get_running_loop().run_in_executor(self._decoders, self._see, data, pixel)

    def _see(self, data: bytes, pixel: tuple[int, int]) -> Seen:
        preprocessing = self.classifier.preprocessing
        image = decode_image(data, preprocessing, self.limits.max_pixels)
        cropped = resize_and_crop(image, preprocessing)
        return Seen(image.size, cropped, to_tensor(cropped, preprocessing), pixel)

    def _draw(self, batch: list[Seen]) -> list[bytes | Exception]:
        return [draw_overlay(s.image, self.classifier.attend(s.x, s.pixel), s.pixel) for s in batch]
