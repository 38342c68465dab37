"""Compiled kernels on disk, found without importing TVM.

A *kernel* file is named by what it was compiled from (the scheduled TIR, the target with its CPU features and
the versions of the compiler) and by what it holds, so that no build replaces another's file. A *request* is
what a caller knows without the compiler (problem, target, versions, the digest of our own expressions and
schedules); a small file maps it to its kernel. Files appear by an atomic rename, one builder at a time per
request; a file that does not match its digest is a miss.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tvm_na import settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheEntry:
    """A kernel on disk."""

    path: Path
    bytes: int
    modified: datetime
    problem: str
    target: str


def _index_file(request: str) -> Path:
    return settings.cache_dir() / "index" / f"{request}.json"


def _kernel_file(entry: dict[str, Any]) -> Path:
    return settings.cache_dir() / "kernels" / f"{entry['kernel']}-{entry['sha256'][:16]}.so"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def lookup(request: str) -> Path | None:
    """The kernel file of a request, or None if there is none or it is damaged."""
    index = _index_file(request)
    try:
        entry = json.loads(index.read_text(encoding="utf-8"))
        file = _kernel_file(entry)
        if _sha256(file) == entry["sha256"]:
            return file
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError) as damage:
        _log.warning("kernel cache: %s is damaged (%s); building anew", index, damage)
        return None
    _log.warning("kernel cache: %s is damaged; building anew", file)
    return None


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A temporary file in ``folder``, to be renamed to where it belongs; removed if it is still there."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".tmp-", suffix=".so")
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def get_or_build(
    request: str, describe: dict[str, Any], compile_: Callable[[], tuple[str, Callable[[Path], None]]]
) -> Path:
    """The kernel file of a request, compiled if there is none.

    Args:
        request: From :func:`request_digest`.
        describe: What to remember about the kernel (problem, target, schedule).
        compile_: Gives the kernel's name and a function that writes the shared library to a path. Runs
            under the request's lock: of several processes that miss, one compiles.

    Raises:
        RuntimeError: if the cache folder cannot be written.
    """
    from filelock import FileLock  # not needed where a kernel is found

    index = _index_file(request)
    try:
        for folder in ("index", "kernels", "locks"):
            (settings.cache_dir() / folder).mkdir(parents=True, exist_ok=True)
        lock = FileLock(settings.cache_dir() / "locks" / f"{request}.lock")
        with lock:
            if (found := lookup(request)) is not None:
                return found
            kernel, write = compile_()
            with _temporary(settings.cache_dir() / "kernels") as temporary:
                write(temporary)
                entry = {"kernel": kernel, "sha256": _sha256(temporary), **describe}
                file = temporary.replace(_kernel_file(entry))
            with _temporary(index.parent) as temporary:
                temporary.write_text(json.dumps(entry, sort_keys=True), encoding="utf-8")
                temporary.replace(index)
            return file
    except OSError as error:
        raise RuntimeError(f"kernel cache: required a writable folder (TVM_NA_CACHE_DIR), got {error}") from error


def description(request: str) -> dict[str, Any]:
    """What :func:`get_or_build` remembered about a request's kernel; empty if it is not there."""
    try:
        loaded = json.loads(_index_file(request).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def entries() -> list[CacheEntry]:
    """The kernels in the cache, the oldest first."""
    found = []
    for index in (settings.cache_dir() / "index").glob("*.json"):
        entry = description(index.stem)
        if "problem" not in entry or not _kernel_file(entry).is_file():
            continue
        file = _kernel_file(entry)
        stat = file.stat()
        modified = datetime.fromtimestamp(stat.st_mtime, tz=timezone.utc)
        found.append(CacheEntry(file, stat.st_size, modified, str(entry["problem"]), str(entry["target"])))
    return sorted(found, key=lambda e: e.modified)


def clear() -> int:
    """Remove every kernel, and what is remembered about tuning records; returns how many kernels there were."""
    count = len(entries())
    mine = (("index", "*.json"), ("kernels", "*.so"), ("locks", "*.lock"), ("records", "*.txt"), ("rejected", "*"))
    for folder, pattern in mine:
        for file in (settings.cache_dir() / folder).glob(pattern):
            file.unlink(missing_ok=True)
    return count
