"""Where tuning stands: what has been measured of which formulation, what comes next, and where the time went.

Pure bookkeeping, without TVM: what is shown on the screen and what decides about the next batch.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tvm_na.problems.registry import Problem

#: A formulation whose best (its default, at first) is slower than this times the best known is not searched.
HOPELESS = 1.6
#: How a run ends that Ctrl-C ended.
INTERRUPTED = "interrupted"
#: How many formulations of a problem are searched at most.
KEPT = 4
# What searching a formulation is hoped to leave of its time, and the trials after which half of that hope is gone.
_HOPED, _HALF_LIFE = 0.6, 16
# Of a problem's promise, the part that is what its last rounds gained; the rest is what it might still gain.
_RECENT = 0.2


@contextmanager
def interruptible(interrupted: Callable[[], None]) -> Iterator[None]:
    """Have Ctrl-C call ``interrupted``, and do nothing else, as long as the block lasts; once: the next one ends it."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return

    def handle(*_: object) -> None:
        interrupted()
        signal.signal(signal.SIGINT, before)  # the next one is not waited for

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class FormulationState:
    """A formulation of a problem, as canonical JSON and in a few words.

    Attributes:
        trials: How many there were, failed ones too.
        default: Seconds of its default point, if it was measured.
        best: The fewest seconds measured.
        open: Whether it is searched.
    """

    text: str
    label: str
    trials: int = 0
    default: float | None = None
    best: float | None = None
    open: bool = True

    def hoped(self) -> float:
        """Seconds that a search might get to: little less than the best after many trials."""
        if self.best is None:
            return math.inf
        return self.best * (1.0 - (1.0 - _HOPED) * _HALF_LIFE / (_HALF_LIFE + self.trials))


@dataclass
class ProblemState:
    """A problem.

    Attributes:
        weight: How much its time counts.
        formulations: The default first.
        failures: Failed trials by reason.
        rounds: After each batch of candidates, the number of trials and the best time by then.
        batch: Samples of a call.
    """

    problem: Problem
    weight: float
    formulations: list[FormulationState]
    failures: Counter[str] = field(default_factory=Counter)
    rounds: list[tuple[int, float]] = field(default_factory=list)
    batch: int = 1

    @property
    def trials(self) -> int:
        """Trials of all its formulations."""
        return sum(f.trials for f in self.formulations)

    @property
    def leader(self) -> FormulationState | None:
        """The formulation with the best time; None before the first is measured."""
        measured = [f for f in self.formulations if f.best is not None]
        return min(measured, key=lambda f: f.best or math.inf, default=None)

    @property
    def best(self) -> float | None:
        """The best time of all formulations, in seconds."""
        return self.leader.best if self.leader else None

    @property
    def default(self) -> float | None:
        """The time of the schedule that is built without records, in seconds."""
        return self.formulations[0].default

    @property
    def improvement(self) -> float | None:
        """How many times faster the best is than the default."""
        return self.default / self.best if self.default and self.best else None

    def drop_hopeless(self) -> None:
        """Close the formulations that are too slow, and all but the most promising."""
        promising = sorted((f for f in self.formulations if f.best is not None), key=FormulationState.hoped)
        limit = HOPELESS * (self.best or math.inf)
        for formulation in self.formulations:
            hopeless = (formulation.best or math.inf) > limit
            formulation.open = formulation in promising[:KEPT] and not (hopeless and len(promising) > 1)
        if not any(f.open for f in self.formulations):  # nothing could be measured: its defaults fail
            self.formulations[0].open = True

    def next_formulation(self) -> int | None:
        """The open formulation with the most hope; None if all are closed."""
        hopes = [(f.hoped(), index) for index, f in enumerate(self.formulations) if f.open]
        return min(hopes)[1] if hopes else None

    def promise(self) -> float:
        """Weighted seconds that a trial may gain: what the last rounds gained, and what is left by experience.

        As in TVM's gradient-based scheduler: time falls about as one over the number of trials.
        """
        if self.best is None or len(self.rounds) < 2:
            return math.inf
        (before, slower), (after, faster) = self.rounds[max(0, len(self.rounds) - 4)], self.rounds[-1]
        recent = (slower - faster) / max(1, after - before)
        weight = self.weight / self.batch  # so that problems with unlike batches can be compared
        return weight * (_RECENT * recent + (1.0 - _RECENT) * faster / max(1, after))

    def note_round(self) -> None:
        """Remember where the problem stands after a batch."""
        if self.best is not None:
            self.rounds.append((self.trials, self.best))


@dataclass
class TuneState:
    """Everything.

    Attributes:
        limit: Trials at most, with those of former sessions.
        deadline: When to stop, on the clock of ``time.monotonic``.
        phase: What is being done.
        seconds: Seconds spent in each phase.
        started: When it began, on the same clock.
        first: Seconds to the first measurement.
        measured: Trials of this session.
        ending: Why it ended; "" while it runs.
    """

    problems: list[ProblemState]
    limit: int
    deadline: float = math.inf
    phase: str = "starting"
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    started: float = field(default_factory=time.monotonic)
    first: float | None = None
    measured: int = 0
    ending: str = ""

    @property
    def trials(self) -> int:
        """Trials of all problems, with those of former sessions."""
        return sum(p.trials for p in self.problems)

    def stopped(self) -> bool:
        """Whether to end, for whatever reason."""
        if not self.ending and time.monotonic() >= self.deadline:
            self.ending = "the time is up"
        if not self.ending and self.trials >= self.limit:
            self.ending = "all trials are done"
        return bool(self.ending)

    def interrupted(self) -> None:
        """Let Ctrl-C be such a reason."""
        self.ending = INTERRUPTED

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started

    def seconds_left(self) -> float | None:
        """Seconds until the trials or the time are used up, at the pace so far; None before there is one."""
        until = self.deadline - time.monotonic()
        searching = self.elapsed - (self.first or 0.0)
        if self.measured >= 4 and self.limit > self.trials:
            until = min(until, searching / self.measured * (self.limit - self.trials))
        return max(0.0, until) if math.isfinite(until) else None

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count the time of the block to ``phase``, and not to the one around it."""
        outer, begun = self.phase, time.monotonic()
        inner = sum(self.seconds.values())
        self.phase = phase
        try:
            yield
        finally:
            spent = time.monotonic() - begun
            self.seconds[phase] += spent - (sum(self.seconds.values()) - inner)
            self.phase = outer

    def next_problem(self) -> int | None:
        """The problem with the most promise; None if there is nothing left to search."""
        there = [(n, p) for n, p in enumerate(self.problems) if any(f.open for f in p.formulations)]
        return min(((-p.promise(), p.trials, n) for n, p in there), default=(0.0, 0, None))[2]
