"""Candidates measured in turns: those with right numbers, each with what it has time for."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tvm_na.measure.clocks import Clock, clock_of
from tvm_na.measure.timing import Timing, measure

#: What takes longer for a call is called once more, by itself, and is in no round.
SLOW = 2.0
_ROUNDS = 21  # of what is fast
_SAMPLE = {"cpu": 0.02, "cuda": 2e-3}

Call = Callable[[], object]
T = TypeVar("T")


@dataclass
class Candidates:
    """What is compared.

    Attributes:
        budget: The largest error that is right.
        calls: Of each candidate whose numbers are right.
        errors: Of each that ran.
        refused: Why the others get no time.
    """

    budget: float
    calls: dict[str, Call] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, prepare: Callable[[], tuple[Call, float]]) -> None:
        """Take a candidate, if ``prepare`` gives a call, with the error of its numbers, that is within the budget.

        What it raises is told by name: it may be the failure of a compiler, which has no type of its own, or of memory.
        """
        try:
            call, self.errors[name] = prepare()
        except Exception as error:
            self.refused[name] = in_short(error)
        else:
            if self.errors[name] <= self.budget:
                self.calls[name] = call
            else:
                self.refused[name] = f"wrong numbers: relative error {self.errors[name]:.1e}"
        gc.collect()

    def timed(
        self, seconds: float, device: str, baselines: Mapping[str, Call] | None = None, ours: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Time all in turns for about so many seconds, with baselines, and ``ours`` in most rounds; for JSON."""
        baselines = baselines or {}
        timings = in_turns({**self.calls, **baselines}, seconds, device, {*ours, *baselines})
        return {
            "candidates": {name: sampled(timing, self.errors.get(name)) for name, timing in timings.items()},
            "refused": self.refused,
        }


def in_short(error: BaseException) -> str:
    """An error in one line: the cause of what Dynamo or Inductor report."""
    error = error.__cause__ or error
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200].rstrip(": ")


def in_turns(
    calls: Mapping[str, Call], seconds: float, device: str, first: Collection[str] = (), clock: Clock | None = None
) -> dict[str, Timing]:
    """Time calls in turns: those that come ``first`` and as many of the fast ones as so many seconds hold 21 rounds of;
    then the rest, in fewer rounds.

    Those slower than :data:`SLOW`, than an eighth of the seconds, and than four of the fastest, have one sample.
    """
    clock, sample = clock or clock_of(device), _SAMPLE[device]
    once = {name: clock.seconds(call, 1) for name, call in calls.items()}
    # A sample is of whole calls, after one that is not timed.
    most = max(SLOW, seconds / 8, 4 * min(once.values(), default=0.0))
    costs = {n: t + max(t, sample) for n, t in once.items() if t <= most}
    near: dict[str, float] = {}
    for name in sorted(costs, key=lambda name: (name not in first, costs[name])):
        if name in first or _ROUNDS * (sum(near.values()) + costs[name]) <= seconds:
            near[name] = costs[name]
    found = {name: Timing((taken,)) for name, taken in once.items()}
    for group in (near, {name: cost for name, cost in costs.items() if name not in near}):
        if group:
            rounds = max(3, min(31, int(seconds / sum(group.values()))))
            timed = {name: calls[name] for name in calls if name in group}
            found |= measure(timed, rounds=rounds, sample_time=sample, warmup_time=5 * sample, clock=clock)
    return found


def sampled(timing: Timing, error: float | None = None) -> dict[str, Any]:
    """A timing for JSON: every sample in seconds, to four digits."""
    about: dict[str, Any] = {"samples": [rounded(s) for s in timing.samples], "calls": timing.calls}
    return about if error is None else {**about, "error": rounded(error)}


def rounded(number: float) -> float:
    """To four digits."""
    return float(f"{number:.4g}")


def with_limited_memory(run: Callable[[], T], share: float = 0.8) -> T:
    """Run with so much of the machine's free memory: what wants more fails, rather than all of the machine."""
    told = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    free = int(told["MemAvailable"].split()[0]) * 1024
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + int(free * share), hard))
    try:
        return run()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def names_of(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The candidates of some results, in the order in which they appear."""
    names: dict[str, None] = {}
    for one in found:
        names |= dict.fromkeys([*one["candidates"], *one["refused"]])
    return list(names)
