"""What a decoder process does: image files in, the pixels that the model sees out, until its socket is closed.

A message either way is its length as eight bytes and so many bytes. An answer is a line of JSON, and the pixels if
there are some: data, which whoever broke out of a codec cannot make the server run.
"""

from __future__ import annotations

import ctypes
import json
import resource
import select
import signal
import socket
import struct
import sys
import warnings
from typing import Any

from tvm_na.images.decode import ImageError, decode_image
from tvm_na.images.preprocessing import Preprocessing, resize_and_crop

LENGTH = struct.Struct(">Q")
READY = b"+"

_BASE_MEMORY = 256 * 2**20
# Bytes per pixel: coefficients of a progressive JPEG or two canvases of an animation, the image, turned, as RGB.
_PIXEL_MEMORY = 24
_FILES = 16
_IDLE_SECONDS = 2.0  # until memory goes back to the system
#: For glibc: keep what images need for the next one, as to get it anew costs as much time as half of the decoding.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


def main() -> None:
    """Serve the socket that is this process's standard input.

    The arguments are JSON: preprocessing, the most pixels, the most bytes of a file, seconds per image.
    """
    preprocessing = Preprocessing(**json.loads(sys.argv[1]))
    max_pixels, max_bytes, seconds = map(json.loads, sys.argv[2:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the server ends its decoders
    warnings.simplefilter("ignore")
    _confine(_BASE_MEMORY + _PIXEL_MEMORY * max_pixels + 4 * max_bytes)
    with socket.socket(fileno=0) as server:
        server.sendall(READY)
        while (data := _receive(server)) is not None:
            signal.setitimer(signal.ITIMER_REAL, 2 * seconds)  # ends this process, should the server have gone
            answer, pixels = _answer(data, preprocessing, max_pixels)
            signal.setitimer(signal.ITIMER_REAL, 0)
            del data
            line = json.dumps(answer).encode() + b"\n"
            server.sendall(LENGTH.pack(len(line) + len(pixels)) + line + pixels)


def _confine(memory: int) -> None:
    """Whatever a file makes a codec do, it writes no file, opens few and takes no more memory than this."""
    limits = ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0))
    for which, most in (*limits, (resource.RLIMIT_NOFILE, _FILES)):
        _, hard = resource.getrlimit(which)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


def _receive(server: socket.socket) -> bytearray | None:
    """The next message, or None when there will be none."""
    if not select.select([server], [], [], _IDLE_SECONDS)[0]:
        _give_memory_back()
    size = bytearray(LENGTH.size)
    if not _fill(server, size):
        return None
    data = bytearray(LENGTH.unpack(size)[0])
    return data if _fill(server, data) else None


def _give_memory_back() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # of glibc, which keeps memory otherwise
        libc.malloc_trim(0)


def _fill(server: socket.socket, data: bytearray) -> bool:
    view = memoryview(data)
    while view:
        count = server.recv_into(view)
        if not count:
            return False
        view = view[count:]
    return True


def _answer(data: bytearray, preprocessing: Preprocessing, max_pixels: int) -> tuple[dict[str, Any], bytes]:
    try:
        image = decode_image(bytes(data), max_pixels, preprocessing)
        return {"size": image.size}, resize_and_crop(image, preprocessing).tobytes()
    except ImageError as error:
        return {"kind": error.kind, "message": str(error)[:500]}, b""
    except MemoryError:
        return {"kind": "too_large", "message": "image: required one that fits into the decoder's memory"}, b""
