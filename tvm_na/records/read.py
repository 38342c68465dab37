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
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tvm_na import fingerprint
from tvm_na.problems.registry import Problem, problem_from_json
from tvm_na.records.files import META, RECORDS, read_lines
from tvm_na.targets.target import name_of_spec

K = TypeVar("K", bound=Hashable)

_log = logging.getLogger(__name__)

FORMAT = 1
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
        text = "\0".join((self.workload, self.trace_json, str(self.threads), self.target))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Meta:
    """What ``meta.json`` holds.

    Attributes:
        target: The name of the target.
        features: The target's CPU, features and vector registers.
        workloads: By structural hash: ``{"problem", "formulation", "tvm": [versions], "date"}``, the first two
            as canonical JSON texts.
        sessions: One mapping per run of the tuner: date, seed, trials, threads, machine, versions.
    """

    target: str
    features: dict[str, Any] = field(default_factory=dict)
    workloads: dict[str, dict[str, Any]] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)

    def describe(self, workload: str, attrs: Any, date: str) -> None:
        """Note what a workload is, by the attributes of its PrimFunc, and that the TVM at hand knows it."""
        about = self.workloads.setdefault(workload, {})
        about["problem"] = str(attrs["tvm_na.problem"])
        about["formulation"] = str(attrs["tvm_na.formulation"])
        about["tvm"] = sorted({*about.get("tvm", ()), fingerprint.versions()["apache-tvm"]})
        about["date"] = date

    def add(self, other: Meta) -> None:
        """Take over the workloads and sessions of another folder."""
        for key, about in other.workloads.items():
            mine = self.workloads.setdefault(key, dict(about))
            mine["tvm"] = sorted({*mine.get("tvm", ()), *about.get("tvm", ())})
            mine["date"] = max(mine.get("date", ""), about.get("date", ""))
        self.sessions += [session for session in other.sessions if session not in self.sessions]

    def to_json(self) -> str:
        """The text of ``meta.json``."""
        return json.dumps({"format": FORMAT, **vars(self)}, indent=1) + "\n"


def read_meta(folder: Path) -> Meta | None:
    """``meta.json`` of a folder; None if there is none; ValueError if it is damaged, or of another format."""
    file = folder / META
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
        if loaded.pop("format") != FORMAT:
            raise ValueError(f"another format than {FORMAT}")
        return Meta(**loaded)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as damage:
        raise ValueError(f"records: required a meta.json of format {FORMAT}, got {file}: {damage}") from damage


def workload_hash(line: bytes) -> str | None:
    """The structural hash in a line of the workloads file, whose rest is long; None for a torn line."""
    found = re.match(rb'\s*\[\s*"(\d+)"', line)
    return None if found is None or not line.rstrip().endswith(b"]") else found[1].decode()


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
    except (TypeError, ValueError) as error:
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
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"required a batch >= 1, got {batch!r}")
    return batch


def records_in(folder: Path) -> list[Record]:
    """The measured records of a folder, in the order in which they were made; none if it does not exist.

    What cannot be read is left out with a warning that says where it is. The last line may be torn: its writer
    was killed, or is writing.
    """
    workloads, lines = read_lines(folder)
    hashes, known = [workload_hash(line) for line in workloads], _known(folder) if lines else {}
    found, unknown = [], 0
    for number, line in enumerate(lines, 1):
        try:
            record = _record(line, hashes, known, folder, number)
        except _UnknownWorkload:
            unknown += 1
        except (ValueError, TypeError, KeyError) as damage:
            level = logging.INFO if number == len(lines) else logging.WARNING
            _log.log(level, "%s, line %d: skipped, %s", folder / RECORDS, number, damage)
        else:
            found += [] if record is None else [record]
    if unknown:
        _log.warning(
            "%s: skipped %d records, meta.json does not know their workloads (was it left behind when they were "
            "copied?); `tvm-na records repair %s` reads them with TVM",
            *(folder, unknown, folder),
        )
    return found


def grouped(records: Iterable[Record], key: Callable[[Record], K]) -> dict[K, list[Record]]:
    """Records by a key, in their order."""
    groups: dict[K, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def record_at(folder: Path, line: int) -> Record | None:
    """The record in one line (from 1) of a folder; None if there is none that can be read."""
    workloads, lines = read_lines(folder)
    if not 1 <= line <= len(lines):
        return None
    try:
        return _record(lines[line - 1], [workload_hash(w) for w in workloads], _known(folder), folder, line)
    except (_UnknownWorkload, ValueError, TypeError, KeyError):
        return None


class _UnknownWorkload(Exception):
    pass


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    """What meta.json says of workloads."""
    try:
        meta = read_meta(folder)
    except ValueError as error:
        _log.warning("%s", error)
        meta = None
    return {} if meta is None else meta.workloads


def _record(
    line: bytes, hashes: list[str | None], known: dict[str, dict[str, Any]], folder: Path, number: int
) -> Record | None:
    """The record of a line; None if it could not be measured."""
    index, trace, run_secs, spec, arguments = parse_line(line)
    if not run_secs or max(run_secs) >= _FAILED:
        return None
    workload = hashes[index] if 0 <= index < len(hashes) else None
    if workload is None:
        raise ValueError(f"workload {index} is missing")
    if workload not in known:
        raise _UnknownWorkload
    target = name_of_spec(spec)
    if target is None:
        raise ValueError(f"an unknown target {spec}")
    seconds = tuple(float(s) for s in run_secs)
    if not all(s > 0 and math.isfinite(s) for s in seconds):
        raise ValueError(f"required seconds > 0, got {seconds}")
    about = known[workload]
    return Record(
        problem=_problem(about["problem"]),
        formulation=str(about["formulation"]),
        workload=workload,
        target=target,
        threads=1 if spec["kind"] == "cuda" else int(spec["num-cores"]),
        run_secs=seconds,
        trace_json=json.dumps(trace, separators=(",", ":")),
        folder=folder,
        line=number,
        tvm=tuple(about.get("tvm", ())),
        date=str(about.get("date", "")),
        batch=batch_of(arguments),
    )


_problem = functools.lru_cache(maxsize=1024)(problem_from_json)
