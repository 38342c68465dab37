"""Measuring tuning records again: do they still apply, are their numbers right, are they as fast as they were."""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tvm_na import settings
from tvm_na.jit import build
from tvm_na.measure.devices import LocalDevice
from tvm_na.measure.timing import require_extra
from tvm_na.measure.worker_pool import Last
from tvm_na.records.record import Record, best_of
from tvm_na.records.rejections import InapplicableError
from tvm_na.records.replay import change_since
from tvm_na.records.select import Selection
from tvm_na.targets.target import NATarget, parse_target


@dataclass(frozen=True)
class Verified:
    """What became of a record: the median of its repeats now, or why it could not be measured.

    Attributes:
        change: Why its kernel is not the one that was recorded; None where it is.
    """

    record: Record
    seconds: float | None
    failure: str = ""
    change: str | None = None

    def is_bad(self, threshold: float) -> bool:
        """Whether it failed, is of another kernel, or takes more than ``threshold`` times as long as was recorded."""
        return self.seconds is None or self.change is not None or self.seconds > threshold * self.record.seconds


def draw(records: Sequence[Record], target: NATarget, count: int, seed: int) -> tuple[list[Record], int]:
    """``count`` of the fastest records of each problem and number of threads, and how many need too many cores.

    Raises:
        ValueError: a record is for another target than ``target``, or this machine cannot run its kernels: its times
            mean nothing here.
    """
    check_measurable(records, target)
    best = best_of(records)
    on_gpu = target.kind == "cuda"
    possible = [record for record in best if on_gpu or record.threads <= settings.available_cores()]
    drawn = random.Random(seed).sample(possible, min(count, len(possible)))
    return sorted(drawn, key=lambda record: (str(record.problem), record.threads)), len(best) - len(possible)


def check_measurable(records: Sequence[Record], target: NATarget) -> LocalDevice:
    """The device of this machine on which records for ``target`` are measured.

    Raises:
        ValueError: a record is for another target, or this machine cannot run its kernels.
        RuntimeError: a package that measuring needs is missing.
    """
    require_extra("measuring", "tune", "psutil")
    device = LocalDevice.of(target)
    foreign = sorted({record.target for record in records} - {target.name})
    if foreign:
        raise ValueError(f"records: required records of {target.name} to measure here, got {', '.join(foreign)}")
    return device


def verify(record: Record) -> Verified:
    """Build the kernel of a record, check its numbers against the reference in float64, and time it.

    Raises:
        RuntimeError: a package or the C++ compiler is missing, or the cache cannot be written.
    """
    from tvm_na.measure.local import Conditions, Kernel, run_kernel

    target = parse_target(record.target)
    selection = Selection.of(record, "to be verified")
    try:
        kernel = build.kernel_with(selection, record.problem, target)
    except InapplicableError as error:
        return Verified(record, None, f"does not apply: {error}")
    conditions = LocalDevice.of(target).conditions(Conditions(record.threads))
    with running_on(record.threads):
        measured = run_kernel(
            Kernel(kernel.file, record.problem, batch=record.batch, formulation=record.formulation), conditions
        )
    if isinstance(measured, Last):  # this process has lost its GPU by that; what follows will fail, and say so
        measured = measured.value
    if measured.failure is not None:
        return Verified(record, None, f"{measured.failure}: {measured.message}")
    return Verified(record, statistics.median(measured.run_secs), change=change_since(record))


@contextmanager
def running_on(count: int) -> Iterator[None]:
    """Let kernels have ``count`` threads."""
    before = os.environ.get("TVM_NA_NUM_THREADS")
    os.environ["TVM_NA_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TVM_NA_NUM_THREADS"]
        else:
            os.environ["TVM_NA_NUM_THREADS"] = before
