"""A checksum of each line of a records file, in a file beside it, by which a damaged line is told.

MetaSchedule's format has no place for one. The file has a line of 16 hex digits for each record that was ever written
here, in any order. A record's is written before the record itself, and none is removed: whoever reads a record finds
its checksum. A folder without that file, of another tool or an older version, is read as it is, until something is
written to it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from tvm_na.records.files import CHECKSUMS, RECORDS, WORKLOADS, append, lines_of, workload_hash, write_atomically


def checksum_of(workload: str, line: bytes) -> str:
    """The checksum of a record's line, which belongs to ``workload``, a structural hash."""
    return hashlib.sha256(workload.encode() + b"\0" + line).hexdigest()[:16]


def checksums_in(folder: Path) -> frozenset[str] | None:
    """The checksums of a folder; None where it has no file of them.

    Raises:
        OSError: they cannot be read.
    """
    file = folder / CHECKSUMS
    return frozenset(line.decode("ascii", "replace") for line in lines_of(file)) if file.exists() else None


def add_checksums(folder: Path, checksums: Iterable[str]) -> None:
    """Note the checksums of lines that are about to be written; :func:`begin_checksums` came before."""
    append(folder / CHECKSUMS, "".join(f"{checksum}\n" for checksum in checksums).encode())


def begin_checksums(folder: Path, anew: bool = False) -> None:
    """Prepare a folder for :func:`add_checksums`, by its only writer.

    One that has no checksums gets those of the lines that it has, as they are; ``anew`` has it do so in any case.
    """
    file = folder / CHECKSUMS
    if file.exists() and not anew:
        if not file.read_bytes().endswith(b"\n"):  # a writer was killed in the middle of one
            append(file, b"\n")
        return
    workloads = lines_of(folder / WORKLOADS)
    found = (_checksum_in_place(workloads, line) for line in lines_of(folder / RECORDS))
    write_atomically(file, "".join(f"{checksum}\n" for checksum in found if checksum).encode())


def _checksum_in_place(workloads: list[bytes], line: bytes) -> str | None:
    number = re.match(rb"\s*\[\s*(\d{1,9})\b", line)
    if number is None or int(number[1]) >= len(workloads):
        return None
    workload = workload_hash(workloads[int(number[1])])
    return None if workload is None else checksum_of(workload, line)
