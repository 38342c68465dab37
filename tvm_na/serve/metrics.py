"""What Prometheus is told, under a registry of the server's own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)

#: What becomes of a request: answered; a bad image or request; too many bytes or pixels; the server full or stopping;
#: too slow; overlays not offered; the model's or the server's failure; the client gone before the answer.
OUTCOMES = ("ok", "invalid", "too_large", "full", "timeout", "not_offered", "failed", "disconnected")


class Metrics:
    """The server's numbers.

    Attributes:
        registry: Where they are collected.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "tvm_na_requests", "Requests by outcome", ["endpoint", "outcome"], registry=self.registry
        )
        self._seconds = Histogram(
            "tvm_na_request_seconds",
            "From a request's headers to its answer, whatever it is",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batch_size = Histogram(
            "tvm_na_batch_size", "Images computed at once", buckets=_IMAGES, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "tvm_na_batch_seconds", "Computing a batch", buckets=_SECONDS, registry=self.registry
        )

    def request(self, endpoint: str, outcome: str, seconds: float) -> None:
        """Count a request that was answered, or whose client has gone."""
        self._requests.labels(endpoint, outcome).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def batch(self, size: int, seconds: float) -> None:
        """Count a batch of the model."""
        self._batch_size.observe(size)
        self._batch_seconds.observe(seconds)

    def gauge(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Show a number that is asked for when it is read."""
        Gauge(name, help_text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All numbers, in Prometheus' text format."""
        return generate_latest(self.registry)
