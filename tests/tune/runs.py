"""Runs of the tuner, and devices that invent times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tvm_na.measure.local import Conditions, Kernel, Measured
from tvm_na.problems.registry import Problem
from tvm_na.targets.target import NATarget
from tvm_na.tune.builder import Built
from tvm_na.tune.options import SearchOptions
from tvm_na.tune.run import TuneResult, tune
from tvm_na.tune.state import TuneState
from tvm_na.tune.tasks import TuneTask


def run(
    problem: Problem,
    target: NATarget,
    *,
    output: Path | None = None,
    observer: Callable[[TuneState], None] | None = None,
    devices: Any = None,
    **options: Any,
) -> TuneResult:
    """Tune one problem; ``options`` are those of :class:`SearchOptions`."""
    return tune(
        [TuneTask(problem)], target, SearchOptions(**options), output=output, observer=observer, devices=devices
    )


def asked_of_tune(monkeypatch: pytest.MonkeyPatch, result: Callable[[], TuneResult]) -> dict[str, Any]:
    """What the command asks of :func:`tvm_na.tune.tune`, which does nothing and gives ``result()``."""
    found: dict[str, Any] = {}

    def tune(tasks: Any, target: Any, options: Any, **others: Any) -> TuneResult:
        found.update(vars(options), **others, tasks=tasks, target=target)
        return result()

    monkeypatch.setattr("tvm_na.tune.tune", tune)
    monkeypatch.setattr("tvm_na.measure.worker_pool.start_server", lambda: None)
    return found


def fails(kernel: Kernel) -> Measured:
    """No kernel works, so that there is no reference."""
    return Measured((), "run")


class FakeDevice:
    """A device that invents the times of kernels, and what measures on it."""

    suffix = ".so"

    def __init__(
        self, times: Callable[[Kernel], Measured] = fails, free: int | None = None, busy: str | None = None
    ) -> None:
        self._times, self._free, self._busy = times, free, busy
        self.kernels: list[Kernel] = []
        self.conditions: Conditions | None = None

    def check(self, target: NATarget) -> None:
        self._kind = target.kind

    def threads(self, wanted: int) -> int:
        assert self._kind != "cuda", "a GPU was asked for its threads"
        return wanted or 1

    def free_bytes(self, target: NATarget) -> int | None:
        return self._free

    def about(self, target: NATarget) -> dict[str, str]:
        return {"gpu": "NVIDIA Pretended"} if target.kind == "cuda" else {}

    def busy(self) -> str | None:
        return self._busy

    def measurer(self, conditions: Conditions, target: NATarget, log: Path) -> FakeDevice:
        self.conditions = conditions
        return self

    def measure(self, kernels: Sequence[Kernel], done: Callable[[int, Measured], None], stopped: Any = None) -> None:
        for number, kernel in enumerate(kernels):
            self.kernels.append(kernel)
            done(number, self._times(kernel))

    def close(self) -> None:
        pass


class FakeBuilder:
    """Builds nothing, at once."""

    def __init__(self, *_: Any) -> None:
        pass

    def build(self, sources: Sequence[Any], suffix: str = "", stopped: Any = None) -> list[Built]:
        return [Built(Path(f"none{n}")) for n in range(len(sources))]

    def close(self) -> None:
        pass
