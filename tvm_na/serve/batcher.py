"""Work that waits is done in batches by one thread; each answer goes to whom it belongs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Told of every batch that was computed: how many items, how many seconds.
Observer = Callable[[int, float], None]


class Batcher(Generic[T, R]):
    """A queue and the thread that works it off.

    Whoever submits bounds the queue: an item leaves it when it is computed or its future cancelled.

    Args:
        run: Called in the thread with 1 to ``max_batch`` items; gives as many results, in their order. A result that is
            an exception fails its item alone. If the call raises, every item is tried again alone, so that only those
            fail that are at fault.
        max_delay: Seconds that the first item of a batch waits for others.
        observe: Told of every call that returned.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R | Exception]],
        *,
        max_batch: int,
        max_delay: float,
        name: str = "batcher",
        observe: Observer = lambda size, seconds: None,
    ) -> None:
        self._run, self._observe = run, observe
        self._max_batch, self._max_delay = max_batch, max_delay
        self._waiting: dict[Future[R], tuple[T, float]] = {}  # with the time of submission; the oldest first
        self._changed = threading.Condition()
        self._closing = False
        self._busy_since: float | None = None
        # A daemon, so that a model that never returns does not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many items wait."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    @property
    def busy_seconds(self) -> float:
        """How long the call has lasted that is being made; 0 if there is none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, item: T) -> Future[R]:
        """The result to come of an item. Cancelling it takes the item out of the queue.

        Raises:
            RuntimeError: The batcher is closed, or this process was forked from its own.
        """
        if not self._closing and not self._thread.is_alive():
            raise RuntimeError("batcher: required the process that made it, got one without its thread")
        future: Future[R] = Future()
        with self._changed:
            if self._closing:
                raise RuntimeError("the batcher is closed")
            self._waiting[future] = (item, time.monotonic())
            self._changed.notify()
        future.add_done_callback(self._forget)
        return future

    def close(self, timeout: float | None = None) -> bool:
        """Take nothing more and work off what waits; whether that was done within ``timeout`` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _forget(self, future: Future[R]) -> None:
        if future.cancelled():
            with self._changed:
                self._waiting.pop(future, None)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            if batch:
                self._busy_since = time.monotonic()
                self._answer(batch)
                self._busy_since = None

    def _next(self) -> list[tuple[Future[R], T]] | None:
        """What to compute next, once there is something; None when there will be nothing more."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            if not self._waiting:
                return None
            _, oldest = next(iter(self._waiting.values()))
            deadline = oldest + self._max_delay
            while len(self._waiting) < self._max_batch and not self._closing:
                left = deadline - time.monotonic()
                if left <= 0 or not self._waiting:
                    break
                self._changed.wait(left)
            futures = list(self._waiting)[: self._max_batch]
            taken = [(future, self._waiting.pop(future)[0]) for future in futures]
        return [(future, item) for future, item in taken if future.set_running_or_notify_cancel()]

    def _answer(self, batch: list[tuple[Future[R], T]]) -> None:
        start = time.monotonic()
        try:
            results = self._run([item for _, item in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"required {len(batch)} results, one per item, got {len(results)}")
        except Exception as error:  # whatever it is, it is the answer of whoever asked
            if len(batch) == 1:
                batch[0][0].set_exception(error)
            else:
                for one in batch:
                    self._answer([one])
            return
        self._observe(len(batch), time.monotonic() - start)
        for (future, _), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
