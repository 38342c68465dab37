"""Tuning records on disk, read without TVM.

A folder of records belongs to one target. It holds MetaSchedule's ``JSONDatabase`` (workloads, and one line per
measured schedule) and ``meta.json``, which says of every workload which problem and formulation it is and with
which TVM it was measured. :mod:`tvm_na.records.write` writes them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tvm_na.problems.registry import Problem, problem_from_json
from tvm_na.records.checksums import checksum_of, checksums_in
from tvm_na.records.files import CHECKSUMS, MALFORMED, RECORDS, Skipped, read_lines, workload_hash
from tvm_na.records.meta import read_meta
from tvm_na.targets.target import name_of_spec

K = TypeVar("K", bound=Hashable)

_log = logging.getLogger(__name__)

_FAILED = 1e9  # seconds; MetaSchedule writes 1e10 for what could not be measured


@dataclass(frozen=True)
class Record:
    """One measured schedule.

    Attributes:
        problem: What it computes.
        formulation: Canonical JSON, the attribute ``tvm_na.formulation`` of its PrimFunc.
        workload: The structural hash of its IRModule (batch 1), decimal.
        target: The name of its target.
        threads: Threads it was measured with; 1 on a GPU.
        run_secs: Seconds of every repeat, as the tuner converts them to one speed of the machine.
        trace_json: MetaSchedule's trace, as canonical JSON.
        folder: Where it lies.
        line: Its line in the folder's records file, from 1.
        tvm: The versions of apache-tvm under which its workload was measured; empty where nobody knows.
        date: When its workload was last tuned (ISO 8601); "" where nobody knows.
        batch: The samples of a call that was measured.
    """

    problem: Problem
    formulation: str
    workload: str
    target: str
    threads: int
    run_secs: tuple[float, ...]
    trace_json: str = field(repr=False)
    folder: Path
    line: int
    tvm: tuple[str, ...] = ()
    date: str = ""
    batch: int = 1

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
        import statistics  # not needed where a kernel is found

        if len(self.run_secs) < 2:
            return 0.0
        lower, median, upper = statistics.quantiles(self.run_secs, n=4, method="inclusive")
        return (upper - lower) / median

    @functools.cached_property
    def digest(self) -> str:
        """Names the schedule: 16 hex digits of workload, trace, threads and target; not of the times."""
        return schedule_digest(self.workload, self.trace_json, self.threads, self.target)


def schedule_digest(workload: str, trace_json: str, threads: int, target: str) -> str:
    """What names a schedule, see :attr:`Record.digest`; of attributes of a record."""
    return hashlib.sha256("\0".join((workload, trace_json, str(threads), target)).encode()).hexdigest()[:16]


def as_canonical(trace: Any) -> str:
    """A trace, a JSON object, as canonical JSON."""
    return json.dumps(trace, separators=(",", ":"))


def parse_line(line: bytes) -> tuple[int, Any, list[float] | None, dict[str, Any], Any]:
    """The workload's index, trace, seconds, target and arguments of a line of the records file.

    Raises:
        ValueError: it is torn.
    """
    try:
        index, (trace, run_secs, target, arguments) = json.loads(line)
        if not isinstance(index, int) or not isinstance(target, dict):
            raise ValueError("no record")
        return index, trace, run_secs, target, arguments
    except MALFORMED as error:
        raise ValueError(f"no record: {error}") from error


def batch_of(arguments: Any) -> int:
    """The batch in MetaSchedule's description of a call's arguments, ``[["TENSOR", dtype, shape], ...]``: the first's.

    It is 1 where there is no description.

    Raises:
        ValueError: it has no batch.
    """
    if arguments is None:
        return 1
    try:
        batch = arguments[0][2][0]
    except (TypeError, IndexError, KeyError) as error:
        raise ValueError(f"required arguments with a batch, got {arguments}") from error
    return _count("a batch", batch)


def records_in(folder: Path) -> list[Record]:
    """The measured records of a folder, in the order in which they were made; none if it does not exist.

    A line that cannot be read, or is not as it was written, is left out with a warning that says where it is. The last
    line may be torn: its writer was killed, or is writing.

    Raises:
        OSError: the folder or its files cannot be read.
    """
    contents, lines = _contents(folder)
    found, unknown, skipped = [], 0, Skipped(folder / RECORDS)
    for number, line in enumerate(lines, 1):
        try:
            record = contents.record(line, number)
        except _UnknownWorkload:
            unknown += 1
        except MALFORMED as damage:
            torn = number == len(lines) and not isinstance(damage, _ChangedError)
            skipped(number, damage, logging.INFO if torn else logging.WARNING)
        else:
            found += [] if record is None else [record]
    skipped.tell_rest()
    if unknown:
        _log.warning(
            "%s: skipped %d records, meta.json does not know their workloads (was it left behind when they were "
            "copied?); `tvm-na records repair %s` reads them with TVM",
            *(folder, unknown, folder),
        )
    return found


def record_at(folder: Path, line: int) -> Record | None:
    """The record in one line (from 1) of a folder; None if there is none that can be read; OSError as above."""
    contents, lines = _contents(folder)
    if not 1 <= line <= len(lines):
        return None
    try:
        return contents.record(lines[line - 1], line)
    except (_UnknownWorkload, *MALFORMED):
        return None


def grouped(records: Iterable[Record], key: Callable[[Record], K]) -> dict[K, list[Record]]:
    """Records by a key, in their order."""
    groups: dict[K, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


class _UnknownWorkload(Exception):
    pass


class _ChangedError(ValueError):
    """A line that can be read has another checksum than when it was written."""


@dataclass(frozen=True)
class _Contents:
    """What is needed of a folder to read a line of its records file.

    Attributes:
        hashes: Of the workloads in their order; None for one that is damaged.
        known: What meta.json says of workloads.
        checksums: Those of all lines; None where there are none.
    """

    folder: Path
    hashes: Sequence[str | None]
    known: Mapping[str, Mapping[str, Any]]
    checksums: frozenset[str] | None

    def record(self, line: bytes, number: int) -> Record | None:
        """The record of a line, with its number; None if it could not be measured.

        Raises:
            MALFORMED: it is damaged, or of something that is not known here.
        """
        index, trace, run_secs, spec, arguments = parse_line(line)
        workload = self.hashes[index] if 0 <= index < len(self.hashes) else None
        if workload is None:
            raise ValueError(f"workload {index} is missing")
        if self.checksums is not None and checksum_of(workload, line) not in self.checksums:
            raise _ChangedError(
                f"not as it was written, its checksum is not in {CHECKSUMS} (`tvm-na records repair` takes it as it is)"
            )
        if not run_secs or max(run_secs) >= _FAILED:
            return None
        if workload not in self.known:
            raise _UnknownWorkload
        target = name_of_spec(spec)
        if target is None:
            raise ValueError(f"an unknown target {spec}")
        seconds = tuple(float(s) for s in run_secs)
        if not all(s > 0 and math.isfinite(s) for s in seconds):
            raise ValueError(f"required seconds > 0, got {seconds}")
        about = self.known[workload]
        return Record(
            problem=_problem(about["problem"]),
            formulation=about["formulation"],
            workload=workload,
            target=target,
            threads=1 if spec["kind"] == "cuda" else _count("threads", spec["num-cores"]),
            run_secs=seconds,
            trace_json=as_canonical(trace),
            folder=self.folder,
            line=number,
            tvm=tuple(about.get("tvm", ())),
            date=about.get("date", ""),
            batch=batch_of(arguments),
        )


def _contents(folder: Path) -> tuple[_Contents, list[bytes]]:
    """What a folder holds, and the lines of its records file."""
    workloads, lines = read_lines(folder)
    known = _known(folder) if lines else {}
    # After the lines, whose checksums were there before them.
    return _Contents(folder, [workload_hash(line) for line in workloads], known, checksums_in(folder)), lines


def _known(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """What meta.json says of workloads."""
    try:
        meta = read_meta(folder)
    except ValueError as error:
        _log.warning("%s", error)
        meta = None
    return {} if meta is None else meta.workloads


@functools.lru_cache(maxsize=1024)
def _problem(text: str) -> Problem:
    json.loads(text, parse_int=lambda digits: _count("size", int(digits), 0))
    return problem_from_json(text)


def _count(what: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise ValueError(f"required {what} from {least} to 2^31 - 1, got {value!r}")
    return value
