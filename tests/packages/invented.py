"""A device that invents times, for machines that have neither TVM nor pytest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvm_na.measure.local import Conditions, Kernel, Measured


class Invented:
    """The time of a kernel is that of its name."""

    def check(self, target: Any) -> None:
        pass

    def busy(self) -> None:
        return None

    def free_bytes(self, target: Any) -> None:
        return None

    def about(self, target: Any) -> dict[str, str]:
        return {"gpu": "NVIDIA Pretended"}

    def measurer(self, conditions: Conditions, target: Any, log: Path) -> Invented:
        return self

    def seconds(self, kernel: Kernel) -> float:
        assert kernel.file.read_bytes().startswith(b"\x7fELF")
        return 1e-3 + int(kernel.file.stem[:4], 16) * 1e-7

    def measure(self, kernels: Sequence[Kernel], done: Any, stopped: Any = None) -> None:
        for number, kernel in enumerate(kernels):
            done(number, Measured((self.seconds(kernel),), reference_secs=(1e-3,) if kernel.reference else ()))

    def in_turns(self, kernels: Sequence[Kernel], rounds: int, stopped: Any = None) -> list[tuple[float, ...]]:
        return [(self.seconds(kernel),) * rounds for kernel in kernels]

    def close(self) -> None:
        pass
