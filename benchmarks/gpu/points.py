"""All legal points of a problem beside its default kernel, then the best of them in turns."""

from __future__ import annotations

import random
import statistics
from typing import Any

from benchmarks.gpu import cases
from benchmarks.gpu.folder import RunFolder
from benchmarks.gpu.results import Results
from benchmarks.gpu.steps import Item
from benchmarks.gpu.worker import here
from tvm_na.problems.registry import Problem

RIGHT, POINTS, BEST = "right", "points", "best"
_PARTS, _ROUNDS, _SAMPLE = 3, 9, 5e-4
_MOST, _BEST_ROUNDS = 8, 101


def items(folder: RunFolder, results: Results) -> list[Item]:
    """Every kernel of what is searched, but for those that were wrong, in parts: some of each problem, then more.

    So where time is up, a fair part of each was measured. Inputs are drawn once for a part.
    """
    parts: list[list[Item]] = [[] for _ in range(_PARTS)]
    for problem in folder.plan.searched:
        default, *others = usable_kernels(folder, results, problem)
        random.Random(0).shuffle(others)
        for at, number in enumerate((default, *others)):
            parts[at * _PARTS // (1 + len(others))].append(Item(folder.name(number), (number, default)))
    return [item for part in parts for item in part]


def usable_kernels(folder: RunFolder, results: Results, problem: Problem) -> list[int]:
    """The kernels of a problem that :func:`is_usable`, the default first."""
    default = folder.default(problem)
    numbers = sorted(folder.kernels(problem), key=lambda number: number != default)
    return [number for number in numbers if is_usable(folder, results, number)]


def is_usable(folder: RunFolder, results: Results, number: int) -> bool:
    """Whether a kernel was not found to be wrong, to crash or to hang."""
    return not results.is_bad(RIGHT, folder.name(number))


def point(number: int, default: int) -> dict[str, Any]:
    """A kernel in turns with the default kernel of its problem: what counts is how many times its time it takes."""
    batch = here().device.batch
    calls = {str(n): cases.checked_sets(n, batch)[1] for n in dict.fromkeys((number, default))}
    timings = cases.time_of(calls, _ROUNDS, _SAMPLE)
    samples, reference = timings[str(number)].samples, timings[str(default)].samples
    ratio = statistics.median(own / other for own, other in zip(samples, reference, strict=True))
    return {"kernel": number, "batch": batch, "samples": samples, "reference": reference, "of_default": ratio}


def best_items(folder: RunFolder, results: Results) -> list[Item]:
    """The best of each problem, by what was measured so far."""
    measured = {found["kernel"]: found["of_default"] for found in results.values(POINTS).values()}
    found = []
    for problem in folder.plan.searched:
        first, *_ = usable = usable_kernels(folder, results, problem)
        seen = sorted((number for number in usable if number in measured), key=measured.__getitem__)
        found.append(Item(str(problem), (tuple(dict.fromkeys((first, *seen[:_MOST]))),)))
    return found


def best(numbers: tuple[int, ...]) -> dict[str, Any]:
    """Kernels of a problem, the default first, all in turns, and a copy beside them; told the fastest first."""
    place = here()
    batch = place.device.batch
    calls = {str(number): cases.checked_sets(number, batch)[1] for number in numbers}
    calls["copy"] = cases.copy_like(place.folder.kernel(numbers[0]).problem, batch)
    timings = cases.time_of(calls, _BEST_ROUNDS, _SAMPLE)
    ordered = sorted(numbers, key=lambda number: timings[str(number)].median)
    return {
        "batch": batch,
        "default": numbers[0],
        "kernels": [{"kernel": n, "what": place.folder.name(n), **timings[str(n)].to_dict()} for n in ordered],
        "copy": timings["copy"].to_dict(),
    }


def best_kernel(folder: RunFolder, results: Results, problem: Problem) -> int:
    """The number of the fastest kernel of a problem so far: the default where nothing is known."""
    found = results.values(BEST).get(str(problem))
    return found["kernels"][0]["kernel"] if found else folder.default(problem)
