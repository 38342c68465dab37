"""The search with its cost model against random points: ten problems, as many trials each, the same seeds.

Both draw from the same spaces (the default formulation, all sketches), start without the default point, and build
and measure alike. What each found best is then measured again, in turns with the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_na import fingerprint
from tvm_na.jit import build, runtime
from tvm_na.measure.timing import Timing, ratio_in_turns
from tvm_na.measure.timing import measure as measure_in_turns
from tvm_na.problems.attention import NAProblem
from tvm_na.records.index import ref_of
from tvm_na.records.read import Record, read_meta, records_in
from tvm_na.records.select import Chosen
from tvm_na.reference.accuracy import ERROR_BUDGET
from tvm_na.reference.cases import case_of
from tvm_na.targets.target import NATarget
from tvm_na.tune.run import tune
from tvm_na.tune.search import Strategy
from tvm_na.tune.state import TuneState
from tvm_na.tune.tasks import TuneTask
from tvm_na.tune.trial_log import Trial, trials_in

MODEL, RANDOM, DEFAULT = "xgboost", "random", "default"
STRATEGIES: dict[str, Strategy] = {MODEL: "evolutionary", RANDOM: "random"}
_FINISHED = ("all trials are done", "nothing is left to try")


@dataclass(frozen=True)
class SearchTask:
    """A problem that is searched, and the seed of both searches."""

    name: str
    problem: NAProblem
    seed: int


def _stage(size: int, heads: int, dilation: int = 1) -> NAProblem:
    return NAProblem.make((size, size), 7, heads, 32, dilation=dilation, bias=True)


TASKS = (
    SearchTask("NAT-Tiny stage 1", _stage(56, 2), 1),
    SearchTask("NAT-Tiny stage 2", _stage(28, 4), 2),
    SearchTask("NAT-Tiny stage 3", _stage(14, 8), 3),
    SearchTask("NAT-Tiny stage 4", _stage(7, 16), 4),
    SearchTask("NAT-Small stage 1", _stage(56, 3), 5),
    SearchTask("NAT-Small stage 2", _stage(28, 6), 6),
    SearchTask("NAT-Small stage 3", _stage(14, 12), 7),
    SearchTask("NAT-Tiny stage 1, dilation 8", _stage(56, 2, 8), 8),
    SearchTask("NAT-Tiny stage 2, dilation 4", _stage(28, 4, 4), 9),
    SearchTask("NAT-Tiny stage 3, dilation 2", _stage(14, 8, 2), 10),
)


@dataclass(frozen=True)
class Found:
    """What one search found.

    Attributes:
        best: Its fastest record.
        trials: Its trials, in order.
        sessions: In how many runs they were made.
    """

    best: Record
    trials: tuple[Trial, ...]
    sessions: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        seconds = [trial.seconds for trial in self.trials]
        return {
            "trials": len(seconds),
            "failed": seconds.count(None),
            "sessions": self.sessions,
            "digest": self.best.digest,
            "recorded_seconds": self.best.seconds,
            "seconds_of_trials": seconds,
        }


@dataclass(frozen=True)
class Outcome:
    """Both searches of a task.

    Attributes:
        task: The task.
        found: By strategy.
        timings: What each found best, and the default schedule, measured in turns.
    """

    task: SearchTask
    found: dict[str, Found]
    timings: dict[str, Timing]

    @property
    def advantage(self) -> float:
        """The time of random's best over that of the model's, round by round; 1 for one schedule."""
        if self.found[MODEL].best.digest == self.found[RANDOM].best.digest:
            return 1.0
        return ratio_in_turns(self.timings[RANDOM], self.timings[MODEL])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "task": self.task.name,
            "problem": str(self.task.problem),
            "seed": self.task.seed,
            "found": {name: found.to_dict() for name, found in self.found.items()},
            "timings": {name: timing.to_dict() for name, timing in self.timings.items()},
            "advantage": self.advantage,
        }


def wins(outcomes: list[Outcome]) -> int:
    """In how many tasks the search with the model found the better schedule."""
    return sum(outcome.advantage > 1 for outcome in outcomes)


def folder_of(task: SearchTask, strategy: str, trials: int, root: Path, target: NATarget) -> Path:
    """The records of one search; another one if an expression or a schedule was changed."""
    return root / fingerprint.context_digest(target)[:8] / f"{trials}-trials" / f"seed-{task.seed}-{strategy}"


def search(
    task: SearchTask, strategy: str, trials: int, root: Path, target: NATarget, observe: Callable[[TuneState], None]
) -> Found:
    """Search a task, or finish a search that was cut short, or take what a finished one found.

    Raises:
        KeyboardInterrupt: it was interrupted; what was measured is kept.
        RuntimeError: nothing could be measured.
    """
    folder = folder_of(task, strategy, trials, root, target)
    if not is_finished(folder, trials):
        result = tune(
            [TuneTask(task.problem)],
            target,
            trials=trials,
            seed=task.seed,
            output=folder,
            observer=observe,
            strategy=STRATEGIES[strategy],
            defaults_first=False,
            only_default_formulation=True,
        )
        if result.state.ending == "interrupted":
            raise KeyboardInterrupt
    records, meta = records_in(folder), read_meta(folder)
    if not records or meta is None:
        raise RuntimeError(f"{task.name}, {strategy}: nothing could be measured; see {folder}")
    best = min(records, key=lambda record: record.seconds)
    return Found(best, tuple(trials_in(folder)), len(meta.sessions))


def is_finished(folder: Path, trials: int) -> bool:
    """Whether a search has nothing left to do."""
    meta = read_meta(folder)
    if meta is None or not meta.sessions:
        return False
    return len(trials_in(folder)) >= trials or meta.sessions[-1].get("ending") in _FINISHED


def compare(task: SearchTask, found: dict[str, Found], target: NATarget, rounds: int) -> Outcome:
    """Measure what the searches found best in turns, and the default schedule beside them."""
    kernels = {
        name: build.kernel_with(Chosen("record", ref_of(f.best, shipped=False), "to be compared"), task.problem, target)
        for name, f in found.items()
    }
    kernels[DEFAULT] = build.kernel_for(task.problem, target, records="off")
    case = case_of(task.problem)
    runtime.use_threads(task.problem.useful_flops)
    calls = {}
    for name, kernel in kernels.items():
        outputs = case.outputs()
        calls[name] = functools.partial(kernel.function, *case.inputs, *outputs)
        calls[name]()
        case.check(outputs, ERROR_BUDGET[task.problem.dtype])
    timings = measure_in_turns(calls, rounds=rounds, sample_time=5e-4, warmup_time=0.05)
    return Outcome(task, found, timings)
