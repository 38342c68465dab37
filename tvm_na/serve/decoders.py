"""Processes that decode images: one image each at a time, ended when it takes too long, and replaced.

They are programs of their own (:mod:`tvm_na.serve.decoder`), which import Pillow and no more: forking a process that
has threads is not safe, and a new one must be there in a tenth of a second.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from typing import Any

from tvm_na.images.preprocessing import Preprocessing
from tvm_na.serve.decoder_process import DecoderProcess, EndedError
from tvm_na.serve.errors import HttpError
from tvm_na.serve.limits import Limits
from tvm_na.serve.observability import warn

_START_SECONDS = 30.0  # on a busy machine
_STATUS = {"unknown": 415, "damaged": 400, "too_large": 413}


@dataclass(frozen=True)
class Decoded:
    """An upload as the model sees it.

    Attributes:
        size: Width and height as uploaded, upright.
        pixels: Resized and cropped, RGB, ``input_size`` rows of as many pixels.
    """

    size: tuple[int, int]
    pixels: bytes


class _Slot:
    """The place of a process, which may be empty."""

    def __init__(self) -> None:
        self.process: DecoderProcess | None = None
        self.is_busy = False

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.is_alive


class Decoders:
    """Decoder processes, and how they are. Made in any thread; asked in one event loop.

    Attributes:
        replaced: How many processes were replaced: ended by what they decoded, or by us.
    """

    def __init__(self, preprocessing: Preprocessing, limits: Limits, count: int) -> None:
        """Begin to start ``count`` processes, which takes a tenth of a second."""
        settings = (asdict(preprocessing), limits.max_pixels, limits.max_bytes, limits.decode_timeout)
        self._arguments = [json.dumps(setting) for setting in settings]
        self._seconds, self._bytes = limits.decode_timeout, 3 * preprocessing.input_size**2
        self._slots = [_Slot() for _ in range(count)]
        self._idle: asyncio.Queue[_Slot] = asyncio.Queue()
        self._closed = False
        self.replaced = 0
        for slot in self._slots:
            self._start(slot)
            self._idle.put_nowait(slot)

    async def start(self) -> None:
        """Wait until all processes are ready.

        Raises:
            RuntimeError: One does not start; the log says why.
        """
        try:
            await asyncio.gather(*map(self._ready, self._slots))
        except HttpError as error:
            raise RuntimeError(str(error)) from error

    async def decode(self, data: bytes) -> Decoded:
        """The pixels of an image file. Cancelling ends the process that is at it.

        Raises:
            HttpError: 400, 413 or 415, it is refused; 503, there is no process that could decode it.
        """
        slot = await self._idle.get()
        slot.is_busy = True
        try:
            return await self._ask(slot, await self._ready(slot), data)
        finally:
            slot.is_busy = False
            self._idle.put_nowait(slot)

    def state(self) -> dict[str, int]:
        """How many there should be, are alive, are busy, and were replaced."""
        return {
            "count": len(self._slots),
            "alive": sum(slot.is_alive for slot in self._slots),
            "busy": sum(slot.is_busy for slot in self._slots),
            "replaced": self.replaced,
        }

    def pids(self) -> list[int]:
        """The processes that are alive."""
        return [slot.process.pid for slot in self._slots if slot.process is not None and slot.is_alive]

    def heal(self) -> None:
        """Replace processes that ended while they had nothing to do."""
        for slot in self._slots:
            if not slot.is_busy and not slot.is_alive:
                self._replace(slot)

    def close(self) -> None:
        """End all processes, whatever they do."""
        self._closed = True
        for slot in self._slots:
            self._end(slot)

    async def _ready(self, slot: _Slot) -> DecoderProcess:
        if not slot.is_alive:
            self._replace(slot)
        if slot.process is None:
            raise _no_decoder("none")
        if slot.process.is_ready:
            return slot.process
        try:
            await asyncio.wait_for(slot.process.ready(), _START_SECONDS)
        except (EndedError, asyncio.TimeoutError, TimeoutError) as error:
            warn("decoder", start=await slot.process.how_it_ended(), said=slot.process.said())
            self._end(slot)
            raise _no_decoder("one that does not start") from error
        return slot.process

    async def _ask(self, slot: _Slot, process: DecoderProcess, data: bytes) -> Decoded:
        try:
            answer, pixels = await asyncio.wait_for(process.exchange(data, self._bytes), self._seconds)
            result = self._result(answer, pixels)
        except (asyncio.TimeoutError, TimeoutError) as error:
            self._replace(slot)
            message = f"image: required one that is decoded within {self._seconds:g} s, got one that takes longer"
            raise HttpError(413, message) from error
        except EndedError as error:
            how = await process.how_it_ended()
            warn("decoder", ended=how, error=error, said=process.said())
            self._replace(slot)
            raise HttpError(400, f"image: required a whole file, got one that ended its decoder: {how}") from error
        except BaseException:  # cancelled, as nobody waits for the answer any more
            self._replace(slot)
            raise
        if said := process.said():
            warn("decoder", said=said)
        if isinstance(result, HttpError):
            raise result
        return result

    def _result(self, answer: dict[str, Any], pixels: bytes) -> Decoded | HttpError:
        """What an answer says, of which nothing is taken on trust."""
        if (kind := str(answer.get("kind"))) in _STATUS:
            return HttpError(_STATUS[kind], str(answer.get("message")))
        size = answer.get("size")
        if not isinstance(size, list) or [type(side) for side in size] != [int, int] or len(pixels) != self._bytes:
            raise EndedError("its answer is no image")
        return Decoded((size[0], size[1]), pixels)

    def _start(self, slot: _Slot) -> None:
        try:
            slot.process = DecoderProcess(self._arguments)
        except OSError as error:  # too many files or processes; the next request tries again
            warn("decoder", start=error)

    def _replace(self, slot: _Slot) -> None:
        self._end(slot)
        if not self._closed:
            self.replaced += 1
            self._start(slot)

    def _end(self, slot: _Slot) -> None:
        process, slot.process = slot.process, None
        if process is not None:
            process.end()


def _no_decoder(got: str) -> HttpError:
    return HttpError(503, f"server: required a decoder, got {got}; see the server's log", {"Retry-After": "1"})
