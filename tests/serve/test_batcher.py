"""Batches: who waits for whom, and whose answer is whose."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers import wait_until
from tvm_na.serve.batcher import Batcher


class Recorder:
    """Doubles numbers, keeps what it was called with, and can be held up."""

    def __init__(self):
        self.calls, self.free = [], threading.Event()
        self.free.set()

    def __call__(self, items):
        assert self.free.wait(10)
        self.calls.append(list(items))
        if any(item < 0 for item in items):
            raise ArithmeticError(f"negative: {min(items)}")
        return [ValueError("thirteen") if item == 13 else 2 * item for item in items]


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def batcher(recorder):
    sizes = []
    batcher = Batcher(recorder, max_batch=4, max_delay=0.02, observe=lambda size, seconds: sizes.append(size))
    batcher.sizes = sizes
    yield batcher
    recorder.free.set()
    assert batcher.close(10)


def held(recorder, batcher):
    """The thread computes one item and cannot go on."""
    recorder.free.clear()
    first = batcher.submit(0)
    wait_until(lambda: batcher.busy_seconds > 0, "the thread is busy")
    return first


def test_what_waits_is_computed_together(recorder, batcher):
    futures = [held(recorder, batcher), *(batcher.submit(i) for i in range(1, 7))]
    assert len(batcher) == 6
    recorder.free.set()
    assert [f.result(10) for f in futures] == [0, 2, 4, 6, 8, 10, 12]
    assert recorder.calls == [[0], [1, 2, 3, 4], [5, 6]]
    wait_until(lambda: batcher.sizes == [1, 4, 2], "every batch is told of")
    assert len(batcher) == 0


def test_one_that_comes_alone_waits_no_longer_than_the_delay(batcher):
    start = time.monotonic()
    assert batcher.submit(3).result(10) == 6
    assert 0.015 < time.monotonic() - start < 2


def test_a_full_batch_does_not_wait(recorder):
    batcher = Batcher(recorder, max_batch=2, max_delay=60)
    assert [f.result(10) for f in [batcher.submit(1), batcher.submit(2)]] == [2, 4]
    assert batcher.close(10)


def test_only_those_at_fault_fail(recorder, batcher):
    first = held(recorder, batcher)
    futures = [batcher.submit(i) for i in (5, -1, 13, 7)]
    recorder.free.set()
    assert [first.result(10), futures[0].result(10), futures[3].result(10)] == [0, 10, 14]
    with pytest.raises(ArithmeticError, match="negative: -1"):
        futures[1].result(10)
    with pytest.raises(ValueError, match="thirteen"):
        futures[2].result(10)
    assert recorder.calls[1:] == [[5, -1, 13, 7], [5], [-1], [13], [7]]
    assert batcher.submit(1).result(10) == 2  # the thread lives


def test_too_few_results_are_an_error():
    batcher = Batcher(lambda items: [], max_batch=2, max_delay=0)
    with pytest.raises(RuntimeError, match="required 1 results, one per item, got 0"):
        batcher.submit(1).result(10)
    assert batcher.close(10)


def test_what_is_cancelled_leaves_the_queue(recorder, batcher):
    held(recorder, batcher)
    futures = [batcher.submit(i) for i in (1, 2, 3)]
    assert futures[1].cancel()
    assert len(batcher) == 2
    recorder.free.set()
    assert [futures[0].result(10), futures[2].result(10)] == [2, 6]
    assert recorder.calls == [[0], [1, 3]]


def test_closing_works_off_what_waits(recorder):
    batcher = Batcher(recorder, max_batch=2, max_delay=60)
    held_up = [batcher.submit(i) for i in range(5)]
    assert batcher.close(10)
    assert [f.result(0) for f in held_up] == [0, 2, 4, 6, 8]
    assert not batcher.is_alive
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(1)


def test_closing_says_when_the_thread_does_not_end(recorder, batcher):
    held(recorder, batcher)
    assert not batcher.close(0.05)


def test_many_threads_get_their_own_answers(batcher):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: batcher.submit(i + 100).result(20), range(2000)))
    assert answers == [2 * (i + 100) for i in range(2000)]
    wait_until(lambda: sum(batcher.sizes) == 2000, "every item is told of")
    assert max(batcher.sizes) <= 4


def test_a_forked_child_is_told_that_it_has_no_thread(batcher):
    """It would wait for an answer for ever, or for a lock that the thread held."""
    assert batcher.submit(3).result(10) == 6
    with batcher._changed:
        child = os.fork()
        if child == 0:
            try:
                batcher.submit(4)
            except RuntimeError as error:
                os._exit(0 if "required the process that made it" in str(error) else 1)
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert batcher.submit(5).result(10) == 10
