"""Where the tuner, MetaSchedule and the workers write what they have to say, in a folder of records."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

LOG = "tune.log"
WORKERS_LOG = "workers.log"


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log that goes without the lines for which there is no room.

    TVM logs where no exception may come through, and a traceback for each line helps nobody. Records go to the same
    folder: they end the run, with a sentence.
    """

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """Send what MetaSchedule and the tuner log to a file, and nowhere else; OSError where it cannot be opened."""
    handler = _LogFile(file, maxBytes=20_000_000, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    with ExitStack() as stack:
        stack.callback(handler.close)
        for logger in map(logging.getLogger, ("tvm.s_tir.meta_schedule", "tvm_na.tune")):
            logger.addHandler(handler)
            stack.callback(logger.removeHandler, handler)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.INFO)
            stack.callback(setattr, logger, "propagate", logger.propagate)
            logger.propagate = False
        yield
