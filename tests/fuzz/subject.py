"""What a subject of the fuzzer is."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar


class Subject(ABC):
    """A part of the package that is attacked.

    Attributes:
        name: For the command line.
        seconds: How long a round may take before it counts as hanging.
    """

    name: ClassVar[str]
    seconds: ClassVar[float] = 120.0

    def __init__(self, folder: Path) -> None:
        """``folder`` is an empty one of its own. What is made here once serves all rounds."""
        self.folder = folder

    @abstractmethod
    def round(self, rng: random.Random) -> None:
        """Attack once; an AssertionError, or any error that was not promised, is a finding."""

    def close(self) -> None:  # noqa: B027 most have nothing to end
        """End what was started."""


def promised(error: Exception, *kinds: type[Exception], begins: str = "", note: str = "") -> None:
    """Fail unless an error is one that users were promised: of these kinds, with a message that can be read."""
    assert isinstance(error, kinds), f"required one of {kinds}, got {error!r}; {note}"
    assert str(error).startswith(begins), f"required a message that begins with {begins!r}, got {error!r}; {note}"
    assert str(error), f"required a message, got {error!r}"
    assert len(str(error)) < 20_000, f"required a message that can be read, got {len(str(error))} characters"
