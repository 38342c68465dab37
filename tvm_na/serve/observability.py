"""What is told of the server: log lines of ``key=value`` pairs, and numbers for Prometheus."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tvm_na.serve.errors import shorten

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)

_TRACEBACK = 4000  # characters
_KINDS = 100  # of warnings and errors that are told apart

_log = logging.getLogger("tvm_na.serve")


def log(event: str, *, error: BaseException | None = None, **fields: Any) -> None:
    """Write what happened, with its details; with ``error`` as an error and with its traceback."""
    level = logging.INFO if error is None else logging.ERROR
    _log.log(level, event, extra={"fields": fields}, exc_info=error)


def warn(event: str, **fields: Any) -> None:
    """Write what went wrong, with its details."""
    _log.warning(event, extra={"fields": fields})


class LineFormatter(logging.Formatter):
    """``time=... level=... event=...`` and the details; what has spaces or quotes as a JSON string.

    No value is longer than a few lines of text. What the operating system refuses to a library (a socket, as there are
    too many) has no traceback: it tells nothing of what went wrong.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        pairs = {
            "time": f"{datetime.fromtimestamp(record.created, timezone.utc):%Y-%m-%dT%H:%M:%S.%fZ}",
            "level": record.levelname.lower(),
            "event": shorten(record.getMessage()),
            **{name: _bounded(value) for name, value in getattr(record, "fields", {}).items()},
        }
        if record.exc_info:
            error = record.exc_info[1]
            if isinstance(error, OSError) and record.name != _log.name:
                pairs["error"] = shorten(f"{type(error).__name__}: {error}")
            else:
                pairs["traceback"] = shorten(self.formatException(record.exc_info), _TRACEBACK)
        return " ".join(f"{name}={_quoted(value)}" for name, value in pairs.items())


def _bounded(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else shorten(str(value))


def _quoted(text: str) -> str:
    plain = text and text.isprintable() and not set(text) & set(' "=\\')
    return text if plain else json.dumps(text)


class RateLimit(logging.Filter):
    """Of warnings and errors that are alike, a few per period; the next line says how many were left out."""

    def __init__(self, most: int = 5, seconds: float = 10.0) -> None:
        super().__init__()
        self._most, self._seconds = most, seconds
        self._seen: dict[tuple[object, ...], tuple[float, int]] = {}  # when the period began, how many have come

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        if record.levelno < logging.WARNING:
            return True
        error = type(record.exc_info[1]) if record.exc_info else None
        alike = (record.name, str(record.msg).partition("\n")[0][:80], error)
        now = time.monotonic()
        begun, count = self._seen.get(alike, (now, 0))
        if now - begun >= self._seconds:
            if count > self._most:
                record.fields = {**getattr(record, "fields", {}), "left_out": count - self._most}
            begun, count = now, 0
        if len(self._seen) >= _KINDS and alike not in self._seen:
            self._seen.pop(next(iter(self._seen)))
        self._seen[alike] = (begun, count + 1)
        return count < self._most


def log_to(stream: TextIO | None = None) -> None:
    """Send the server's lines, and warnings of whatever it uses, to a stream; standard error if none."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter())
    handler.addFilter(RateLimit())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    _log.setLevel(logging.INFO)


class Metrics:
    """The server's numbers, under a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tvm_na_requests", "Requests by outcome", ["endpoint", "outcome"], registry=self._registry
        )
        self._seconds = self._histogram(
            "tvm_na_request_seconds", "From a request's headers to its answer, whatever it is", _SECONDS, ["endpoint"]
        )
        self._batch_size = self._histogram("tvm_na_batch_size", "Images computed at once", _IMAGES)
        self._batch_seconds = self._histogram("tvm_na_batch_seconds", "Computing a batch", _SECONDS)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

    def request(self, endpoint: str, outcome: str, seconds: float) -> None:
        """Count a request that was answered, or whose client has gone.

        Outcomes: ok; invalid, a bad image or request; too_large, in bytes or pixels; full, also a server that stops;
        timeout; not_offered; failed, by the model or the server; disconnected, the client gone before the answer.
        """
        self._requests.labels(endpoint, outcome).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def batch(self, size: int, seconds: float) -> None:
        """Count a batch of the model."""
        self._batch_size.observe(size)
        self._batch_seconds.observe(seconds)

    def gauge(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Show a number that is asked for when it is read."""
        Gauge(name, help_text, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All numbers, in Prometheus' text format."""
        return generate_latest(self._registry)
