"""A process in which rounds of one subject run: it may crash, hang or be killed, and another one goes on."""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import traceback
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.subject import Subject

#: To import TVM, and to make what a subject attacks.
_START_SECONDS = 300.0


def subjects() -> dict[str, type[Subject]]:
    """All by name."""
    from tests.fuzz import artifacts, cache, checkpoints, kills, numbers, records, uploads

    every: tuple[type[Subject], ...] = (
        *(numbers.Numbers, cache.Cache, records.Records, artifacts.Artifacts),
        *(checkpoints.Checkpoints, uploads.Uploads, kills.Kills),
    )
    return {subject.name: subject for subject in every}


def _serve(kind: type[Subject], folder: Path, connection: Connection) -> None:
    import torch

    torch.set_num_threads(2)
    try:
        with closing(kind(folder)) as subject:
            connection.send(None)
            while True:
                seed = connection.recv()
                torch.manual_seed(seed)
                subject.round(random.Random(seed))
                connection.send(None)
    except EOFError:
        return
    except BaseException:  # an assertion, or whatever the package raised: the parent tells it
        connection.send(traceback.format_exc())


class Worker:
    """Rounds of one subject, one after the other."""

    def __init__(self, kind: type[Subject]) -> None:
        self.kind = kind
        self._folder = tempfile.TemporaryDirectory(prefix=f"tvm_na-fuzz-{kind.name}-", ignore_cleanup_errors=True)
        context = multiprocessing.get_context("spawn")  # a fork would share OpenMP and TVM with all others
        self._connection, theirs = context.Pipe()
        arguments = (kind, Path(self._folder.name), theirs)
        self._process = context.Process(target=_serve, args=arguments)  # not a daemon: it starts processes of its own
        self._process.start()
        theirs.close()
        self.broken = self._answer(_START_SECONDS)

    def round(self, seed: int) -> str | None:
        """What a round found; None for nothing. After a finding the worker must be closed."""
        self._connection.send(seed)
        return self._answer(self.kind.seconds)

    def _answer(self, seconds: float) -> str | None:
        try:
            if not self._connection.poll(seconds):
                return f"it hangs: no answer in {seconds:g} s"
            found: str | None = self._connection.recv()
            return found
        except EOFError:
            self._process.join(10)
            return f"the process crashed: exit code {self._process.exitcode}"

    def close(self) -> None:
        """End the process, whatever it does."""
        self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._folder.cleanup()
