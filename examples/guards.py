"""What a training run is guarded by: its random numbers, and that it can be stopped at any step."""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


def drawing(*place: int) -> random.Random:
    """Random numbers of one place in a run, such as (seed, epoch, step); the same in every process."""
    return random.Random("/".join(map(str, place)))


@contextmanager
def reproducible(seed: int, threads: int | None = None) -> Iterator[None]:
    """Draw the same numbers and add them up in the same order, on so many threads, as long as the block lasts."""
    torch.manual_seed(seed)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    before = (torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory)
    # On CPUs alone: there it costs next to nothing, on GPUs it wants an environment variable.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


@dataclass
class Stop:
    """Whether to end early, and why: ``reason`` is empty, "interrupted" or "the time is up"."""

    deadline: float = math.inf
    reason: str = ""

    def __call__(self) -> bool:
        if not self.reason and time.monotonic() >= self.deadline:
            self.reason = "the time is up"
        return bool(self.reason)


@contextmanager
def stopping(seconds: float | None) -> Iterator[Stop]:
    """Ctrl-C (or SIGTERM) and the time limit as a :class:`Stop`; a second Ctrl-C is not waited for."""
    stop = Stop(math.inf if seconds is None else time.monotonic() + seconds)
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield stop
        return

    def interrupted(number: int, _: object) -> None:
        stop.reason = "interrupted"
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
