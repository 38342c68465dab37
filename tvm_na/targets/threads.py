"""How many threads a kernel is worth."""

from __future__ import annotations

#: About 40 microseconds of one core's work. At 5 MFLOP (7x7, 16 heads) a second thread still nearly halves the time.
FLOPS_PER_THREAD = 2_000_000


def threads_for(flops: int, limit: int) -> int:
    """The threads, at most ``limit``, that a kernel that computes ``flops`` is worth."""
    return max(1, min(limit, flops // FLOPS_PER_THREAD))
