"""Compact records: what a schedule decides and what was measured, a line of JSON each, in ``records.jsonl``.

A line says all of a record, and its own checksum at its end. It needs neither TVM nor any other file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tvm_na.records.checks import checked_count, checked_problem, checked_seconds, text
from tvm_na.records.files import COMPACT, write_atomically
from tvm_na.records.meta import features_of
from tvm_na.records.record import Machine, Record, five_numbers
from tvm_na.targets.target import list_targets, parse_target

_SUMMED = re.compile(rb'(\{.*),"checksum":"([0-9a-f]{16})"\}')


class ChangedError(ValueError):
    """A line that can be read has another checksum than when it was written."""


def line_of_record(record: Record) -> bytes:
    """The line of a compact record, without its end; times have four digits, more than five of them become five."""
    assert record.parameters is not None
    times = record.run_secs if len(record.run_secs) <= 5 else five_numbers(record.run_secs)
    about = {
        "problem": json.loads(record.problem.to_json()),
        "formulation": json.loads(record.formulation),
        "sketch": record.sketch,
        "parameters": dict(record.parameters),
        "threads": record.threads,
        "batch": record.batch,
        "seconds": [_rounded(seconds) for seconds in times],
        "default_seconds": None if record.default_seconds is None else _rounded(record.default_seconds),
        "target": _target(record.target),
        "cpu": record.machine.cpu,
        "cores": record.machine.cores,
        "gpu": record.machine.gpu,
        "versions": dict(record.machine.versions or [("apache-tvm", version) for version in record.tvm[-1:]]),
        "date": record.date,
        "workload": record.workload,
        "kernel": record.kernel,
    }
    known = {name: value for name, value in about.items() if value not in (None, "", 0)}
    return with_checksum(json.dumps(known, separators=(",", ":")).encode())


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")


def with_checksum(line: bytes) -> bytes:
    """A line, an object in JSON, with the checksum of what it says in the place of the one it may have."""
    found = _SUMMED.fullmatch(line)
    begin = line[:-1] if found is None else found[1]
    return begin + b',"checksum":"%s"}' % _checksum(begin).encode()


def _checksum(begin: bytes) -> str:
    return hashlib.sha256(begin).hexdigest()[:16]


def record_of_line(line: bytes, file: Path, number: int, as_it_is: bool = False) -> Record:
    """The record of a line of ``file``, with its number; ``as_it_is`` whatever its checksum says.

    Raises:
        ChangedError: it is not as it was written.
        MALFORMED: it is torn or damaged, or of something that is not known here.
    """
    given = json.loads(line)
    found = _SUMMED.fullmatch(line)
    if not as_it_is and (found is None or _checksum(found[1]) != found[2].decode()):
        raise ChangedError("not as it was written, by its checksum (`tvm-na records repair` takes it as it is)")
    return record_of(given, file, number)


def record_of(given: dict[str, Any], file: Path, number: int) -> Record:
    """The record that a line says, as JSON; MALFORMED where it says none."""
    target = given["target"]
    if target["name"] not in list_targets():
        raise ValueError(f"an unknown target {target['name']}")
    if target != _target(target["name"]):
        raise ValueError(f"target: required {_target(target['name'])}, got {target}")
    parameters = {text(name): checked_count(name, value, 0) for name, value in given["parameters"].items()}
    versions = {text(name): text(version) for name, version in given.get("versions", {}).items()}
    default = given.get("default_seconds")
    return Record(
        problem=checked_problem(json.dumps(given["problem"])),
        formulation=json.dumps(given["formulation"], sort_keys=True),
        workload=text(given["workload"]),
        target=target["name"],
        threads=checked_count("threads", given["threads"]),
        run_secs=checked_seconds(given["seconds"]),
        file=file,
        line=number,
        sketch=text(given["sketch"]),
        parameters=tuple(parameters.items()),
        kernel=text(given["kernel"]),
        default_seconds=None if default is None else checked_seconds([default])[0],
        tvm=tuple(version for name, version in versions.items() if name == "apache-tvm"),
        date=text(given.get("date", "")),
        batch=checked_count("batch", given["batch"]),
        machine=Machine(
            text(given.get("cpu", "")),
            checked_count("cores", given.get("cores", 0), 0),
            text(given.get("gpu", "")),
            tuple(versions.items()),
        ),
    )


def write_compact(folder: Path, records: Iterable[Record]) -> None:
    """Make ``records`` the compact ones that a folder holds, at once, in their order; by its only writer."""
    write_atomically(folder / COMPACT, b"".join(line_of_record(record) + b"\n" for record in records))


@functools.lru_cache(maxsize=32)
def _target(name: str) -> dict[str, Any]:
    target = parse_target(name)
    return {"name": target.name, **features_of(target)}
