"""Log lines of ``key=value`` pairs, one line each."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any, TextIO

_log = logging.getLogger("tvm_na.serve")


def log(event: str, *, error: BaseException | None = None, **fields: Any) -> None:
    """Write what happened, with its details; with ``error`` as an error and with its traceback."""
    level = logging.INFO if error is None else logging.ERROR
    _log.log(level, event, extra={"fields": fields}, exc_info=error)


class LineFormatter(logging.Formatter):
    """``time=... level=... event=...`` and the details; what has spaces or quotes as a JSON string."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        pairs = {
            "time": f"{datetime.fromtimestamp(record.created, timezone.utc):%Y-%m-%dT%H:%M:%S.%fZ}",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            pairs["traceback"] = self.formatException(record.exc_info)
        return " ".join(f"{name}={_quoted(value)}" for name, value in pairs.items())


def _quoted(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    plain = text and text.isprintable() and not set(text) & set(' "=\\')
    return text if plain else json.dumps(text)


def log_to(stream: TextIO | None = None) -> None:
    """Send the server's lines, and warnings of whatever it uses, to a stream; standard error if none."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    _log.setLevel(logging.INFO)
