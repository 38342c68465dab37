"""A tuning record: one measured schedule, without TVM.

What it decides is said in one of two ways. A *compact* record has names: formulation, sketch, tunable parameters. One
that the tuner wrote has MetaSchedule's trace, from which :mod:`tvm_na.records.replay` reads the names.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tvm_na.problems.registry import Problem

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Machine:
    """Where something was measured; empty where nobody knows.

    Attributes:
        cpu: The model's name.
        cores: Those that the process had.
        gpu: The GPU's name.
        versions: Of apache-tvm and others, by name.
    """

    cpu: str = ""
    cores: int = 0
    gpu: str = ""
    versions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Record:
    """One measured schedule.

    Attributes:
        problem: What it computes.
        formulation: Canonical JSON, the attribute ``tvm_na.formulation`` of its PrimFunc.
        workload: The structural hash of its IRModule (batch 1), decimal.
        target: The name of its target.
        threads: Threads it was measured with; 1 on a GPU.
        run_secs: Seconds of every repeat, as the tuner converts them to one speed of the machine. A compact record has
            five numbers that stand for many: minimum, quartiles and maximum.
        file: Where it lies.
        line: Its line there, from 1.
        trace_json: MetaSchedule's trace, as canonical JSON; "" for a compact record.
        sketch: The sketch's name; "" where the trace says it.
        parameters: The tunable parameters by name, in their order; None where the trace says them.
        kernel: Of a compact record, what names the function that was measured
            (:func:`tvm_na.records.replay.kernel_name`).
        default_seconds: What the default schedule took, measured in turns with it; None where nobody knows.
        tvm: The versions of apache-tvm under which its workload was measured; empty where nobody knows.
        date: When its workload was last tuned, a compact one measured (ISO 8601); "" where nobody knows.
        batch: The samples of a call that was measured.
        machine: On which.
    """

    problem: Problem
    formulation: str
    workload: str
    target: str
    threads: int
    run_secs: tuple[float, ...]
    file: Path
    line: int
    trace_json: str = field(default="", repr=False)
    sketch: str = ""
    parameters: tuple[tuple[str, int], ...] | None = None
    kernel: str = ""
    default_seconds: float | None = None
    tvm: tuple[str, ...] = ()
    date: str = ""
    batch: int = 1
    machine: Machine = Machine()

    @property
    def folder(self) -> Path:
        """The folder of records that it lies in."""
        return self.file.parent

    @property
    def place(self) -> str:
        """Where it lies, in words."""
        return f"{self.file}, line {self.line}"

    @property
    def is_compact(self) -> bool:
        """Whether it has names and no trace."""
        return self.parameters is not None

    @property
    def trace(self) -> Any:
        """MetaSchedule's trace as a JSON object: instructions and decisions."""
        return json.loads(self.trace_json)

    @property
    def seconds(self) -> float:
        """The median of the repeats, in seconds."""
        import statistics  # not needed where a kernel is found

        return statistics.median(self.run_secs)

    @property
    def seconds_per_sample(self) -> float:
        """What records are ranked by: with few samples a call takes longer for each."""
        return self.seconds / self.batch

    @property
    def spread(self) -> float:
        """The interquartile range of the repeats over their median; 0 for a single one."""
        if len(self.run_secs) < 2:
            return 0.0
        _, lower, median, upper, _ = five_numbers(self.run_secs)
        return (upper - lower) / median

    @functools.cached_property
    def digest(self) -> str:
        """Names the schedule: 16 hex digits of what is decided for which problem, threads and target; not of times."""
        if self.parameters is None:
            return schedule_digest(self.workload, self.trace_json, self.threads, self.target)
        decided = json.dumps([self.formulation, self.sketch, self.parameters])
        return schedule_digest(self.problem.to_json(), decided, self.threads, self.target)


def schedule_digest(what: str, decided: str, threads: int, target: str) -> str:
    """What names a schedule, see :attr:`Record.digest`; of a record with a trace its workload and the trace."""
    return hashlib.sha256("\0".join((what, decided, str(threads), target)).encode()).hexdigest()[:16]


def five_numbers(samples: Iterable[float]) -> tuple[float, float, float, float, float]:
    """Minimum, quartiles and maximum of two samples or more; those of what comes out are the same again."""
    import statistics  # not needed where a kernel is found

    given = sorted(samples)
    lower, median, upper = statistics.quantiles(given, n=4, method="inclusive")
    return given[0], lower, median, upper, given[-1]


def grouped(records: Iterable[Record], key: Callable[[Record], K]) -> dict[K, list[Record]]:
    """Records by a key, in their order."""
    groups: dict[K, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def best_of(records: Iterable[Record], keep: int = 1) -> list[Record]:
    """The ``keep`` fastest records of every problem and number of threads, over all formulations."""
    groups = grouped(records, lambda record: (record.problem, record.threads)).values()
    return [r for group in groups for r in sorted(group, key=lambda r: r.seconds_per_sample)[:keep]]
