"""The kernels of one problem of a package: measured beside its default kernel, and the best of them then in turns."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from tvm_na.measure.local import Kernel, LocalMeasurer, Measured, median
from tvm_na.packages.package import Package, PackagedKernel, RefusedPoint
from tvm_na.problems.registry import Problem
from tvm_na.records.write import now
from tvm_na.tune.state import FormulationState, ProblemState, TuneState
from tvm_na.tune.tasks import label
from tvm_na.tune.trial_log import Trial, TrialLog, point

_log = logging.getLogger("tvm_na.tune")

#: A kernel, and the seconds of every repeat.
Times: TypeAlias = tuple[PackagedKernel, Sequence[float]]
Stopped: TypeAlias = Callable[[], bool]


@dataclass(frozen=True)
class Session:
    """What measuring a package works with.

    Attributes:
        package: The kernels.
        state: Where it stands.
        log: The trial log.
        measurer: What measures.
        number: The session's number in ``meta.json``.
        observe: To be called after each kernel.
        libraries: A folder for uncompressed libraries.
    """

    package: Package
    state: TuneState
    log: TrialLog
    measurer: LocalMeasurer
    number: int
    observe: Callable[[], None]
    libraries: Path


class ProblemRun:
    """One problem in a session.

    Attributes:
        is_new: Whether anything was measured of it in this session.
    """

    def __init__(self, session: Session, problem: Problem, batch: int, trials: Sequence[Trial]) -> None:
        """``trials`` are those of former sessions, of the problem and with the batch."""
        package = session.package
        self._session, self._problem, self._batch, self.is_new = session, problem, batch, False
        self._kernels = {_name(kernel): kernel for kernel in package.kernels if kernel.problem == problem}
        self._seconds = {trial.point: trial.seconds for trial in trials}
        self._nominal = next((t.reference for t in reversed(trials) if t.reference is not None), None)
        texts = [workload.formulation for workload in package.workloads if workload.problem == problem]
        self._formulations = {text: FormulationState(text, label(text, texts)) for text in texts}
        self._row = ProblemState(problem, 1.0, list(self._formulations.values()), batch=batch)
        session.state.problems.append(self._row)
        for trial in trials:
            self._count(trial)
        for refused in package.refused:
            if refused.problem == problem and _name(refused) not in self._seconds:
                self._note(refused, Measured((), refused.failure, refused.reason))

    def measure(self, seed: int, stopped: Stopped) -> None:
        """Measure each kernel that was not before, in any order but the default first, until ``stopped()``."""
        todo = [kernel for name, kernel in self._kernels.items() if name not in self._seconds]
        if not todo or stopped():
            return
        random.Random(seed).shuffle(todo)
        todo.sort(key=lambda kernel: not kernel.default)
        default = self._session.package.default_of(self._problem)
        reference = None if default is None else self._reference(default, stopped)
        kernels = [replace(self._kernel(kernel), reference=reference) for kernel in todo]

        def done(index: int, measured: Measured) -> None:
            if measured.failure != "stopped":
                self.is_new = True
                self._note(todo[index], measured)

        self._session.measurer.measure(kernels, done, stopped)

    def best(self, count: int) -> list[PackagedKernel]:
        """The fastest kernels so far."""
        known = {name: s for name, s in self._seconds.items() if s is not None and name in self._kernels}
        return [self._kernels[name] for name in sorted(known, key=known.__getitem__)[:count]]

    def once(self, count: int) -> list[Times]:
        """The fastest kernels with the times that each was measured with."""
        return [(kernel, [self._seconds[_name(kernel)] or 0.0]) for kernel in self.best(count)]

    def in_turns(self, count: int, rounds: int, stopped: Stopped) -> list[Times] | None:
        """The fastest kernels measured again, in turns, the fastest first; None where that did not come to its end."""
        best, default = self.best(count), self._session.package.default_of(self._problem)
        first = [] if default is None or self._seconds.get(_name(default)) is None else [default]
        taking_part = list(dict.fromkeys([*map(_name, first), *map(_name, best)]))
        kernels = [self._kernel(self._kernels[name]) for name in taking_part]
        found = self._session.measurer.in_turns(kernels, rounds, stopped)
        if not isinstance(found, list):
            if found.failure != "stopped":
                _log.warning(
                    "%s: the best were not measured in turns: %s %s", self._problem, found.failure, found.message
                )
            return None
        times = dict(zip(taking_part, found, strict=True))
        reference = times[taking_part[0]] if first else ()
        converted = [(kernel, self._converted(times[_name(kernel)], reference)) for kernel in best]
        return sorted(converted, key=lambda pair: median(pair[1]) or 0.0)

    def _converted(self, seconds: tuple[float, ...], reference: tuple[float, ...]) -> tuple[float, ...]:
        """Seconds at that speed of the machine at which the default kernel takes its nominal time."""
        return seconds if self._nominal is None else Measured(seconds, reference_secs=reference).beside(self._nominal)

    def _kernel(self, kernel: PackagedKernel) -> Kernel:
        file = self._session.package.library(kernel, self._session.libraries)
        formulation = kernel.point.formulation
        return Kernel(file, self._problem, None, self._batch, formulation, formulation)

    def _reference(self, default: PackagedKernel, stopped: Stopped) -> Path | None:
        """The library of the default kernel, whose time is known then; None where it does not work."""
        kernel = self._kernel(default)
        if self._nominal is None:
            found: list[Measured] = []
            self._session.measurer.measure([kernel], lambda _, measured: found.append(measured), stopped)
            self._nominal = median(found[0].run_secs)
            if found[0].failure not in (None, "stopped"):
                why = (found[0].failure, found[0].message)
                _log.warning("%s: measured without a reference, its default kernel fails: %s\n%s", self._problem, *why)
        return None if self._nominal is None else kernel.file

    def _note(self, what: PackagedKernel | RefusedPoint, measured: Measured) -> None:
        """Keep what became of a point: in the log first."""
        refused = isinstance(what, RefusedPoint)
        seconds = median(measured.run_secs if self._nominal is None else measured.beside(self._nominal))
        trial = Trial(
            time=now(),
            session=self._session.number,
            problem=self._problem.to_json(),
            formulation=what.point.formulation,
            threads=1,
            trial=self._row.trials,
            predicted=None,
            seconds=seconds,
            failure=measured.failure,
            choices=dict(what.point.parameters),
            structure=what.point.sketch,
            reference=None if refused else self._nominal,
            batch=self._batch,
            reason=measured.message if refused else "",
        )
        self._session.log.write(trial)
        if measured.failure is not None and not refused:
            _log.warning("%s: %s | %s\n%s", measured.failure, self._problem, what.point, measured.message)
        self._seconds[trial.point] = seconds
        if not refused:
            state = self._session.state
            state.measured, state.first = state.measured + 1, state.elapsed if state.first is None else state.first
        self._count(trial)
        self._session.observe()

    def _count(self, trial: Trial) -> None:
        formulation = self._formulations.get(trial.formulation, self._row.formulations[0])
        formulation.trials += 1
        if trial.seconds is None:
            self._row.failures[str(trial.failure)] += 1
            return
        formulation.best = min(trial.seconds, formulation.best or trial.seconds)
        kernel = self._kernels.get(trial.point)
        if kernel is not None and kernel.default:
            formulation.default = trial.seconds


def _name(what: PackagedKernel | RefusedPoint) -> tuple[object, ...]:
    """A point as trials have it."""
    return point(what.point.formulation, what.point.sketch, what.point.parameters)
