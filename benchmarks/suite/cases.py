"""A case: what one process of the suite measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

#: What a device is measured in unless another dtype is asked for, whose results are files of their own.
MAIN_DTYPE = {"cpu": "float32", "cuda": "float16"}
#: All that can be asked for.
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Setting:
    """How the suite runs.

    Attributes:
        device: ``cpu`` or ``cuda``.
        quick: Whether it is a rehearsal, of tiny sizes.
        folder: Where results lie, and what is compiled once.
        dtype: What tensors are in; one of :data:`DTYPES`.
    """

    device: str
    quick: bool
    folder: Path
    dtype: str = "float32"

    @property
    def is_main(self) -> bool:
        """Whether it measures all that the device is measured for."""
        return self.dtype == MAIN_DTYPE[self.device]

    @property
    def is_beside_float32(self) -> bool:
        """Whether the question is what a dtype gains over float32: on a CPU, which has that as well."""
        return is_beside_float32(self.device, self.dtype)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Its dtype as PyTorch has it."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


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


def is_beside_float32(device: str, dtype: str) -> bool:
    """As :attr:`Setting.is_beside_float32` of these."""
    return device == "cpu" and dtype != MAIN_DTYPE[device]


def file_name(part: str, dtype: str, device: str) -> str:
    """That of a part's results."""
    return f"{part}.json" if dtype == MAIN_DTYPE[device] else f"{part}-{dtype}.json"


@dataclass(frozen=True)
class Part:
    """Cases that answer one question.

    Attributes:
        cases: Those of a setting; none where it has no question about a dtype.
        run: Measures one, in a process of its own; what it found, as JSON has it.
    """

    name: str
    cases: Callable[[Setting], list[Case]]
    run: Callable[[Case, Setting], dict[str, Any]]
