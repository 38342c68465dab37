"""Tuning records on disk, read without TVM.

A folder of records belongs to one target. It holds compact records (:mod:`tvm_na.records.compact`), or what the tuner
writes while it runs (:mod:`tvm_na.records.write`), or both. The latter is MetaSchedule's ``JSONDatabase`` (workloads,
and one line per measured schedule) and ``meta.json``, which says of every workload which problem and formulation it is
and with which TVM it was measured.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvm_na.records.checks import checked_count, checked_problem, checked_seconds
from tvm_na.records.checksums import checksum_of, checksums_in
from tvm_na.records.compact import ChangedError, record_of_line
from tvm_na.records.files import (
    CHECKSUMS,
    COMPACT,
    MALFORMED,
    RECORDS,
    WORKLOADS,
    Skipped,
    lines_of,
    workload_hash,
)
from tvm_na.records.meta import Meta, machine_of, read_meta
from tvm_na.records.record import Machine, Record
from tvm_na.targets.target import name_of_spec

_log = logging.getLogger(__name__)

_FAILED = 1e9  # seconds; MetaSchedule writes 1e10 for what could not be measured


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
    return checked_count("a batch", batch)


def records_in(folder: Path) -> list[Record]:
    """The measured records of a folder, the tuner's in the order in which they were made, then compact ones.

    There are none if it does not exist. A line that cannot be read, or is not as it was written, is left out with a
    warning that says where it is. The last line may be torn: its writer was killed, or is writing.

    Raises:
        OSError: the folder or its files cannot be read.
    """
    contents, lines = _contents(folder)
    found = _read(folder / RECORDS, lines, contents.record)
    if contents.unknown:
        _log.warning(
            "%s: skipped %d records, meta.json does not know their workloads (was it left behind when they were "
            "copied?); `tvm-na records repair %s` reads them with TVM",
            *(folder, len(contents.unknown), folder),
        )
    return found + compact_records_in(folder)


def compact_records_in(folder: Path, as_they_are: bool = False) -> list[Record]:
    """The compact records of a folder, as :func:`records_in`; ``as_they_are`` has no line left out by its checksum."""
    file = folder / COMPACT
    return _read(file, lines_of(file), lambda line, number: record_of_line(line, file, number, as_they_are))


def _read(file: Path, lines: Sequence[bytes], parse: Callable[[bytes, int], Record | None]) -> list[Record]:
    """What ``parse(line, number)`` makes of the lines of a file that can be read."""
    found, skipped = [], Skipped(file)
    for number, line in enumerate(lines, 1):
        try:
            record = parse(line, number)
        except MALFORMED as damage:
            torn = number == len(lines) and not isinstance(damage, ChangedError)
            skipped(number, damage, logging.INFO if torn else logging.WARNING)
        else:
            found += [] if record is None else [record]
    skipped.tell_rest()
    return found


def record_at(file: Path, line: int) -> Record | None:
    """The record in one line (from 1) of a file; None if there is none that can be read; OSError as above."""
    if file.name == COMPACT:
        return next((record for record in compact_records_in(file.parent) if record.line == line), None)
    contents, lines = _contents(file.parent)
    if not 1 <= line <= len(lines):
        return None
    try:
        return contents.record(lines[line - 1], line)
    except MALFORMED:
        return None


@dataclass(frozen=True)
class _Contents:
    """What is needed of a folder to read a line of its JSONDatabase.

    Attributes:
        file: The records file.
        hashes: Of the workloads in their order; None for one that is damaged.
        meta: What meta.json says.
        checksums: Those of all lines; None where there are none.
        unknown: The numbers of lines whose workloads meta.json does not know.
    """

    file: Path
    hashes: Sequence[str | None]
    meta: Meta
    checksums: frozenset[str] | None
    unknown: list[int] = field(default_factory=list)

    @functools.cached_property
    def machine(self) -> Machine:
        """Where its records were measured, as far as all sessions say the same."""
        return machine_of(self.meta.sessions)

    def record(self, line: bytes, number: int) -> Record | None:
        """The record of a line, with its number; None if it could not be measured, or its workload is not known.

        Raises:
            MALFORMED: it is damaged, or of something that is not known here.
        """
        index, trace, run_secs, spec, arguments = parse_line(line)
        workload = self.hashes[index] if 0 <= index < len(self.hashes) else None
        if workload is None:
            raise ValueError(f"workload {index} is missing")
        if self.checksums is not None and checksum_of(workload, line) not in self.checksums:
            raise ChangedError(
                f"not as it was written, its checksum is not in {CHECKSUMS} (`tvm-na records repair` takes it as it is)"
            )
        if not run_secs or max(run_secs) >= _FAILED:
            return None
        if workload not in self.meta.workloads:
            self.unknown.append(number)
            return None
        target = name_of_spec(spec)
        if target is None:
            raise ValueError(f"an unknown target {spec}")
        about = self.meta.workloads[workload]
        return Record(
            problem=checked_problem(about["problem"]),
            formulation=about["formulation"],
            workload=workload,
            target=target,
            threads=1 if spec["kind"] == "cuda" else checked_count("threads", spec["num-cores"]),
            run_secs=checked_seconds(run_secs),
            file=self.file,
            line=number,
            trace_json=as_canonical(trace),
            tvm=tuple(about.get("tvm", ())),
            date=about.get("date", ""),
            batch=batch_of(arguments),
            machine=self.machine,
        )


def _contents(folder: Path) -> tuple[_Contents, list[bytes]]:
    """What the JSONDatabase of a folder holds, and the lines of its records file."""
    lines = lines_of(folder / RECORDS)
    # After the lines, whose workloads and checksums were there before them.
    meta = _meta(folder) if lines else Meta("")
    hashes = [workload_hash(line) for line in lines_of(folder / WORKLOADS)]
    return _Contents(folder / RECORDS, hashes, meta, checksums_in(folder)), lines


def _meta(folder: Path) -> Meta:
    """What meta.json says; nothing where it is not there or cannot be read."""
    try:
        return read_meta(folder) or Meta("")
    except ValueError as error:
        _log.warning("%s", error)
        return Meta("")
