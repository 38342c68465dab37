"""Files that are locked: by one holder at a time, of all processes and threads of a machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LockedError(Exception):
    """Somebody else holds a lock that was not waited for."""


@contextmanager
def locked(file: Path, mode: int = 0o644, wait: bool = True, remove: bool = False) -> Iterator[None]:
    """Hold the lock of a file, which is made where it is not there, with a mode.

    A process that ends, however it does, holds it no more.

    Args:
        file: The file.
        mode: Its mode, less what the umask forbids, where it is made.
        wait: Whether to wait for whoever holds it.
        remove: Whether to remove it in the end, if that is possible. Whoever waits for it then takes a new one.

    Raises:
        LockedError: somebody else holds it, and it was not to be waited for.
        OSError: the file cannot be made.
    """
    descriptor = _lock(file, mode, wait)
    try:
        yield
    finally:
        if remove:
            with contextlib.suppress(OSError):
                file.unlink()
        os.close(descriptor)


def _lock(file: Path, mode: int, wait: bool) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is(descriptor, file):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise LockedError(f"{file}: required a lock that nobody holds") from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # of a file that its former holder removed


def _is(descriptor: int, file: Path) -> bool:
    """Whether a file is what was opened, and not another one in its place."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False
