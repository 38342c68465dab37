"""The best records of a folder by problem, kept in the cache folder so that a start need not read them all.

An index is named by its folder and by the sizes and times of the folder's files: when they change, it is made
anew. It needs no TVM.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tvm_na import fingerprint, owned
from tvm_na.problems.registry import Problem, problem_from_json
from tvm_na.records.files import file_stamp, indexes_dir, read_file

if TYPE_CHECKING:
    from tvm_na.records.record import Record

_log = logging.getLogger(__name__)

_FORMAT = 5
#: Records of a workload and number of threads that an index keeps. More than one, since one may not apply.
_KEPT = 2

#: By problem, as JSON: [[workload, formulation, versions of TVM, [[digest, threads, seconds, file, line, batch], ...]],
#: ...] as JSON, of which a start needs one.
_Index = dict[str, str]
#: By folder: the stamp of its files, and its index.
_loaded: dict[Path, tuple[tuple[Any, ...], _Index]] = {}
_warned: set[tuple[Path, object]] = set()


class RecordRef(NamedTuple):
    """What is known of a :class:`tvm_na.records.record.Record` without reading it, and whether it came with tvm_na."""

    digest: str
    threads: int
    seconds: float
    file_name: str
    line: int
    batch: int
    workload: str
    formulation: str
    problem_json: str
    folder: Path
    target: str
    shipped: bool

    @property
    def place(self) -> str:
        """Where it lies, in words."""
        return f"{self.folder / self.file_name}, line {self.line}"

    @property
    def seconds_per_sample(self) -> float:
        """What records are ranked by."""
        return self.seconds / self.batch

    @property
    def problem(self) -> Problem:
        """Its problem."""
        return problem_from_json(self.problem_json)

    def load(self) -> Record | None:
        """The record, wherever it lies in its folder by now; None if it is there no more."""
        from tvm_na.records.read import record_at, records_in

        try:
            record = record_at(self.folder / self.file_name, self.line)
            if record is not None and record.digest == self.digest:
                return record
            return next((r for r in records_in(self.folder) if r.digest == self.digest), None)
        except OSError:  # it has become unreadable since the index was made
            return None


def ref_of(record: Record, shipped: bool) -> RecordRef:
    """The reference to a record that was read."""
    about = (record.workload, record.formulation, record.problem.to_json(), record.folder, record.target, shipped)
    return RecordRef._make((*_row(record), *about))


def _row(record: Record) -> tuple[str, int, float, str, int, int]:
    """What an index holds of a record, beside what it has in common with others of its workload."""
    return record.digest, record.threads, record.seconds, record.file.name, record.line, record.batch


class FolderIndex:
    """The best records of a folder."""

    def __init__(self, folder: Path, target_name: str, shipped: bool, tvm: str) -> None:
        """Read the index of a folder, which need not exist, or make it.

        Records of another target are left out; so are those made with another version of apache-tvm than ``tvm``,
        with a warning, once.
        """
        self.folder, self.target_name, self.shipped, self.tvm = folder, target_name, shipped, tvm
        self._rows = _index(folder, target_name)

    def problems(self) -> Iterable[str]:
        """The JSON of each problem with a record."""
        return self._rows.keys()

    def refs(self, problem: str) -> list[RecordRef]:
        """The best records of a problem, given as JSON."""
        found = []
        for workload, formulation, versions, rows in json.loads(self._rows.get(problem, "[]")):
            if versions and self.tvm not in versions:
                made = " and ".join(versions)
                what = "%s: tuning records made with apache-tvm %s are skipped, this is %s"
                _warn_once(self.folder, made, what, self.folder, made, self.tvm)
                continue
            about = (workload, formulation, problem, self.folder, self.target_name, self.shipped)
            found += [RecordRef._make((*row, *about)) for row in rows]
        return found


def _warn_once(folder: Path, about: object, message: str, *arguments: object) -> None:
    if (folder, about) not in _warned:
        _warned.add((folder, about))
        _log.warning(message, *arguments)


def _index(folder: Path, target_name: str) -> _Index:
    """The index of a folder; an empty one, with a warning, where the folder cannot be read."""
    try:
        return _index_of_files(folder, target_name, file_stamp(folder))
    except OSError as error:
        _warn_once(folder, str(error), "%s: tuning records are skipped, they cannot be read: %s", folder, error)
        return {}


def _index_of_files(folder: Path, target_name: str, files: tuple[Any, ...]) -> _Index:
    if not files:
        return {}
    if folder in _loaded and _loaded[folder][0] == files:
        return _loaded[folder][1]
    place = fingerprint.digest_of(str(folder.absolute()), target_name)[:16]
    file = indexes_dir() / f"{place}-{fingerprint.digest_of(_FORMAT, files)[:16]}.txt"
    index = _read(file)
    if index is None:
        index = _make(folder, target_name)
        _keep(index, file, place)
    _loaded[folder] = files, index
    return index


def _read(file: Path) -> _Index | None:
    """An index that was kept; None if there is none or it is damaged."""
    try:
        digest, _, text = read_file(file).decode().partition("\n")
        return dict(line.split("\t") for line in text.splitlines()) if digest == _digest(text) else None
    except (OSError, ValueError):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _make(folder: Path, target_name: str) -> _Index:
    from tvm_na.records.read import records_in  # not needed where an index is found
    from tvm_na.records.record import grouped

    records = records_in(folder)
    own = [record for record in records if record.target == target_name]
    if len(own) < len(records):
        _log.warning("%s: skipped %d records of other targets than %s", folder, len(records) - len(own), target_name)
    index: dict[str, list[Any]] = {}
    same_versions = grouped(own, lambda record: (record.problem, record.formulation, record.workload, record.tvm))
    for (problem, formulation, workload, versions), group in same_versions.items():
        by_threads = grouped(group, lambda record: record.threads).values()
        best = [r for same in by_threads for r in sorted(same, key=lambda r: r.seconds_per_sample)[:_KEPT]]
        about = [workload, formulation, list(versions), [_row(record) for record in best]]
        index.setdefault(problem.to_json(), []).append(about)
    return {problem: json.dumps(rows, separators=(",", ":")) for problem, rows in index.items()}


def _keep(index: _Index, file: Path, place: str) -> None:
    """Write an index, and remove the folder's former ones."""
    text = "".join(f"{problem}\t{rows}\n" for problem, rows in index.items())
    try:
        owned.make(file.parent)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, prefix=".tmp-", delete=False) as out:
            out.write(f"{_digest(text)}\n{text}")
        try:
            Path(out.name).replace(file)
        except OSError:
            Path(out.name).unlink()
            raise
        for other in file.parent.glob(f"{place}-*.txt"):
            if other != file:
                other.unlink(missing_ok=True)
    except OSError as error:  # without it every start reads all records
        _log.warning("cannot keep the index of %s: %s", file.parent, error)
