"""Damaged images: a server answers each in time, by a class or by an error, and goes on."""

from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path
from typing import Any

from PIL import Image

from tests.fuzz.damage import damaged_bytes
from tests.fuzz.subject import Subject
from tests.serve.serving import served
from tvm_na.images.decode import FORMATS

_MODES = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"), "GIF": ("P", "L")}
_MODES |= {"TIFF": ("RGB", "L", "F", "I", "I;16", "CMYK"), "WEBP": ("RGB", "RGBA"), "BMP": ("RGB", "L", "1")}
_TYPES = ("image/png", "image/jpeg", "image/x", "multipart/form-data; boundary=b", "text/plain", "image/png; charset=x")
_SAID = (200, 400, 413, 415, 422, 503, 504)


def _picture(rng: random.Random) -> bytes:
    kind = rng.choice(FORMATS)
    size = rng.choice([(1, 1), (7, 5), (64, 48), (300, 200)])
    mode = rng.choice(_MODES[kind])
    noise = Image.frombytes("L", size, rng.randbytes(size[0] * size[1]))
    options: dict[str, Any] = {"progressive": rng.random() < 0.5} if kind == "JPEG" else {}
    if kind == "TIFF":
        options = {"compression": rng.choice(["raw", "tiff_lzw", "tiff_deflate", "packbits"])}
    file = io.BytesIO()
    noise.convert("I" if mode == "I;16" else mode).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _body(rng: random.Random) -> tuple[bytes, str]:
    data = _picture(rng)
    for _ in range(rng.choice([0, 1, 1, 1, 4])):
        data = damaged_bytes(rng, data)
    kind = rng.choice([_TYPES[0], *_TYPES])
    if kind.startswith("multipart") and rng.random() < 0.8:
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n'
        data = head + data + b"\r\n--b--\r\n"
        data = damaged_bytes(rng, data) if rng.random() < 0.3 else data
    return data, kind


class Uploads(Subject):
    """See the module."""

    name = "uploads"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._running = contextlib.ExitStack()
        self.server = self._running.enter_context(served())

    def close(self) -> None:
        """End the server."""
        self._running.close()

    def round(self, rng: random.Random) -> None:
        """A handful of requests, and one that must be right."""
        for _ in range(8):
            data, kind = _body(rng)
            answer = self.server.http.post("/classify", content=data, headers={"Content-Type": kind})
            assert answer.status_code in _SAID, f"{answer.status_code}: {answer.text[:500]}"
            assert answer.status_code == 200 or answer.json()["error"], answer.text
        red = rng.randrange(256)
        file = io.BytesIO()
        Image.new("RGB", (9, 9), (red, 0, 0)).save(file, "PNG")
        answer = self.server.classify(file.getvalue())
        assert answer.json()["predictions"][0]["index"] == red, answer.text
        assert self.server.http.get("/healthz").status_code == 200
