"""``fork`` copies one thread alone: the child has none of those that kernels run on, nor those that hold a lock.

So a process that has run a kernel is forked while no thread holds one of these locks, and the child computes on one
thread, PyTorch's own loops included, as torch's DataLoader workers do.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from types import TracebackType

#: Seconds that a fork waits for a lock.
PATIENCE = 60.0


class Lock:
    """A lock of one thread at a time, which may take it again; a process is forked while no other thread has it.

    What takes longer than :data:`PATIENCE` is not waited for: then it is an error to take the lock in the child.
    """

    def __init__(self, what: str) -> None:
        self._what, self._lock, self._is_lost = what, threading.RLock(), False
        _locks.append(weakref.ref(self))

    def __enter__(self) -> None:
        if self._is_lost:
            wanted = "a process that was forked while no thread was at it"
            raise RuntimeError(f"{self._what}: required {wanted}, got one that was; start it by spawn or forkserver")
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()

    def before(self) -> bool:
        """Take it, so that no other thread has it in the child; False if it did not come in time."""
        return self._lock.acquire(timeout=PATIENCE)

    def after(self, is_taken: bool, in_child: bool) -> None:
        """Give it back; one that was not taken is lost to the child."""
        if is_taken:
            self._lock.release()
        elif in_child:
            self._is_lost = True


# In the order in which a thread that takes several takes them.
_locks: list[weakref.ref[Lock]] = []
_forks = threading.local()
_has_computed = False
#: Whether this process was forked from one that had this module. (A variable, since every call asks.)
is_child = False


def computed() -> None:
    """Threads of kernels may exist from now on."""
    global _has_computed
    _has_computed = True


def _before() -> None:
    _locks[:] = [reference for reference in _locks if reference() is not None]
    locks = [lock for reference in _locks if (lock := reference()) is not None]
    _forks.taken = [(lock, lock.before()) for lock in locks]


def _after(in_child: bool) -> None:
    for lock, is_taken in reversed(_forks.__dict__.pop("taken", [])):
        lock.after(is_taken, in_child)


def _after_in_child() -> None:
    global is_child
    is_child = True
    _after(True)
    torch = sys.modules.get("torch")
    if _has_computed and torch is not None:
        torch.set_num_threads(1)


os.register_at_fork(before=_before, after_in_parent=lambda: _after(False), after_in_child=_after_in_child)
