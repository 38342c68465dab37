"""Worker processes that may crash or hang: each call ends in a value or in a failure, and the next one is served.

They are forked from a server that has imported TVM and PyTorch once, so that a new one is there in a fraction of a
second; importing takes 4 s. (``concurrent.futures`` gives a whole pool up when one of its processes crashes, and
TVM's own pool imports anew in each.)
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any, TypeAlias

# Not tvm_na.jit.runtime: a fork of a process that has it computes on one thread.
_PRELOADED = ["torch", "tvm", "tvm.s_tir", "tvm_na.tune.builder", "tvm_na.measure.local", "tvm_na.records.replay"]
_PR_SET_PDEATHSIG = 1
_START_SECONDS = 120.0  # for importing, on a busy machine

#: Whether what is not done yet is given up.
Stopped: TypeAlias = Callable[[], bool]


@dataclass(frozen=True)
class Outcome:
    """What became of a call: what it returned, or what went wrong.

    Attributes:
        failure: "timeout", "crash" or "stopped"; None if it returned.
    """

    value: Any = None
    failure: str | None = None
    message: str = ""


@dataclass(frozen=True)
class Last:
    """What a function returns whose process can do nothing more: its value, after which the process ends."""

    value: Any


def start_server() -> None:
    """Start the server that workers are forked from, which takes seconds; returns at once."""
    multiprocessing.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


def _serve(pipe: connection.Connection, log: Path, prepare: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """What a worker does, until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the parent ends its workers
    # The server ends with the tuner; an endless kernel, which hears of neither, must end with it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    prepare(*arguments)
    pipe.send(None)
    while True:
        try:
            function, given = pipe.recv()
        except EOFError:
            return
        result = function(*given)
        pipe.send(result)
        if isinstance(result, Last):
            return


class _Worker:
    """One process, and the call that it is at."""

    def __init__(self, uses: int, *serve: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, *serve), daemon=True)
        self.process.start()
        theirs.close()
        self.uses, self.ready = uses, False
        self.call: int | None = None
        self.deadline = time.monotonic() + _START_SECONDS

    def send(self, call: int, function: Callable[..., Any], arguments: tuple[Any, ...], timeout: float) -> None:
        self.call, self.deadline, self.uses = call, time.monotonic() + timeout, self.uses - 1
        self.pipe.send((function, arguments))

    def outcome(self) -> Outcome | None:
        """What became of its call or its start, if that is known now."""
        if self.pipe.poll():
            try:
                result = self.pipe.recv()
                if isinstance(result, Last):
                    self.uses, result = 0, result.value
                return Outcome(result)
            except (EOFError, ConnectionResetError):
                return Outcome(None, "crash", self._how_it_ended())
        if time.monotonic() > self.deadline:
            return Outcome(None, "timeout", "it took too long")
        return None

    def _how_it_ended(self) -> str:
        self.process.join(1.0)
        code = self.process.exitcode
        name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return f"the process ended with {name}"

    def end(self) -> None:
        self.process.kill()
        self.process.join(1.0)
        self.pipe.close()


class Pool:
    """Processes that call functions, each one call at a time."""

    def __init__(
        self, count: int, uses: int, log: Path, prepare: Callable[..., None], arguments: tuple[Any, ...] = ()
    ) -> None:
        """Start ``count`` processes, which print to ``log``; they are not ready yet.

        Each calls ``prepare(*arguments)`` first (a function of a module, as all that are sent), and is replaced by a
        fresh one after so many ``uses``.
        """
        start_server()
        self._new = lambda: _Worker(uses, log, prepare, arguments)
        self._workers = [self._new() for _ in range(count)]

    def grow(self, count: int) -> None:
        """Start processes until there are ``count``."""
        while len(self._workers) < count:
            self._workers.append(self._new())

    def run(
        self,
        function: Callable[..., Any],
        calls: Sequence[tuple[Any, ...]],
        timeout: float,
        done: Callable[[int, Outcome], None],
        stopped: Stopped = lambda: False,
    ) -> None:
        """Call ``function``, of a module, with each of ``calls``, as many at once as there are processes.

        ``done(index, outcome)`` is called for each, in the order in which they end. A call that takes longer than
        ``timeout`` seconds ends with its process; when ``stopped()`` turns true, what has not ended is given up.
        """
        todo = deque(range(len(calls)))
        open_calls = len(calls)
        while open_calls:
            if stopped():
                self._give_up(todo, done)
                return
            for at, worker in enumerate(self._workers):
                if worker.ready and worker.call is None and todo:
                    if worker.uses <= 0:
                        self._replace(at)
                        continue
                    index = todo.popleft()
                    worker.send(index, function, calls[index], timeout)
            connection.wait([worker.pipe for worker in self._workers], timeout=0.1)
            for at, worker in enumerate(self._workers):
                if (outcome := worker.outcome()) is not None and (ended := self._ended(at, outcome)) is not None:
                    open_calls -= 1
                    done(ended, outcome)

    def _ended(self, at: int, outcome: Outcome) -> int | None:
        """Note that a worker is ready or lost; the call that ended with that."""
        worker = self._workers[at]
        call, worker.call = worker.call, None
        if not worker.ready and outcome.failure is not None:
            raise RuntimeError(f"a worker process could not start ({outcome.message}); see its log")
        worker.ready = True
        if outcome.failure is not None:
            self._replace(at)
        return call

    def _replace(self, at: int) -> None:
        self._workers[at].end()
        self._workers[at] = self._new()

    def _give_up(self, todo: deque[int], done: Callable[[int, Outcome], None]) -> None:
        for at, worker in enumerate(self._workers):
            if worker.call is not None:
                todo.append(worker.call)
                self._replace(at)
        for index in todo:
            done(index, Outcome(None, "stopped", "it was stopped"))

    def close(self) -> None:
        """End the processes, whatever they do."""
        for worker in self._workers:
            worker.end()
        self._workers = []


def nothing() -> None:
    """A preparation that does nothing."""
