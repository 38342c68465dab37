"""Where tuning records lie, and the files of a folder of them: read whole, replaced at once, one writer at a time.

Apart from the rest, since every start needs it: nothing here is slow to import.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm_na
from tvm_na import settings

_log = logging.getLogger(__name__)

WORKLOADS, RECORDS, META = "database_workload.json", "database_tuning_record.json", "meta.json"
CHECKSUMS = "checksums.txt"
#: Compact records, beside or in place of a JSONDatabase.
COMPACT = "records.jsonl"
_MOST_NAMED = 5  # damaged lines of a file that get a warning each
#: What reading JSON raises that is torn, mistyped, huge or nested, whoever wrote it.
MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)


def in_short(damage: Exception) -> str:
    """What an error says, which may hold all of what was read."""
    text = f"{damage}" or type(damage).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


class Skipped:
    """Lines of a file that are left out: each of the first few with a warning, then only how many."""

    def __init__(self, file: Path) -> None:
        self._file, self.count = file, 0

    def __call__(self, number: int, why: Exception, level: int = logging.WARNING) -> None:
        """Leave out a line, with its number."""
        self.count += 1
        if self.count <= _MOST_NAMED:
            _log.log(level, "%s, line %d: skipped, %s", self._file, number, in_short(why))

    def tell_rest(self) -> None:
        """Say how many there were that had no warning."""
        if self.count > _MOST_NAMED:
            _log.warning("%s: skipped %d more lines", self._file, self.count - _MOST_NAMED)


def user_folder(target_name: str) -> Path:
    """Where the user's own records of a target lie (it may not exist yet)."""
    return settings.records_dir() / target_name


def shipped_folder(target_name: str) -> Path:
    """Where the records of a target lie that came with tvm_na (it may not exist)."""
    # In a checkout tuning_logs/ lies beside the package, as models/ and schedules/ do.
    places = [Path(place) / "tuning_logs" for place in tvm_na.__path__]
    return next((place for place in places if place.is_dir()), places[0]) / target_name


def file_stamp(folder: Path) -> tuple[Any, ...]:
    """What tells whether the folder's records changed: names, sizes, times of its files."""
    found = []
    for name in (META, WORKLOADS, RECORDS, CHECKSUMS, COMPACT):
        try:
            about = os.stat(folder / name)
        except FileNotFoundError:
            continue
        found.append((name, about.st_size, about.st_mtime_ns, about.st_ino))
    return tuple(found)


def read_file(file: Path) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read, or is no file: a pipe would be waited for.
    """
    with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(file))
        return opened.read()


def lines_of(file: Path) -> list[bytes]:
    """The lines of a file; none if it does not exist; OSError where it cannot be read."""
    try:
        return read_file(file).splitlines()
    except FileNotFoundError:
        return []


def workload_hash(line: bytes) -> str | None:
    """The structural hash in a line of the workloads file, whose rest is long; None for a torn line."""
    found = re.match(rb'\s*\[\s*"(\d+)"', line)
    return None if found is None or not line.rstrip().endswith(b"]") else found[1].decode()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the folder's only writer; creates the folder.

    Raises:
        ValueError: another process writes to it.
    """
    import filelock  # which PyTorch depends on as well, so it is there wherever kernels are measured

    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ValueError(f"records: required a folder that nobody else writes to, got {folder}") from error
    try:
        yield
    finally:
        lock.release()


def append(file: Path, data: bytes) -> None:
    """Add to the end of a file, which is on disk when this returns."""
    with open(file, "ab") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def write_atomically(file: Path, data: bytes) -> None:
    """Put ``data`` in the place of ``file``, which is never half written."""
    temporary = file.with_name(f".{file.name}.tmp")  # one writer at a time
    try:
        with open(temporary, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
    except OSError:  # no room
        temporary.unlink(missing_ok=True)
        raise


def indexes_dir() -> Path:
    """The folder of indexes of tuning records (it may not exist yet)."""
    return settings.cache_dir() / "records"


def rejections_dir() -> Path:
    """The folder that remembers which tuning records do not apply (it may not exist yet)."""
    return settings.cache_dir() / "rejected"
