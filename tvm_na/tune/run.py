"""Tuning: finds schedules for problems by building and measuring, and keeps what it finds.

Each problem has several formulations, each formulation several sketches, each sketch many points. First the
default point of every formulation is measured; those that are far off are not looked at again. Of the others the
default point of every sketch is. Then MetaSchedule's
evolutionary search proposes batches of points, and the problem that promises most gets the next batch.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tvm_na.cuda import toolchain
from tvm_na.jit import openmp
from tvm_na.measure import worker_pool as workers
from tvm_na.measure.devices import Here, Place
from tvm_na.measure.local import Conditions
from tvm_na.records.write import TuningDatabase, user_folder
from tvm_na.targets.target import NATarget
from tvm_na.tune import metaschedule
from tvm_na.tune.builder import Builder
from tvm_na.tune.guards import logging_to, stopping
from tvm_na.tune.options import Options, batch_for
from tvm_na.tune.search import Search, Strategy, candidate_of
from tvm_na.tune.session import Candidate, Session, Slot, note
from tvm_na.tune.state import FormulationState, ProblemState, TuneState
from tvm_na.tune.tasks import Formulation, TuneTask, formulations_of, label, merged
from tvm_na.tune.trial_log import Journal, Trial, trials_in

_log = logging.getLogger("tvm_na.tune")

LOG = "tune.log"
WORKERS_LOG = "workers.log"
_RECALLED = 16  # records per formulation; reading one replays its trace, which takes 20 ms or more


@dataclass(frozen=True)
class TuneResult:
    """What :func:`tune` did.

    Attributes:
        state: Where it stands at the end; ``state.ending`` says why it ended.
        folder: Where the records are.
    """

    state: TuneState
    folder: Path


def tune(
    tasks: Sequence[TuneTask],
    target: NATarget,
    *,
    trials: int = 1000,
    time_limit: float | None = None,
    jobs: int = 0,
    seed: int = 0,
    output: Path | None = None,
    threads: int = 0,
    observer: Callable[[TuneState], None] | None = None,
    farm: Place | None = None,
    batch: int = 0,
    candidates: int = 0,
    strategy: Strategy = "evolutionary",
    defaults_first: bool = True,
    only_default_formulation: bool = False,
    cold_cache: bool = False,
) -> TuneResult:
    """Search schedules for problems, and keep every measurement.

    Every finished measurement is on disk at once; a run that is repeated after an interruption continues. Ctrl-C
    (in the main thread) ends it in good order.

    Args:
        tasks: The problems and their weights.
        target: What for; this machine must have a CPU or a GPU that can run it, unless a farm is given.
        trials: Measurements at most, failed ones too, over all tasks, with those that are already recorded.
        time_limit: Seconds at most.
        jobs: Candidates compiled at once; 0 for one per core.
        seed: Of all random numbers.
        output: The folder of the records; the user's for the target if None.
        threads: Threads of a kernel; 0 for what production uses. On a GPU it plays no role.
        observer: Called with the state after every trial, and when a phase begins.
        farm: Devices to measure on, in place of this machine.
        batch: Samples of a call; 0 for 1 on a CPU, and on a GPU for 128, or fewer where its memory is small, or as many
            as the problem's former trials in ``output`` had. Trials with others are not compared.
        candidates: Candidates of one search; 0 for a number that fits the trials.
        strategy: "evolutionary" with the XGBoost cost model, or "random" points (for comparison).
        defaults_first: Whether the default point of each formulation is measured first.
        only_default_formulation: Whether the other formulations are left out (for comparison).
        cold_cache: Whether caches are flushed before each repeat; such records are not comparable with others.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came; one that is missing a GPU says so.
        RuntimeError: a package, the C++ compiler, the CUDA compiler or the farm is missing.
    """
    which = (candidates, strategy, defaults_first, only_default_formulation)
    options = Options(trials, time_limit, jobs, seed, threads, *which, cold_cache, batch)
    tasks = merged(list(tasks))
    if not tasks:
        raise ValueError("tasks: required one task or more, got none")
    metaschedule.check_packages()
    openmp.cxx_compiler()
    place = Here.of(target) if farm is None else farm
    place.check(target)
    options = replace(options, threads=_threads(options, target, place)).completed(len(tasks))
    folder = user_folder(target.name) if output is None else output
    batches = _batches(tasks, target, options, trials_in(folder), place.free_bytes(target))
    workers.start_server()
    state = TuneState([], options.trials)
    if options.time_limit is not None:
        state.deadline = state.started + options.time_limit
    with ExitStack() as stack:
        session = _open(stack, state, len(tasks), target, options, folder, observer or (lambda _: None), place)
        _run(session, tasks, batches, target, options)
    return TuneResult(state, folder)


def _threads(options: Options, target: NATarget, place: Place) -> int:
    """Threads of a kernel; for a GPU also looks whether there is a compiler, and nobody else on the GPU."""
    if target.kind != "cuda":
        return place.threads(options.threads)
    if options.threads > 1:
        raise ValueError(f"threads: required 0 or 1 for {target.name}, got {options.threads}")
    toolchain.find_compiler()
    if (busy := place.busy()) is not None:
        _log.warning("measurements will err: required a GPU that nobody else uses, got one that is not idle, %s", busy)
    return 1


def _batches(
    tasks: Sequence[TuneTask], target: NATarget, options: Options, trials: Sequence[Trial], free: int | None
) -> list[int]:
    """The batch of each task."""
    before = {t.problem: t.batch for t in trials if t.threads == options.threads}
    return [batch_for(task.problem, target, options.batch, before.get(task.problem.to_json()), free) for task in tasks]


def _open(
    stack: ExitStack,
    state: TuneState,
    tasks: int,
    target: NATarget,
    options: Options,
    folder: Path,
    observe: Callable[[TuneState], None],
    place: Place,
) -> Session:
    """Everything that a run works with; ``stack`` closes it."""
    observe(state)
    ms = metaschedule.import_metaschedule()
    database = stack.enter_context(TuningDatabase(folder, target))
    journal = stack.enter_context(Journal(folder))
    stack.enter_context(logging_to(folder / LOG))
    kernels = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tvm_na-tune-")))
    log = folder / WORKERS_LOG
    builder = Builder(options.jobs, target, kernels, log)
    stack.callback(builder.close)
    measurer = place.measurer(Conditions(options.threads, cold_cache=options.cold_cache), target, log)
    stack.callback(measurer.close)
    # Each trial has its batch; in older sessions the name meant candidates.
    facts = {name: value for name, value in vars(options).items() if value is not None and name != "batch"}
    farm = not isinstance(place, Here)
    number = database.begin_session(problems=tasks, farm=farm, **facts, **place.about(target))
    stack.callback(lambda: database.end_session(**_facts(state)))
    stopped = stack.enter_context(stopping(state))
    memory = ms.database.MemoryDatabase()
    return Session(
        state,
        [],
        database,
        journal,
        builder,
        measurer,
        target.tvm_target(options.threads),
        options.threads,
        number,
        observe,
        stopped,
        memory,
    )


def _facts(state: TuneState) -> dict[str, Any]:
    """What is kept of a session in ``meta.json``."""
    seconds = {phase: round(spent, 1) for phase, spent in state.seconds.items()}
    first = None if state.first is None else round(state.first, 1)
    return {
        "measured": state.measured,
        "ending": state.ending,
        "elapsed": round(state.elapsed, 1),
        "first_measurement": first,
        "seconds": seconds,
    }


def _add(session: Session, task: TuneTask, formulations: Sequence[Formulation], batch: int) -> list[Slot]:
    """Register a task's formulations."""
    import tvm

    texts = [f.text for f in formulations]
    states = [FormulationState(text, label(text, texts)) for text in texts]
    problem = ProblemState(task.problem, task.weight, states, batch=batch)
    session.state.problems.append(problem)
    slots = []
    for formulation, state in zip(formulations, states, strict=True):
        workload = session.database.register(tvm.IRModule({"main": formulation.func}))
        # MetaSchedule's own estimate fails on Let, which the expressions have.
        module = tvm.IRModule({"main": formulation.func.with_attr("estimated_flops", task.problem.useful_flops)})
        searched = session.memory.commit_workload(module)
        slots.append(Slot(problem, state, formulation, module, workload, searched))
    session.slots += slots
    return slots


def _recall(session: Session, slots: Sequence[Slot], trials: Sequence[Trial]) -> None:
    """Take over what former sessions measured of a problem's formulations, under the same conditions."""
    problem, by_text = slots[0].problem.problem, {slot.state.text: slot for slot in slots}
    for trial in _own(session, slots[0].problem, trials):
        slot = by_text.get(trial.formulation)
        if slot is None:  # of a formulation that there is no more, only the trials count
            slots[0].state.trials += 1
            continue
        session.known[(problem, *trial.point)] = trial.seconds
        note(slot.problem, slot.state, trial.seconds, trial.failure)
    for slot in slots:
        if session.database.target.kind == "cuda":
            list(
                slot.formulation.spaces.values()
            )  # traces name tensor instructions, which a space makes as it schedules
        batch = slot.problem.batch
        for record in session.database.records_of(slot.workload, session.threads, _RECALLED, batch):
            seconds = statistics.median(float(s) for s in record.run_secs)
            session.remember(slot, record.trace, seconds, record.args_info)
            slot.state.best = seconds if slot.state.best is None else min(slot.state.best, seconds)
        default = candidate_of(slot, slot.formulation.default.schedule)
        slot.state.default = session.known.get((problem, *default.point))


def _own(session: Session, problem: ProblemState, trials: Sequence[Trial]) -> list[Trial]:
    """The trials of a problem with the session's threads and the problem's batch."""
    text, own = problem.problem.to_json(), (session.threads, problem.batch)
    return [trial for trial in trials if trial.problem == text and (trial.threads, trial.batch) == own]


def _nominal(session: Session, problem: ProblemState, trials: Sequence[Trial]) -> float | None:
    """The seconds that former sessions took the default kernel of a problem to need; None if there were none."""
    known = (trial.reference for trial in reversed(_own(session, problem, trials)))
    return next((seconds for seconds in known if seconds is not None), problem.default)


def _run(
    session: Session, tasks: Sequence[TuneTask], batches: Sequence[int], target: NATarget, options: Options
) -> None:
    """Measure the defaults, then search."""
    state, trials = session.state, trials_in(session.database.folder)
    with state.during("searching"):
        for task, batch in zip(
            tasks, batches, strict=True
        ):  # one after the other, so that the first measurement does not wait for all
            formulations = formulations_of(task.problem, target)
            slots = _add(session, task, formulations[: 1 if options.only_default_formulation else None], batch)
            _recall(session, slots, trials)
            problem = slots[0].problem
            if not session.stopped():
                session.refer_to(slots[0], _nominal(session, problem, trials))
            if options.defaults_first:
                _measure_defaults(session, problem)
            problem.note_round()
            if len(problem.formulations) > 1 and options.defaults_first:
                problem.drop_hopeless()
                _measure_sketches(session, problem)
            if session.stopped():
                break
        if not session.stopped():
            Search(session, options.strategy, options.seed, options.candidates, options.jobs).run()
    state.ending = state.ending or "nothing is left to try"
    state.phase = "done"
    session.observe(state)


def _measure_defaults(session: Session, problem: ProblemState) -> None:
    """Measure the default point of every formulation of a problem that is not known."""
    slots = [slot for slot in session.slots if slot.problem is problem and slot.state.default is None]
    candidates: list[Candidate] = []
    for slot in slots:
        candidates.append(candidate_of(slot, slot.formulation.default.schedule))
    if candidates and not session.stopped():
        session.try_out(candidates)
    for slot, candidate in zip(slots, candidates, strict=True):
        slot.state.default = candidate.seconds


def _measure_sketches(session: Session, problem: ProblemState) -> None:
    """Measure the default points of the other sketches, of the formulations that are still open."""
    candidates = []
    for slot in session.slots:
        if slot.problem is problem and slot.state.open:
            spaces = list(slot.formulation.spaces.values())[1:]
            candidates += [candidate_of(slot, scheduled.schedule) for scheduled in spaces]
    new = [c for c in candidates if (problem.problem, *c.point) not in session.known]
    if new and not session.stopped():
        session.try_out(new)
