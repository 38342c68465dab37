"""A case: what one process of the suite measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setting:
    """How the suite runs.

    Attributes:
        device: ``cpu`` or ``cuda``.
        quick: Whether it is a rehearsal, of tiny sizes.
        folder: Where results lie, and what is compiled once.
    """

    device: str
    quick: bool
    folder: Path


@dataclass(frozen=True)
class Case:
    """What one process measures.

    Attributes:
        name: Its name in its part; with ``about`` it says what is measured.
        about: What it is given, as JSON has it.
        limit: Seconds after which it is given up.
        environment: Variables that its process has besides.
    """

    name: str
    about: Mapping[str, Any] = field(default_factory=dict)
    limit: float = 180.0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Cases that answer one question.

    Attributes:
        cases: Those of a setting.
        run: Measures one, in a process of its own; what it found, as JSON has it.
    """

    name: str
    cases: Callable[[Setting], list[Case]]
    run: Callable[[Case, Setting], dict[str, Any]]
