"""Which release of NATTEN is served, and which one reads a call that releases read differently."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: The release whose interface is served, with those before it.
SERVED = "0.21.6"

_assumed: str | None = None


def numbers(version: str) -> tuple[int, ...]:
    """A release as numbers; of 0.14, whose releases differ, the last one is meant. ValueError for no release served."""
    match = re.fullmatch(r"0\.(\d+)(?:\.(\d+)(?:[.+]\w+)*)?", version) if isinstance(version, str) else None
    if match is None or int(match[1]) < 14:
        raise ValueError(f"release: required a release of NATTEN, 0.14 or later, got {version!r}")
    return 0, int(match[1]), int(match[2] or (6 if match[1] == "14" else 0))


def era_of_assumed(eras: Sequence[str]) -> str | None:
    """The newest of ``eras``, each named by its first release, that the assumed release belongs to."""
    if _assumed is None:
        return None
    at_most = [era for era in eras if numbers(era) <= numbers(_assumed)]
    return max(at_most, key=numbers, default=None)


def assume_release(release: str | None) -> None:
    """Read calls that releases of NATTEN read differently as this release does; None: such calls are errors again.

    Raises:
        ValueError: for what is no release of NATTEN.
    """
    global _assumed
    if release is not None:
        numbers(release)
    _assumed = release


def version() -> str:
    """What ``natten.__version__`` says: the release that is assumed, else the newest one that is served."""
    return _assumed or SERVED
