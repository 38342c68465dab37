"""A classifier that knows colors, and servers of it: in a thread of the tests, or in a process of its own.

``python -m tests.serve.serving SECONDS [LIMITS]`` serves it on a free port, each batch taking so many seconds, with
limits as JSON.
"""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import torch
import uvicorn
from PIL import Image
from torch import Tensor

from tvm_na.images.preprocessing import Preprocessing
from tvm_na.serve.app import run_server, server_config
from tvm_na.serve.classifier import Classifier
from tvm_na.serve.limits import Limits
from tvm_na.serve.service import Service

CLASSES = 256
PREPROCESSING = Preprocessing(input_size=8, crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))


def color_logits(images: Tensor) -> Tensor:
    """The class of an image is how red it is, 0 to 255."""
    red = images[:, 0].mean((1, 2)) * 255
    return -4 * (red[:, None] - torch.arange(CLASSES)).abs()


def attention(x: Tensor, pixel: tuple[int, int]) -> list[Tensor]:
    """Four maps of a NAT for an 8x8 input; all of the weight is on the query."""
    maps = [torch.zeros(size, size) for size in (2, 1, 1, 1)]
    for weights in maps:
        weights[pixel[0] * len(weights) // 8, pixel[1] * len(weights) // 8] = 1
    return maps


def color_classifier(**changes: Any) -> Classifier:
    settings: dict[str, Any] = {"logits": color_logits, "no_attention": "it only knows colors"}
    return Classifier(**{"name": "colors", "preprocessing": PREPROCESSING, "classes": CLASSES, **settings, **changes})


def picture(red: int, file_format: str = "PNG", size: tuple[int, int] = (12, 10)) -> bytes:
    """An image file of class ``red``; PNG keeps the color exactly."""
    file = io.BytesIO()
    Image.new("RGB", size, (red, 255 - red, 77)).save(file, file_format)
    return file.getvalue()


@dataclass
class Served:
    """A server in a thread, and a client of it."""

    service: Service
    http: httpx.Client
    port: int

    def classify(self, data: bytes, **options: Any) -> httpx.Response:
        return self.http.post("/classify", content=data, headers={"Content-Type": "image/png"}, **options)

    def metric(self, name: str, **labels: str) -> float:
        """What /metrics says; 0 for what has not happened."""
        wanted = name + ("{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "}" if labels else "")
        for line in self.http.get("/metrics").text.splitlines():
            if line.rsplit(" ", 1)[0] == wanted:
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def outcomes(self, endpoint: str = "classify") -> dict[str, float]:
        """How many requests had which outcome."""
        found = {}
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(f'tvm_na_requests_total{{endpoint="{endpoint}",outcome='):
                found[line.split('"')[3]] = float(line.rsplit(" ", 1)[1])
        return found


@contextmanager
def served(classifier: Classifier | None = None, names: list[str] | None = None, **limits: Any) -> Iterator[Served]:
    """A server of a classifier, by default of the colors, for as long as the block lasts."""
    service = Service(classifier or color_classifier(), Limits(**limits))
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    port = listening.getsockname()[1]
    server = uvicorn.Server(server_config(service, names))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            yield Served(service, http, port)
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


if __name__ == "__main__":
    pause = float(sys.argv[1])

    def slow_logits(images: Tensor) -> Tensor:
        time.sleep(pause)
        return color_logits(images)

    limits = {"max_batch": 8, "max_delay_ms": 2, **json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}")}
    service = Service(color_classifier(logits=slow_logits), Limits(**limits))
    sys.exit(run_server(service, "127.0.0.1", 0))
