"""Carries out steps, each within its time, in worker processes that may crash or hang."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu import worker
from benchmarks.gpu.folder import RunFolder
from benchmarks.gpu.results import FAILED, Results
from benchmarks.gpu.steps import Step
from tvm_na.measure.worker_pool import Outcome, Pool

#: Seconds that packing results at the end may take.
_PACKING = 5.0

Say = Callable[[str], None]


class Runner:
    """One run."""

    def __init__(self, folder: RunFolder, results: Results, device: str, seconds: float, say: Say) -> None:
        """``device`` is named as in :func:`benchmarks.gpu.worker.prepare`."""
        self._folder, self._results, self._say = folder, results, say
        self._end = time.monotonic() + seconds - _PACKING
        self._arguments = (device, folder.path, results.folder)
        self._stop, self._pool = threading.Event(), self._new_pool(1)
        # Whatever hangs, files included: the results of the steps before are in the archive.
        self._last = threading.Timer(seconds, os._exit, (3,))
        self._last.daemon = True
        self._last.start()

    def _new_pool(self, count: int) -> Pool:
        return Pool(count, 10**9, self._results.folder / "workers.log", worker.prepare, self._arguments)

    def run(self, steps: Sequence[Step]) -> None:
        """Carry out steps one after the other, and those in the background beside them."""
        threads = [threading.Thread(target=self._beside, args=(step,)) for step in steps if step.beside]
        in_turns = [step for step in steps if not step.beside]
        for thread in threads:
            thread.start()
        try:
            self._describe()
            end = time.monotonic()
            scale = min(1.0, max(0.0, self._end - end) / sum(step.seconds for step in in_turns))
            for step in in_turns:
                end += step.seconds * scale
                self._carry_out(step, end)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
            self._pool.close()
            self._last.cancel()

    def _describe(self) -> None:
        """Find out what machine it is; without that there is nothing to be done."""

        def told(_: int, outcome: Outcome) -> None:
            if outcome.failure is not None or "value" not in outcome.value:
                raise RuntimeError(f"device: required one that works, got {outcome.value or outcome.message}")
            self._results.about = outcome.value["value"]

        self._pool.run(worker.call, [(worker.about, ())], 60.0, told)

    def _carry_out(self, step: Step, end: float) -> None:
        try:
            self._work(step, self._pool, lambda: time.monotonic() > end)
        except RuntimeError as error:  # no worker starts any more
            self._results.end(step.name, f"{FAILED}: {error}", 0.0)
            self._pool.close()
            self._pool = self._new_pool(1)

    def _beside(self, step: Step) -> None:
        pool = self._new_pool(step.beside)
        try:
            self._work(step, pool, self._stop.is_set)
        except RuntimeError as error:
            self._results.end(step.name, f"{FAILED}: {error}", 0.0)
        finally:
            pool.close()

    def _work(self, step: Step, pool: Pool, stopped: Callable[[], bool]) -> None:
        """Give the items of a step that have no result yet to a worker, until it is stopped."""
        began = time.monotonic()
        try:
            known, items = self._results.items(step.name), step.items(self._folder, self._results)
        except Exception as error:  # what it builds on is not there; the others go on
            self._results.end(step.name, f"{FAILED}: {type(error).__name__}: {error}", 0.0)
            self._say(f"{step.name}: {FAILED}: {error}")
            return
        todo = [item for item in items if item.name not in known]
        if known and not todo:  # what was found stays as it is, with the machine that it was found on
            self._say(f"{step.name}: done before")
            return
        left: list[str] = []

        def done(index: int, outcome: Outcome) -> None:
            name = todo[index].name
            if outcome.failure == "stopped":
                left.append(name)
            elif outcome.failure is not None:
                self._results.add(step.name, name, {"failure": outcome.failure, "message": outcome.message})
            else:
                self._results.add(step.name, name, outcome.value)

        calls = [(step.function, item.arguments) for item in todo]
        pool.run(worker.call, calls, step.patience, done, stopped)
        how = f"cut: {len(left)} of {len(items)} items are not done" if left else "done"
        self._results.end(step.name, how, time.monotonic() - began)
        self._say(f"{step.name}: {how}, {time.monotonic() - began:.1f} s")


def run(
    folder: RunFolder, output: Path, work: Path, steps: Sequence[Step], device: str, seconds: float, say: Say = print
) -> list[str]:
    """Carry out ``steps`` within ``seconds``; what was wrong or failed, by name.

    Args:
        folder: What :mod:`benchmarks.gpu.prepare` made.
        output: Where results go: an archive and a summary. What is there already is not done again.
        work: A folder for what is not to be kept.
        steps: What is to be done.
        device: The class of the device, as ``module:name``.
        seconds: After which the process has ended, whatever happens. If it has fewer than its steps, all have fewer.
        say: Told of each step.
    """
    results = Results(output, work / "results")
    Runner(folder, results, device, seconds, say).run(steps)
    return results.bad
