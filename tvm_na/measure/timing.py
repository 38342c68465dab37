"""Timing to be trusted: candidates are interleaved, every sample is kept, wrong numbers get no speedup.

The machine's speed changes, and more than candidates differ. Samples that are neighbors meet the same speed.
"""

from __future__ import annotations

import datetime
import functools
import importlib.util
import math
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from tvm_na.measure.clocks import Clock, CpuClock


def interleaved(
    candidates: Sequence[Callable[[], Sequence[float]]],
    enough: Callable[[Sequence[float]], bool],
    rotating: bool = False,
) -> list[tuple[float, ...]]:
    """The samples of candidates, taken in turns.

    Args:
        candidates: Each measures itself once when it is called, and gives one sample or several.
        enough: Whether the samples of the first candidate so far are enough; asked before every round.
        rotating: Whether every round begins with another candidate.
    """
    samples: list[list[float]] = [[] for _ in candidates]
    numbers, first = list(range(len(candidates))), 0
    while not enough(samples[0]):
        for number in numbers[first:] + numbers[:first]:
            samples[number] += candidates[number]()
        first = (first + 1) % len(candidates) if rotating else 0
    return [tuple(found) for found in samples]


@dataclass(frozen=True)
class Timing:
    """What :func:`measure` saw of one candidate.

    Attributes:
        samples: Seconds per call, one sample per round, in the order they were taken.
        calls: Calls that each sample is the mean of.
    """

    samples: tuple[float, ...]
    calls: int = 1

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("samples: required at least one, got none")

    @property
    def median(self) -> float:
        """Median of the samples, in seconds."""
        return statistics.median(self.samples)

    @property
    def minimum(self) -> float:
        """Shortest sample, in seconds."""
        return min(self.samples)

    @property
    def maximum(self) -> float:
        """Longest sample, in seconds."""
        return max(self.samples)

    @property
    def spread(self) -> float:
        """Interquartile range of the samples, in seconds; 0 for a single sample."""
        if len(self.samples) < 2:
            return 0.0
        lower, _, upper = statistics.quantiles(self.samples, n=4, method="inclusive")
        return upper - lower

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the statistics and every sample, in seconds."""
        names = ("median", "minimum", "maximum", "spread")
        return {**{name: getattr(self, name) for name in names}, "calls": self.calls, "samples": list(self.samples)}


def measure(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    sample_time: float = 0.02,
    warmup_time: float = 0.1,
    clock: Clock | None = None,
) -> dict[str, Timing]:
    """Time functions against each other.

    Each is warmed up; then in every round each is timed once, interleaved, beginning with another one every round, so
    that what the machine does meanwhile meets all of them. A sample is the mean of as many calls in a row as fill
    ``sample_time``, after one call that is not timed and brings back what the others evicted.

    Args:
        functions: Candidates by name.
        rounds: Samples of each.
        sample_time: Seconds that a sample should last at least.
        warmup_time: Seconds of calls before the first sample (at least two calls).
        clock: What times them; the CPU's if None, for functions that return when their work is done.

    Returns:
        A :class:`Timing` per name, in the order of ``functions``.

    Raises:
        ValueError: There is no function, ``rounds`` is below 1 or a time is negative.
    """
    if not functions:
        raise ValueError("functions: required at least one, got none")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds: required an integer >= 1, got {rounds!r}")
    for name, seconds in (("sample_time", sample_time), ("warmup_time", warmup_time)):
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"{name}: required seconds >= 0, got {seconds}")
    watch = CpuClock() if clock is None else clock
    calls = {name: _calls_per_sample(f, watch, sample_time, warmup_time) for name, f in functions.items()}

    def sample(name: str) -> list[float]:
        functions[name]()
        return [watch.seconds(functions[name], calls[name])]

    candidates = [functools.partial(sample, name) for name in functions]
    samples = interleaved(candidates, lambda found: len(found) >= rounds, rotating=True)
    return {name: Timing(found, calls[name]) for name, found in zip(functions, samples, strict=True)}


def _calls_per_sample(function: Callable[[], object], clock: Clock, sample_time: float, warmup_time: float) -> int:
    """Warm ``function`` up; the calls that fill ``sample_time``, after the fastest of the warm-up."""
    function()  # compilers, allocators and thread pools start here
    fastest, spent = math.inf, 0.0
    while not spent or spent < warmup_time:
        seconds = max(clock.seconds(function, 1), 1e-9)
        fastest, spent = min(fastest, seconds), spent + seconds
    return max(1, math.ceil(sample_time / fastest))


def interleaved_ratio(numerator: Timing, denominator: Timing) -> float:
    """The median of the ratios of samples of the same round of :func:`measure`.

    It is steadier than a ratio of medians: neighboring samples meet the same speed of the machine.

    Raises:
        ValueError: they are not of the same rounds.
    """
    if len(numerator.samples) != len(denominator.samples):
        had = f"{len(numerator.samples)} and {len(denominator.samples)}"
        raise ValueError(f"numerator, denominator: required as many samples, got {had}")
    return statistics.median(a / b for a, b in zip(numerator.samples, denominator.samples, strict=True))


def speedup(candidate: Timing, baseline: Timing, error: float, budget: float) -> float | None:
    """How many times faster the candidate is than the baseline, by medians; None for an error beyond the budget."""
    return baseline.median / candidate.median if error <= budget else None


def format_speedup(value: float | None) -> str:
    """``"3.1x"``, or ``"wrong numbers"`` for None."""
    return "wrong numbers" if value is None else f"{value:.2f}x"


def format_time(seconds: float) -> str:
    """Seconds as milliseconds with three digits, such as ``"1.53 ms"``."""
    milliseconds = seconds * 1e3
    digits = max(0, 2 - math.floor(math.log10(milliseconds))) if milliseconds > 0 else 2
    return f"{milliseconds:.{min(digits, 4)}f} ms"


def version_of(distribution: str) -> str:
    """The version of an installed distribution, without importing it; ``"not installed"`` for none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def require_extra(purpose: str, extra: str, *packages: str) -> None:
    """RuntimeError if a package of an extra of tvm_na is missing; imports none of them."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        raise RuntimeError(f"{purpose}: required the packages of the extra tvm_na[{extra}], missing {names}")


def versions() -> dict[str, str]:
    """Versions of Python, this package and what it computes with; imports none of them."""
    from tvm_na import __version__

    names = {"torch": "torch", "tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi"}
    return {
        "python": sys.version.split()[0],
        "tvm_na": __version__,
        **{name: version_of(distribution) for name, distribution in names.items()},
    }


def machine() -> dict[str, Any]:
    """What a result must be read with: device, CPU, cores, threads, versions and date."""
    import torch

    from tvm_na import settings
    from tvm_na.targets.target import cpu_name, parse_target

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": "cpu",
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "target": parse_target(settings.target_name()).name,
        "cores": settings.available_cores(),
        "torch_threads": torch.get_num_threads(),
        "tvm_na_threads": settings.num_threads(),
        "versions": versions(),
    }
