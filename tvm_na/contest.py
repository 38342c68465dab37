"""The fastest records of a problem measured against each other, in turns.

Of many candidates that are about as fast, the one with the shortest time is the one whose measurement erred the most.
Measured once more, with more repeats, that luck is gone.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tvm_na import build
from tvm_na.choose import Chosen
from tvm_na.database import replace_files, write_meta, writing
from tvm_na.measure import Measured
from tvm_na.problem import NAProblem
from tvm_na.record_files import read_lines
from tvm_na.record_index import ref_of
from tvm_na.records import Record, read_meta, records_in, workload_hash
from tvm_na.rejections import InapplicableError
from tvm_na.target import NATarget, parse_target
from tvm_na.upkeep import best_of
from tvm_na.verify import check_measurable, running_on

_SAMPLE, _WARM_UP = 5e-4, 1e-2  # seconds


@dataclass(frozen=True)
class Outcome:
    """What came of one problem.

    Attributes:
        problem: Which.
        threads: Threads of its kernels.
        default: Seconds per call of every sample of the default schedule.
        records: The records that took part, each with its samples, converted to the speed of the machine at which the
            default takes its median; the fastest first.
        failures: What those that could not be measured failed at.
    """

    problem: NAProblem
    threads: int
    default: tuple[float, ...]
    records: tuple[tuple[Record, tuple[float, ...]], ...]
    failures: tuple[str, ...]

    @property
    def gain(self) -> float:
        """How many times faster than the default the fastest is: the median of the ratios of neighboring samples."""
        return median(self.default) / median(self.records[0][1]) if self.records else 1.0


def contest(folder: Path, count: int, rounds: int) -> Iterator[Outcome]:
    """Measure records of each problem and number of threads in turns with the default schedule.

    The ``count`` fastest take part, and the first, since the tuner begins with default points.

    Args:
        folder: Of records for this machine.
        count: Records that take part.
        rounds: Samples of each.

    Raises:
        ValueError: the records are for another target, or need more cores than there are.
        RuntimeError: a package or the C++ compiler is missing, or the cache cannot be written.
    """
    groups: dict[tuple[NAProblem, int], list[Record]] = {}
    records = records_in(folder)
    first = {(record.problem, record.threads): record for record in reversed(records)}  # a default point, mostly
    for record in dict.fromkeys([*first.values(), *best_of(records, count)]):
        groups.setdefault((record.problem, record.threads), []).append(record)
    for (problem, threads), records in groups.items():
        target = parse_target(records[0].target)
        check_measurable(records, target)
        with running_on(threads):
            yield _measured(problem, threads, records, target, rounds)


def _measured(problem: NAProblem, threads: int, records: Sequence[Record], target: NATarget, rounds: int) -> Outcome:
    from tvm_na import benchmark, runtime

    runtime.use_threads(problem.useful_flops)
    calls, failures = {"default": _call(problem, build.kernel_for(problem, target, records="off").function)}, []
    for record in records:
        try:
            kernel = build.kernel_with(Chosen("record", ref_of(record, shipped=False), "in a contest"), problem, target)
            calls[record.digest] = _call(problem, kernel.function)
        except (InapplicableError, ValueError) as error:
            failures.append(f"{record.digest}: {error}")
    timings = benchmark.measure(calls, rounds=rounds, sample_time=_SAMPLE, warmup_time=_WARM_UP)
    default = timings["default"].samples
    found = []
    for record in records:
        if record.digest in timings:
            measured = Measured(timings[record.digest].samples, reference_secs=default)
            found.append((record, measured.beside(median(default))))
    found.sort(key=lambda pair: median(pair[1]))
    return Outcome(problem, threads, default, tuple(found), tuple(failures))


def _call(problem: NAProblem, kernel: Callable[..., None]) -> Callable[[], object]:
    """A call of a kernel, whose numbers are right; ValueError if they are not."""
    from tvm_na.benchmark import ERROR_BUDGET
    from tvm_na.measure import WrongNumbers, case_of

    case = case_of(problem)
    outputs = case.outputs()
    call = functools.partial(kernel, *case.inputs, *outputs)
    call()
    try:
        case.check(outputs, ERROR_BUDGET[problem.dtype])
    except WrongNumbers as error:
        raise ValueError(f"wrong numbers: {error}") from error
    return call


def keep(folder: Path, outcomes: Sequence[Outcome], count: int) -> None:
    """Leave only the ``count`` fastest records of each outcome in ``folder``, with the times of the contest.

    Raises:
        ValueError: there is no meta.json, or another process writes to the folder.
    """
    meta = read_meta(folder)
    if meta is None:
        raise ValueError(f"records: required a meta.json in {folder}, got none")
    with writing(folder):
        workloads, lines = read_lines(folder)
        kept = [pair for outcome in outcomes for pair in outcome.records[:count]]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(record.workload for record, _ in kept))}
        by_hash = {workload_hash(line): line for line in workloads}
        new = [_with_times(lines[record.line - 1], numbers[record.workload], times) for record, times in kept]
        replace_files(folder, [by_hash[key] for key in numbers], new)
        meta.workloads = {key: about for key, about in meta.workloads.items() if key in numbers}
        write_meta(folder, meta)


def _with_times(line: bytes, number: int, seconds: Sequence[float]) -> bytes:
    entry: list[Any] = json.loads(line)
    entry[0], entry[1][1] = number, list(seconds)
    return json.dumps(entry, separators=(",", ":")).encode()
