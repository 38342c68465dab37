"""A decoder process as the server sees it: started, asked, ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

from tvm_na.serve.decoder import ENVIRONMENT, LENGTH, READY

# A program of its own with this process's path, of which nothing is imported before.
_PROGRAM = "import sys; sys.path[:] = sys.argv.pop().split('\\n'); from tvm_na.serve.decoder import main; main()"
_MOST_SAID = 65_536  # what a pipe holds
_MOST_TEXT = 4096  # of an answer


class EndedError(Exception):
    """The process has ended, or answers in another language."""


class DecoderProcess:
    """A process, the socket to it, and what it prints, of which no more is kept than a pipe holds.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.is_ready = False
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        try:
            self._said, saying = os.pipe()
        except OSError:
            self._socket.close()
            theirs.close()
            raise
        os.set_blocking(self._said, False)
        os.set_blocking(saying, False)  # what does not fit is lost; the decoder does not wait
        command = [sys.executable, "-c", _PROGRAM, *arguments, "\n".join(sys.path)]
        try:
            self._popen = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=saying, stderr=saying, env={**os.environ, **ENVIRONMENT}
            )
        except BaseException:
            self._socket.close()
            os.close(self._said)
            raise
        finally:
            theirs.close()
            os.close(saying)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._popen.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    async def ready(self) -> None:
        """Wait, once, until it has imported what it needs; EndedError if it could not."""
        if await self._read(len(READY)) != READY:
            raise EndedError("it did not say that it is ready")
        self.is_ready = True

    async def exchange(self, data: bytes, most: int) -> tuple[dict[str, Any], bytes]:
        """What it answers to an image file: a description, and at most so many bytes; EndedError if nothing."""
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self._socket, LENGTH.pack(len(data)))
            await loop.sock_sendall(self._socket, data)
        except ConnectionError as error:
            raise EndedError(str(error)) from error
        (length,) = LENGTH.unpack(await self._read(LENGTH.size))
        if length > most + _MOST_TEXT:
            raise EndedError(f"it answered with {length} bytes")
        line, _, rest = (await self._read(length)).partition(b"\n")
        try:
            return dict(json.loads(line)), rest
        except (ValueError, TypeError) as error:
            raise EndedError(f"it answered {line[:100]!r}") from error

    def said(self) -> str:
        """What it has printed since it was last asked."""
        try:
            return os.read(self._said, _MOST_SAID).decode(errors="replace")
        except BlockingIOError:
            return ""

    async def how_it_ended(self) -> str:
        """How it ended by itself, in words; a socket closes a moment before its process is gone."""
        for _ in range(50):
            if (code := self._popen.poll()) is not None:
                return signal.Signals(-code).name if code < 0 else f"exit code {code}"
            await asyncio.sleep(0.02)
        return "no end"

    def end(self) -> None:
        """End it, whatever it does."""
        self._popen.kill()
        self._socket.close()
        os.close(self._said)
        # To free a gigabyte takes a process a tenth of a second, for which the event loop does not wait.
        threading.Thread(target=self._popen.wait, daemon=True).start()

    async def _read(self, count: int) -> bytes:
        loop, data = asyncio.get_running_loop(), bytearray()
        while len(data) < count:
            try:
                part = await loop.sock_recv(self._socket, min(count - len(data), 2**20))
            except ConnectionError as error:
                raise EndedError(str(error)) from error
            if not part:
                raise EndedError("it closed its socket")
            data += part
        return bytes(data)
