"""Kernels of the package by themselves: whether all are right, and a first table of times."""

from __future__ import annotations

import functools
import statistics
from typing import Any

from benchmarks.gpu import cases
from benchmarks.gpu.estimated import estimated
from benchmarks.gpu.folder import RunFolder
from benchmarks.gpu.points import is_usable
from benchmarks.gpu.results import Results
from benchmarks.gpu.steps import Item
from benchmarks.gpu.worker import here
from tvm_na.measure.cuda import copies_for
from tvm_na.measure.timing import interleaved_ratio

#: No power of two, as strides of kernels are.
BATCH = 3
OURS, COPY = "tvm_na", "copy"
_FEW = 3  # samples of what takes long


def all_items(folder: RunFolder, results: Results) -> list[Item]:
    """Every kernel, those of a problem one after the other, the largest problems last."""
    kernels = enumerate(folder.package.kernels)
    ordered = sorted(kernels, key=lambda one: (one[1].problem.useful_flops, one[1].problem.to_json()))
    return [Item(folder.name(number), (number,)) for number, kernel in ordered]


def right(number: int) -> dict[str, Any]:
    """Compare a kernel's numbers."""
    cases.check(number, BATCH)
    return {}


def timed_items(folder: RunFolder, results: Results) -> list[Item]:
    """The default kernels of what is timed, the largest last; of what is searched also with a batch of one."""
    many = [(folder.default(problem), None) for problem in folder.plan.timed]
    one = [(folder.default(problem), 1) for problem in folder.plan.searched]
    ordered = sorted((*many, *one), key=lambda pair: folder.kernel(pair[0]).problem.useful_flops)
    return [
        Item(folder.name(number) + (f"; batch {batch}" if batch else ""), (number, batch))
        for number, batch in ordered
        if is_usable(folder, results, number)
    ]


def timed(number: int, batch: int | None) -> dict[str, Any]:
    """A kernel beside a copy of as many bytes, and what the static model estimated; with a batch of one as CUDA graphs,
    as launching takes longer."""
    place = here()
    problem = place.folder.kernel(number).problem
    large = cases.is_large(problem)
    batch = 1 if large else batch or place.device.batch
    _, call = cases.checked_sets(number, batch)
    about = {"problem": str(problem), "kernel": number, "batch": batch, "bytes": problem.bytes * batch}
    about["useful_flops"] = problem.useful_flops * batch
    about["estimated"] = estimated(place.folder, problem, batch, _device())
    if large:
        clock = place.device.clock()
        samples = [clock.seconds(call, 1) for _ in range(_FEW)]
        return {**about, OURS: {"samples": samples}, **_over_estimate(about, statistics.median(samples))}
    replayed = copies_for(problem.bytes) if batch == 1 else 0
    timings = cases.time_of({OURS: call, COPY: cases.copy_like(problem, batch)}, replayed=replayed)
    ratio = interleaved_ratio(timings[OURS], timings[COPY])
    told = {name: timing.to_dict() for name, timing in timings.items()}
    return {**about, **told, "ours_over_copy": ratio, **_over_estimate(about, timings[OURS].median)}


@functools.cache
def _device() -> str:
    return str(here().device.about().get("device", ""))


def _over_estimate(about: dict[str, Any], seconds: float) -> dict[str, Any]:
    """How many times the estimated time was measured, where there is an estimate."""
    return {"ours_over_estimated": seconds / about["estimated"]["seconds"]} if about["estimated"] else {}
