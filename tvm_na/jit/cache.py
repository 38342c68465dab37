"""Compiled kernels on disk, found without importing TVM.

A *kernel* file is named by what it was compiled from (the scheduled TIR, the target with its CPU features and
the versions of the compiler) and by what it holds, so that no build replaces another's file. A *request* is
what a caller knows without the compiler (problem, target, versions, the digest of our own expressions and
schedules); a small file maps it to its kernel. Files appear by an atomic rename, one builder at a time per
request; a file that does not match its digest is a miss, and so is one that cannot be read. One that somebody
else could have written is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tvm_na import owned, settings
from tvm_na.jit.remembered import Remembered

_log = logging.getLogger(__name__)

#: Seconds after which a temporary file or a lock was left by a run that was killed. No build takes as long.
LEFT = 3600.0

# Kernels are named by hexadecimal digits; another library, the launcher, is not.
_KERNELS = "[0-9a-f]*-*.so"
#: Warnings that were given: a build looks twice, and a folder that cannot be read has many kernels.
_told: Remembered[tuple[Path, str], bool] = Remembered(256)


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


def check_owner() -> None:
    """Check the cache folder, if there is one that can be looked at; whoever needs it will say so if there is none.

    Raises:
        RuntimeError: somebody other than the caller and root owns it, or may write to it.
    """
    with contextlib.suppress(OSError):
        owned.check(settings.cache_dir())


def lookup(request: str) -> Path | None:
    """The kernel file of a request, or None if there is none, it is damaged, or it may not be read.

    Raises:
        RuntimeError: somebody other than the caller and root could have written it.
    """
    index = _index_file(request)
    try:
        for folder in (settings.cache_dir(), index.parent, settings.cache_dir() / "kernels"):
            owned.check(folder)
        entry = _entry(index)
        file = _kernel_file(entry)
        if _sha256(file) == entry["sha256"]:
            return file
        _tell(index, f"{file.name} is not what was built")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        _tell(settings.cache_dir(), f"{type(error).__name__}: {error.strerror}")
    except (ValueError, TypeError, KeyError, RecursionError) as damage:
        _tell(index, str(damage))
    return None


def _tell(where: Path, why: str) -> None:
    """Warn, once, that something of the cache cannot be used."""
    if (where, why) not in _told:
        _log.warning("kernel cache: %s is damaged or cannot be read (%s); building anew", where, why)
        _told[where, why] = True


def _content(file: Path) -> bytes:
    """What a file holds that is trusted; ValueError if that is nothing, or it is no file, but perhaps a link to one."""
    if not stat.S_ISREG(file.lstat().st_mode):
        raise ValueError(f"{file.name} is no file")
    owned.check(file)
    content = file.read_bytes()
    if not content:
        raise ValueError(f"{file.name} is empty")
    return content


def _sha256(file: Path) -> str:
    return hashlib.sha256(_content(file)).hexdigest()


def _entry(index: Path) -> dict[str, Any]:
    """What is remembered of the kernel of a request.

    Raises:
        ValueError, RecursionError: it is no entry, or that of another request.
        OSError: it cannot be read.
        RuntimeError: it is not trusted.
    """
    entry = json.loads(_content(index))
    if not isinstance(entry, dict) or entry.get("request") != index.stem:
        raise ValueError("it is not about this request")
    return entry


@contextmanager
def _writing() -> Iterator[None]:
    """Tell what went wrong with the disk in our words."""
    try:
        yield
    except OSError as error:
        raise RuntimeError(
            f"kernel cache: required a folder that can be written to, with space (TVM_NA_CACHE_DIR), got {error}"
        ) from error


@contextmanager
def _only_builder(request: str) -> Iterator[None]:
    """Be the only one who builds what a request asks for."""
    from filelock import FileLock  # not needed where a kernel is found

    file = settings.cache_dir() / "locks" / f"{request}.lock"
    lock = FileLock(file, mode=owned.FILE)
    with _writing():
        lock.acquire()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it can stay; whoever waits for it takes a new one
            file.unlink()
        lock.release()


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
        RuntimeError: if the cache folder cannot be written, or somebody else may write to it.
    """
    with _writing():
        for name in (".", "index", "kernels", "locks"):
            owned.make(settings.cache_dir() / name)
    with _only_builder(request):
        if (found := lookup(request)) is not None:
            return found
        kernel, write = compile_()
        with _writing():
            _sweep()
            return _keep(request, kernel, write, describe)


def _keep(request: str, kernel: str, write: Callable[[Path], None], describe: dict[str, Any]) -> Path:
    """Put a kernel into the cache, and then its entry; its file."""
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=settings.cache_dir() / "kernels") as folder:
        library, described = Path(folder) / "kernel.so", Path(folder) / "entry.json"
        write(library)
        if not library.is_file() or not library.stat().st_size:
            raise RuntimeError("kernel cache: required a library from the compiler, got none or an empty one")
        library.chmod(owned.FILE)  # a linker makes it what the umask says
        entry = {"request": request, "kernel": kernel, "sha256": _sha256(library)}
        described.touch(owned.FILE)
        described.write_text(json.dumps(entry | describe, sort_keys=True), encoding="utf-8")
        file = _kernel_file(entry)
        for made, place in ((library, file), (described, _index_file(request))):
            if place.is_dir():
                _remove(place)
            made.replace(place)
    return file


def _sweep() -> None:
    """Remove what runs left that were killed."""
    for pattern in ("*/.tmp-*", "locks/*.lock"):
        for left in settings.cache_dir().glob(pattern):
            with contextlib.suppress(OSError):  # it can stay; or another process was first
                if time.time() - left.lstat().st_mtime > LEFT:
                    _remove(left)


def _remove(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file, ignore_errors=True)
    else:
        file.unlink(missing_ok=True)


def entries() -> list[CacheEntry]:
    """The kernels in the cache, the oldest first; what is damaged or cannot be read is left out."""
    found = []
    for index in (settings.cache_dir() / "index").glob("*.json"):
        try:
            entry = _entry(index)
            file = _kernel_file(entry)
            size, modified = file.stat().st_size, datetime.fromtimestamp(file.stat().st_mtime, tz=timezone.utc)
            found.append(CacheEntry(file, size, modified, str(entry["problem"]), str(entry["target"])))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            continue
    return sorted(found, key=lambda e: e.modified)


def kernel_files() -> list[Path]:
    """The kernels in the cache, damaged ones and all: nothing is read."""
    return list((settings.cache_dir() / "kernels").glob(_KERNELS))


def clear() -> int:
    """Remove every kernel, what is remembered about tuning records, and what killed runs left.

    Nothing is read, so that damage is no hindrance.

    Returns:
        How many kernels there were.

    Raises:
        RuntimeError: if the cache folder cannot be written.
    """
    count = len(kernel_files())
    mine = (("index", "*.json"), ("kernels", "*.so"), ("locks", "*.lock"), ("records", "*.txt"), ("rejected", "*"))
    with _writing():
        for folder, pattern in (*mine, ("static", "*.json")):
            for file in (settings.cache_dir() / folder).glob(pattern):
                _remove(file)
        _sweep()
    return count
