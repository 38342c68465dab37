"""One run of the tuner: candidates are built, measured and, each as it ends, written to disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvm_na.measure.local import Kernel, Measured, Measurer, median
from tvm_na.problems.registry import Problem
from tvm_na.records.write import TuningDatabase, now
from tvm_na.schedules.base import Plan, Point
from tvm_na.targets.target import NATarget
from tvm_na.tune.builder import REJECTIONS, Builder, Built, Source, source_of
from tvm_na.tune.metaschedule import import_metaschedule
from tvm_na.tune.options import SearchOptions
from tvm_na.tune.state import FormulationState, ProblemState, TuneState
from tvm_na.tune.tasks import Formulation
from tvm_na.tune.trial_log import Trial, TrialLog, point

_log = logging.getLogger("tvm_na.tune")


@dataclass(frozen=True)
class Reference:
    """The kernel of a problem that its candidates are interleaved with: that of the default schedule.

    Attributes:
        seconds: The time that it is taken to need, so that all times of the problem are for one speed of the machine.
        formulation: As canonical JSON.
    """

    file: Path
    seconds: float
    formulation: str


@dataclass
class Slot:
    """A formulation that is tuned.

    Attributes:
        module: Its IRModule.
        workload: Its workload in the database on disk.
        hash: The structural hash that names it there.
        searched: Its workload in the database of the search.
    """

    problem: ProblemState
    state: FormulationState
    formulation: Formulation
    module: Any
    workload: Any
    hash: str
    searched: Any


@dataclass
class Candidate:
    """A point of a space that may be measured.

    Attributes:
        schedule: TVM's Schedule.
        args_info: MetaSchedule's ArgInfo of the arguments.
        predicted: The cost model's score; None before the model was trained.
        seconds: The median of its repeats, once it is measured, at the reference's speed of the machine.
        failure: What it failed at, if it did.
        fresh: Whether it was tried now, and not before.
        reason: Why it was rejected without a measurement, in words; "" otherwise.
    """

    slot: Slot
    schedule: Any
    sketch: str
    parameters: dict[str, int]
    args_info: Any
    predicted: float | None = None
    seconds: float | None = None
    failure: str | None = None
    fresh: bool = False
    reason: str = ""

    @property
    def point(self) -> tuple[object, ...]:
        """Its name."""
        return point(self.slot.state.text, self.sketch, self.parameters)


@dataclass
class Session:
    """What a run works with; database and log are open.

    Attributes:
        target: TVM's target of the records.
        number: The session's number in ``meta.json``.
        observe: Called after each trial and at the beginning of each phase.
        memory: MetaSchedule's database of the search: the medians alone, for these threads alone.
        slots: Every formulation of every problem.
        known: Points tried before: their seconds, None for a failure; by problem and point.
        references: What candidates of a problem are interleaved with.
    """

    state: TuneState
    database: TuningDatabase
    log: TrialLog
    builder: Builder
    measurer: Measurer
    target: Any
    options: SearchOptions
    number: int
    observe: Callable[[TuneState], None]
    memory: Any
    slots: list[Slot] = field(default_factory=list)
    known: dict[tuple[object, ...], float | None] = field(default_factory=dict)
    references: dict[Problem, Reference] = field(default_factory=dict)

    def build(self, candidates: Sequence[Candidate]) -> list[Built]:
        """Build candidates, except those tried before (which learn what came of it) and those beyond the limit."""
        allowed = self.state.limit - self.state.trials
        fresh: list[Candidate] = []
        for candidate in candidates:
            key = (candidate.slot.problem.problem, *candidate.point)
            if key in self.known:
                candidate.seconds = self.known[key]
                candidate.failure = None if candidate.seconds else "failed before"
            elif len(fresh) < allowed:
                candidate.fresh = True
                fresh.append(candidate)
            else:
                candidate.failure = "stopped"
        with self._during("building"):
            sources = [self._source(c.slot, c.schedule, c.sketch, c.parameters) for c in fresh]
            built = iter(self.builder.build(sources, self.measurer.suffix, self.state.stopped))
        results = []
        for candidate in candidates:
            result = next(built) if candidate.fresh else Built(None, candidate.failure)
            if candidate.fresh and result.failure is not None:
                self._ended(candidate, Measured((), result.failure, result.message))
            results.append(result)
        return results

    def _source(self, slot: Slot, schedule: Any, sketch: str, parameters: Mapping[str, int]) -> Source:
        """What of a schedule is compiled: for GPUs, and for several samples, what production compiles."""
        if self._builds_modules(slot):
            return source_of(schedule.mod)
        return Source(None, slot.problem.problem, Point(slot.state.text, sketch, parameters))

    def _builds_modules(self, slot: Slot) -> bool:
        return slot.problem.batch == 1 and self.database.target.kind != "cuda"

    def refer_to(self, slot: Slot, seconds: float | None) -> None:
        """Build the default kernel of a problem, as its reference; measure it unless ``seconds`` says its time.

        A kernel that fails is no reference: the candidates of the problem are then measured alone.
        """
        problem, batch = slot.problem.problem, slot.problem.batch
        with self._during("building"):
            default = slot.formulation.default
            source = self._source(slot, default.schedule, default.sketch, default.values)
            built = self.builder.build([source], self.measurer.suffix, self.state.stopped)[0]
        why = built.failure, built.message
        if built.file is not None and seconds is None:
            found: dict[int, Measured] = {}
            with self._during("measuring"):
                kernel = Kernel(built.file, problem, batch=batch, formulation=slot.state.text)
                self.measurer.measure([kernel], found.__setitem__, self.state.stopped)
            seconds, why = median(found[0].run_secs), (found[0].failure, found[0].message)
        if built.file is not None and seconds is not None:
            self.references[problem] = Reference(built.file, seconds, slot.state.text)
        elif why[0] != "stopped":
            _log.warning("%s: measured without a reference, its default kernel fails: %s\n%s", problem, *why)

    def measure(self, candidates: Sequence[Candidate], files: Sequence[Path]) -> None:
        """Measure built candidates, each interleaved with the reference of its problem."""
        problems = [candidate.slot.problem for candidate in candidates]
        references = [self.references.get(p.problem) for p in problems]
        kernels = [
            Kernel(
                *(file, p.problem, reference.file if reference else None, p.batch),
                formulation=candidate.slot.state.text,
                reference_formulation=reference.formulation if reference else "",
            )
            for candidate, file, p, reference in zip(candidates, files, problems, references, strict=True)
        ]

        def done(index: int, measured: Measured) -> None:
            if self.state.first is None:
                self.state.first = self.state.elapsed
            self._ended(candidates[index], measured)

        with self._during("measuring"):
            self.measurer.measure(kernels, done, self.state.stopped)
        for file in files:
            file.unlink(missing_ok=True)

    def try_out(self, candidates: Sequence[Candidate]) -> None:
        """Build and measure candidates."""
        built = [(c, b.file) for c, b in zip(candidates, self.build(candidates), strict=True)]
        there = [(c, file) for c, file in built if file is not None]
        self.measure([c for c, _ in there], [file for _, file in there])

    @contextmanager
    def _during(self, phase: str) -> Iterator[None]:
        with self.state.during(phase):
            self.observe(self.state)
            yield

    def _ended(self, candidate: Candidate, measured: Measured) -> None:
        """Keep what became of a candidate: on disk first."""
        slot, state = candidate.slot, self.state
        if measured.failure == "stopped":
            candidate.fresh, candidate.failure = False, "stopped"
            return
        reference = self.references.get(slot.problem.problem)
        run_secs = measured.run_secs if reference is None else measured.beside(reference.seconds)
        candidate.seconds = median(run_secs)
        candidate.failure = measured.failure
        if candidate.seconds is not None:
            built_as_is = self._builds_modules(slot)
            trace = candidate.schedule.trace if built_as_is else trace_at_point(candidate, self.database.target)
            batch = slot.problem.batch
            self.database.commit(slot.workload, trace, run_secs, self.options.threads, candidate.args_info, batch)
            self.remember(slot, trace, candidate.seconds, candidate.args_info)
        else:
            candidate.reason = measured.message if measured.failure in REJECTIONS else ""
            where = f"{slot.problem.problem} | {slot.state.label} | {candidate.sketch} {candidate.parameters}"
            _log.warning("%s: %s\n%s", measured.failure, where, measured.message)
        self.log.write(self._trial(candidate))
        self.known[(slot.problem.problem, *candidate.point)] = candidate.seconds
        state.measured += 1
        note(slot.problem, slot.state, candidate.seconds, candidate.failure)
        self.observe(state)

    def remember(self, slot: Slot, trace: Any, seconds: float, args_info: Any) -> None:
        """Tell the search of a measurement."""
        record = import_metaschedule().database.TuningRecord
        self.memory.commit_tuning_record(record(trace, slot.searched, [seconds], self.target, args_info))

    def _trial(self, candidate: Candidate) -> Trial:
        slot, reference = candidate.slot, self.references.get(candidate.slot.problem.problem)
        return Trial(
            time=now(),
            session=self.number,
            problem=slot.problem.problem.to_json(),
            formulation=slot.state.text,
            threads=self.options.threads,
            trial=slot.problem.trials,
            predicted=candidate.predicted,
            seconds=candidate.seconds,
            failure=candidate.failure,
            choices=candidate.parameters,
            structure=candidate.sketch,
            reference=None if reference is None else reference.seconds,
            batch=slot.problem.batch,
            reason=candidate.reason,
        )


def trace_at_point(candidate: Candidate, target: NATarget) -> Any:
    """The trace of the space's own schedule at a candidate's point, which is what is built of a point.

    One that MetaSchedule mutated keeps the instructions of the trace that it came from, where a space may do others.
    """
    formulation, plan = candidate.slot.formulation, Plan(candidate.sketch, exact=candidate.parameters)
    scheduled = formulation.space.apply(formulation.func, target, plan)
    assert scheduled is not None, f"the space {formulation.space.name} refused its own function"
    return scheduled.schedule.trace


def note(problem: ProblemState, formulation: FormulationState, seconds: float | None, failure: str | None) -> None:
    """Count a trial."""
    formulation.trials += 1
    if failure is not None:
        problem.failures[failure] += 1
    elif seconds is not None:
        formulation.best = seconds if formulation.best is None else min(formulation.best, seconds)
