"""The files of an artifact: regular ones below folders. Links are refused, not followed; pipes are not waited for."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = 1 << 20
_KINDS = {stat.S_IFLNK: "link", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFDIR: "folder"}


def shown(path: str | Path) -> str:
    """A path as it can be printed, whatever bytes it has."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def is_regular(file: Path) -> bool:
    """Whether it is a file: no link to one, and no folder, pipe or device."""
    try:
        return stat.S_ISREG(file.lstat().st_mode)
    except (OSError, ValueError):  # a ValueError is a path that no file can have
        return False


def names(folder: Path) -> set[str]:
    """The path of every file in a folder, from there, with ``/``.

    Raises:
        ValueError: something in it is neither a file nor a folder, or cannot be looked at; names it.
    """
    found = set()
    for at, folders, files in os.walk(folder, onerror=_raise):
        for name in (*folders, *files):
            path = Path(at, name)
            kind = _kind(path)
            if kind not in ("file", "folder"):
                raise ValueError(f"{shown(path)}: required a regular file or a folder, got a {kind}")
            if kind == "file":
                found.add(path.relative_to(folder).as_posix())
    return found


def _raise(error: OSError) -> None:
    raise ValueError(f"{error.filename}: required a folder that can be read, got {error.strerror}") from error


def _kind(path: Path) -> str:
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise ValueError(f"{path}: required a regular file or a folder, got {error.strerror}") from error
    return "file" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "device")


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """A regular file, to be read.

    Raises:
        ValueError: it is something else, or cannot be read.
    """
    try:
        # NONBLOCK: a pipe that took the file's place meanwhile would be waited for.
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as stream:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(0, "something else")
            yield stream
    except OSError as error:
        raise ValueError(f"{file}: required a regular file that can be read, got {error.strerror}") from error


def describe(folder: Path, but: str) -> dict[str, dict[str, Any]]:
    """``sha256`` and ``bytes`` of every file of a folder, by its path in it, without the one of the name ``but``."""
    described = {name: folder / name for name in sorted(names(folder)) if name != but}
    return {name: {"sha256": _sha256(file), "bytes": file.lstat().st_size} for name, file in described.items()}


def verify(folder: Path, described: Mapping[str, Mapping[str, Any]], but: str) -> None:
    """ValueError unless a folder has the files that :func:`describe` described, and no others; names the first one."""
    there = names(folder)
    for name, wanted in described.items():
        if name not in there:
            where = shown(folder / name)
            raise ValueError(f"{where}: required a file of {wanted['bytes']} bytes inside of the artifact, got none")
        file = folder / name
        size = file.lstat().st_size
        if size != wanted["bytes"]:
            raise ValueError(f"{file}: required {wanted['bytes']} bytes, got {size}")
        digest = _sha256(file)
        if digest != wanted["sha256"]:
            raise ValueError(f"{file}: required the SHA-256 {wanted['sha256']}, got {digest}")
    extra = sorted(there - set(described) - {but})
    if extra:  # PyTorch loads what it finds in the model's folder
        raise ValueError(f"{folder}: required the files that the manifest names, got also {shown(extra[0])}")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with opened(file) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
