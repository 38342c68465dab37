"""Files whose content is run: nobody but the caller, or root, may have written them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

#: Modes of what is made.
FOLDER, FILE = 0o700, 0o600

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def check(path: Path) -> os.stat_result:
    """What ``os.stat`` says of a file or a folder that is to be trusted.

    Where there are no owners (Windows), nothing is checked.

    Raises:
        RuntimeError: somebody else owns it, or may write to it.
        OSError: as ``os.stat``.
    """
    found = os.stat(path)
    if not hasattr(os, "geteuid"):
        return found
    caller = os.geteuid()
    if found.st_uid not in (caller, 0):
        required = f"to belong to user {caller} or to root"
        raise _untrusted(path, required, f"user {found.st_uid}", f"chown -R {caller} {path}")
    if found.st_mode & _OTHERS_WRITE:
        got = f"mode {stat.S_IMODE(found.st_mode):o}"
        raise _untrusted(path, "to be written by its owner alone", got, f"chmod -R go-w {path}")
    return found


def make(folder: Path) -> None:
    """Make a folder, and those above it, for the caller alone; one that is there is checked.

    Raises:
        RuntimeError: as :func:`check`.
        OSError: it cannot be made.
    """
    if not folder.is_dir():
        for missing in reversed([place for place in (folder, *folder.parents) if not place.exists()]):
            missing.mkdir(mode=FOLDER, exist_ok=True)
    check(folder)


def _untrusted(path: Path, required: str, got: str, remedy: str) -> RuntimeError:
    return RuntimeError(
        f"kernel cache: required {path} {required}, since what is in it is run, got {got}; remove it, name another "
        f"folder in TVM_NA_CACHE_DIR, or, if you trust all of it, {remedy}"
    )
