"""What a report of a folder of tuning records shows: its tasks, where they stand, how they got there."""

from __future__ import annotations

import logging
import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tvm_na.problems.registry import Problem, problem_from_json
from tvm_na.records.files import MALFORMED, in_short
from tvm_na.records.maintain import target_of
from tvm_na.records.meta import read_meta
from tvm_na.records.read import records_in
from tvm_na.records.record import Record
from tvm_na.targets.target import NATarget
from tvm_na.tune.tasks import formulations_of
from tvm_na.tune.trial_log import TRIAL_LOG, Trial, point, trials_in

_log = logging.getLogger(__name__)

#: Trials that a formulation must have a prediction for, for their order to say anything.
MIN_PREDICTED = 8
#: The part of a formulation's trials that counts as its best.
BEST_SHARE = 0.2


class Predictions(NamedTuple):
    """What the cost model said of one formulation's trials before they were measured, and what came out.

    Attributes:
        predicted: Its scores, higher is better.
        measured: The formulation's best time over the trial's: 1 is its best.
    """

    predicted: tuple[float, ...]
    measured: tuple[float, ...]


@dataclass(frozen=True)
class Task:
    """A problem on a number of threads, with a batch.

    Attributes:
        name: The problem in a few words: what not all problems of the report have, and the batch if it is not 1.
        records: Its records, in the order in which they were made.
        trials: Its trials, in order; none without a journal.
        default: Seconds of the default schedule; None if it was not measured.
        batch: Samples of a call.
    """

    problem: Problem
    threads: int
    name: str
    records: tuple[Record, ...] = field(repr=False)
    trials: tuple[Trial, ...] = field(repr=False)
    default: float | None = None
    batch: int = 1

    @property
    def best(self) -> Record | None:
        """The fastest record, of all formulations; None if there is none."""
        return min(self.records, key=lambda record: record.seconds, default=None)

    @property
    def gain(self) -> float | None:
        """The default's time over the best one's."""
        return self.default / self.best.seconds if self.default and self.best else None

    @property
    def failed(self) -> int:
        """Trials that failed."""
        return sum(trial.failure is not None for trial in self.trials)

    @property
    def seconds(self) -> list[float]:
        """Seconds of every trial in order, NaN for one that failed; without a journal, of every record."""
        if self.trials:
            return [math.nan if trial.seconds is None else trial.seconds for trial in self.trials]
        return [record.seconds for record in self.records]

    @property
    def best_so_far(self) -> list[float]:
        """The shortest time until each trial, that one included; NaN before the first that was measured."""
        return [float(best) for best in np.fmin.accumulate(np.asarray(self.seconds, "float64"))]

    @cached_property
    def predictions(self) -> tuple[Predictions, ...]:
        """Predicted and measured, by formulation; only formulations with a measured trial that was predicted."""
        found = []
        for formulation in dict.fromkeys(trial.formulation for trial in self.trials):
            measured = [t for t in self.trials if t.formulation == formulation and t.seconds is not None]
            best = min((t.seconds for t in measured if t.seconds is not None), default=math.nan)
            pairs = [(t.predicted, best / t.seconds) for t in measured if t.predicted is not None and t.seconds]
            if pairs:
                predicted, relative = zip(*pairs, strict=True)
                found.append(Predictions(predicted, relative))
        return tuple(found)


@dataclass(frozen=True)
class ModelQuality:
    """How well the cost model ordered the trials of a task.

    Attributes:
        trials: Trials with a prediction, of formulations that have at least :data:`MIN_PREDICTED`.
        correlation: Spearman's rank correlation within a formulation, the mean weighted by trials.
        found, of: How many of each formulation's best were among as many of the best predicted, all together.
    """

    trials: int
    correlation: float | None
    found: int
    of: int


def quality_of(task: Task) -> ModelQuality:
    """How well the cost model ordered the trials of ``task``."""
    enough = [p for p in task.predictions if len(p.predicted) >= MIN_PREDICTED]
    ranked = [(rho, len(p.predicted)) for p in enough if (rho := spearman(*p)) is not None]
    weight = sum(count for _, count in ranked)
    found = [found_of_best(*p, BEST_SHARE) for p in enough]
    return ModelQuality(
        sum(len(p.predicted) for p in enough),
        sum(rho * count for rho, count in ranked) / weight if weight else None,
        sum(hits for hits, _ in found),
        sum(count for _, count in found),
    )


@dataclass(frozen=True)
class ReportData:
    """Everything that is known of a folder.

    Attributes:
        tasks: In the order in which they were first seen; those of one problem together, fewer threads first.
        common: What all problems have in common, left out of the tasks' names.
    """

    folder: Path
    target: NATarget
    tasks: tuple[Task, ...]
    common: str
    sessions: tuple[Mapping[str, Any], ...]
    has_journal: bool

    @property
    def failures(self) -> Counter[str]:
        """Failed trials by reason."""
        return Counter(trial.failure for task in self.tasks for trial in task.trials if trial.failure is not None)

    @property
    def trials(self) -> int:
        """Trials of all tasks."""
        return sum(len(task.trials) for task in self.tasks)

    @property
    def cpus(self) -> tuple[str, ...]:
        """The CPUs on which its sessions ran, or compact records were measured."""
        compact = [record for task in self.tasks for record in task.records if record.is_compact]
        named = [session.get("cpu") for session in self.sessions] + [record.machine.cpu for record in compact]
        return tuple(dict.fromkeys(str(cpu or "an unknown CPU") for cpu in named))

    @property
    def gain(self) -> float | None:
        """The geometric mean of the gains over the default, of the tasks that have one."""
        gains = [task.gain for task in self.tasks if task.gain is not None]
        return statistics.geometric_mean(gains) if gains else None


def load(folder: Path) -> ReportData:
    """What is to be shown of a folder of records (imports TVM, to know each problem's default schedule).

    Raises:
        ValueError: there are neither records nor trials in it, or its meta.json is damaged.
    """
    meta = read_meta(folder)
    records, trials = records_in(folder), _trials(folder)
    if not (records or (trials and meta is not None)):
        raise ValueError(f"records: required a folder with tuning records, got {folder} without any")
    target = target_of(folder)
    problems = list(dict.fromkeys([*(problem for problem, _ in trials), *(r.problem for r in records)]))
    names, common = short_names(problems)
    tasks = []
    for problem, name in zip(problems, names, strict=True):
        own_trials = [trial for p, trial in trials if p == problem]
        own_records = [record for record in records if record.problem == problem]
        default = default_point(problem, target) if own_trials else None
        conditions = {(t.threads, t.batch) for t in own_trials} | {(r.threads, r.batch) for r in own_records}
        for threads, batch in sorted(conditions):
            tried = tuple(t for t in own_trials if (t.threads, t.batch) == (threads, batch))
            measured = tuple(r for r in own_records if (r.threads, r.batch) == (threads, batch))
            seconds = [t.seconds for t in tried if t.seconds is not None and t.point == default]
            seconds += [record.default_seconds for record in measured if record.default_seconds is not None]
            full = name if batch == 1 else f"{name}, batch {batch}"
            tasks.append(Task(problem, threads, full, measured, tried, min(seconds, default=None), batch))
    sessions = () if meta is None else tuple(meta.sessions)
    return ReportData(folder, target, tuple(tasks), common, sessions, (folder / TRIAL_LOG).exists())


def _trials(folder: Path) -> list[tuple[Problem, Trial]]:
    """The trials of the journal with their problems; those of unknown ones are skipped with a warning."""
    problems: dict[str, Problem] = {}
    found = []
    for trial in trials_in(folder):
        try:
            if trial.problem not in problems:
                problems[trial.problem] = problem_from_json(trial.problem)
        except MALFORMED as damage:
            _log.warning("%s: skipped the trial of %s, %s", folder / TRIAL_LOG, trial.time, in_short(damage))
        else:
            found.append((problems[trial.problem], trial))
    return found


def default_point(problem: Problem, target: NATarget) -> tuple[object, ...] | None:
    """The point that a problem gets without records; None if no space serves it."""
    try:
        formulation = formulations_of(problem, target)[0]
    except ValueError:
        return None
    parameters = {parameter.name: parameter.value for parameter in formulation.default.parameters}
    return point(formulation.text, formulation.default.sketch, parameters)


def short_names(problems: Sequence[Problem]) -> tuple[list[str], str]:
    """A name for each problem without what all of them have in common, and that."""
    parts = [_parts(problem) for problem in problems]
    if len(parts) < 2:
        return [str(problem) for problem in problems], ""
    common = [part for part in parts[0] if all(part in others for others in parts)]
    names = [", ".join(part for part in own if part not in common) for own in parts]
    return [name or str(problem) for name, problem in zip(names, problems, strict=True)], ", ".join(common)


def _parts(problem: Problem) -> list[str]:
    """The parts of a problem's text, each of which says one thing."""
    return [
        part
        for part in re.findall(r"(?:heads|kv|dim|k|stride|dil|causal|channels|pad) \S+|\S+", str(problem))
        if part != "of"
    ]


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 0, the smallest first; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(np.asarray(values, "float64"), return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[inverse]


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation of as many values, from -1 to 1; None where one side has no two of them."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def found_of_best(predicted: Sequence[float], measured: Sequence[float], share: float) -> tuple[int, int]:
    """How many of the best by measurement are among as many of the best by prediction, and how many that are.

    Higher is better. A ``share`` in (0, 1] counts as the best; at least one does, if there is any.
    """
    count = min(len(measured), max(1, math.ceil(share * len(measured))))

    def best(values: Sequence[float]) -> set[int]:
        return set(sorted(range(len(values)), key=lambda i: -values[i])[:count])

    return len(best(predicted) & best(measured)), count
