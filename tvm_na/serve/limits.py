"""How much the server takes: one value, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

MEGABYTE = 1_000_000
#: Pillow itself warns of larger images, and refuses those twice as large.
MOST_PIXELS = 89_478_485


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        max_batch: Images that the model computes at once.
        max_delay_ms: Milliseconds that an image waits for others, at most.
        max_queue: Requests that are in the server at once, from their first byte to their answer.
        max_request_mb: Megabytes (10**6 bytes) of a request's body.
        max_pixels: Pixels of an image, as uploaded and as resized.
        timeout: Seconds that a request may take, from its first byte to its answer.

    Raises:
        TypeError, ValueError: name the limit, what was required and what came.
    """

    max_batch: int = 8
    max_delay_ms: float = 5.0
    max_queue: int = 64
    max_request_mb: float = 20.0
    max_pixels: int = 50_000_000
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, whole = getattr(self, field.name), field.type == "int"
            wanted = "an integer" if whole else "a number"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise TypeError(f"{field.name}: required {wanted}, got {type(value).__name__} {value!r}")
            zero_allowed = field.name == "max_delay_ms"
            if not math.isfinite(value) or value < 0 or (value == 0 and not zero_allowed):
                raise ValueError(f"{field.name}: required {wanted} {'>= 0' if zero_allowed else '> 0'}, got {value!r}")
        if self.max_pixels > MOST_PIXELS:
            raise ValueError(f"max_pixels: required at most {MOST_PIXELS}, Pillow's limit, got {self.max_pixels}")

    @property
    def max_bytes(self) -> int:
        """Bytes of a request's body."""
        return int(self.max_request_mb * MEGABYTE)
