"""What surrounds a run of the tuner: what ends it, and where its log goes."""

from __future__ import annotations

import logging
import logging.handlers
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tvm_na.tune.state import TuneState


@contextmanager
def stopping(state: TuneState) -> Iterator[Callable[[], bool]]:
    """A function that says whether to end, for whatever reason; Ctrl-C is one, as long as the block lasts."""

    def stopped() -> bool:
        if not state.ending and time.monotonic() >= state.deadline:
            state.ending = "the time is up"
        if not state.ending and state.trials >= state.limit:
            state.ending = "all trials are done"
        return bool(state.ending)

    def interrupted(*_: object) -> None:
        state.ending = "interrupted"
        signal.signal(signal.SIGINT, before)  # the next one is not waited for

    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield stopped
        return
    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """Send what MetaSchedule and the tuner log to a file, and nowhere else."""
    handler = logging.handlers.RotatingFileHandler(file, maxBytes=20_000_000, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("tvm.s_tir.meta_schedule", "tvm_na.tune")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        handler.close()
