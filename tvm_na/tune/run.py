"""Tuning: finds schedules for problems by building and measuring, and keeps what it finds.

Each problem has several formulations, each formulation several sketches, each sketch many points. First the
default point of every formulation is measured; those that are far off are not looked at again. Of the others the
default point of every sketch is. Then MetaSchedule's evolutionary search proposes batches of points, and the problem
that promises most gets the next batch.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_na.compilers import cxx
from tvm_na.cuda import toolchain
from tvm_na.measure import worker_pool as workers
from tvm_na.measure.devices import Device, LocalDevice
from tvm_na.measure.local import Conditions
from tvm_na.records.files import user_folder
from tvm_na.records.read import records_in
from tvm_na.records.record import Record
from tvm_na.records.rejections import InapplicableError
from tvm_na.records.replay import recorded
from tvm_na.records.write import TuningDatabase, structural_hash
from tvm_na.targets.target import NATarget
from tvm_na.tune import metaschedule
from tvm_na.tune.builder import Builder
from tvm_na.tune.logs import LOG, WORKERS_LOG, logging_to
from tvm_na.tune.options import SearchOptions, TuneOptions, batch_for
from tvm_na.tune.search import Search, candidate_of
from tvm_na.tune.session import Session, Slot, note
from tvm_na.tune.state import FormulationState, ProblemState, TuneState, interruptible
from tvm_na.tune.tasks import Formulation, TuneTask, formulations_of, label, merged
from tvm_na.tune.trial_log import Trial, TrialLog, trials_in
from tvm_na.wasm import link

_log = logging.getLogger("tvm_na.tune")

_RECALLED = 16  # records per formulation; scheduling as one says takes 20 ms or more


@dataclass(frozen=True)
class TuneResult:
    """What :func:`tune` did: where it stands (``state.ending`` says why it ended), and the folder of the records."""

    state: TuneState
    folder: Path


def tune(
    tasks: Sequence[TuneTask],
    target: NATarget,
    options: TuneOptions | None = None,
    *,
    output: Path | None = None,
    observer: Callable[[TuneState], None] | None = None,
    devices: Device | None = None,
) -> TuneResult:
    """Search schedules for problems, and keep every measurement.

    Every finished measurement is on disk at once; a run that is repeated after an interruption continues. Ctrl-C
    (in the main thread) ends it in good order.

    Args:
        tasks: The problems and their weights.
        target: What for; this machine must have a CPU or a GPU that can run it, unless ``devices`` can.
        options: How to tune; with the defaults of :class:`TuneOptions` if None.
        output: The folder of the records; the user's for the target if None.
        observer: Called with the state after every trial, and when a phase begins.
        devices: Where to measure, in place of this machine.

    Raises:
        ValueError: names the argument, what was required and what came; one that is missing a GPU says so.
        RuntimeError: a package, the C++ compiler, the CUDA compiler or a device is missing, or what was measured cannot
            be written.
    """
    folder = user_folder(target.name) if output is None else output
    try:
        return _tune(
            merged(list(tasks)), target, options or TuneOptions(), folder, observer or (lambda _: None), devices
        )
    except ConnectionError:
        raise
    except OSError as error:  # a full disk, a limit on files, a folder that is none
        raise RuntimeError(
            f"records: required room and the right to write in {folder} and {tempfile.gettempdir()}, got {error}; "
            "what was measured is kept, and the same command continues"
        ) from error


def _tune(
    tasks: Sequence[TuneTask],
    target: NATarget,
    how: TuneOptions,
    folder: Path,
    observe: Callable[[TuneState], None],
    devices: Device | None,
) -> TuneResult:
    options = SearchOptions(**vars(how))
    if not tasks:
        raise ValueError("tasks: required one task or more, got none")
    metaschedule.check_packages()
    (link.require if target.is_wasm else cxx.command)()
    device = LocalDevice.of(target) if devices is None else devices
    device.check(target)
    options = options.completed(len(tasks), _threads(options, target, device))
    before = {t.problem: t.batch for t in trials_in(folder) if t.threads == options.threads}
    free, wanted = device.free_bytes(target), options.batch
    batches = [batch_for(t.problem, target, wanted, before.get(t.problem.to_json()), free) for t in tasks]
    workers.start_server()
    state = TuneState([], options.trials)
    if options.time_limit is not None:
        state.deadline = state.started + options.time_limit
    with ExitStack() as stack:
        # Each trial has its batch; in older sessions the name meant candidates.
        facts = {name: value for name, value in vars(options).items() if value is not None and name != "batch"}
        facts |= {"problems": len(tasks), "farm": devices is not None, **device.about(target)}
        session = _open(stack, state, target, options, folder, device, observe, facts)
        _run(session, tasks, batches, target)
    return TuneResult(state, folder)


def _threads(options: TuneOptions, target: NATarget, device: Device) -> int:
    """Threads of a kernel; for a GPU also looks whether there is a compiler, and nobody else on the GPU."""
    if target.kind != "cuda" and not target.is_wasm:
        return device.threads(options.threads)
    if options.threads > 1:
        raise ValueError(f"threads: required 0 or 1 for {target.name}, got {options.threads}")
    if target.is_wasm:
        return 1
    toolchain.find_compiler()
    if (busy := device.busy()) is not None:
        _log.warning("measurements will err: required a GPU that nobody else uses, got one that is not idle, %s", busy)
    return 1


def _open(
    stack: ExitStack,
    state: TuneState,
    target: NATarget,
    options: SearchOptions,
    folder: Path,
    device: Device,
    observe: Callable[[TuneState], None],
    facts: dict[str, Any],
) -> Session:
    """Everything that a run works with; ``stack`` closes it."""
    observe(state)
    memory = metaschedule.import_metaschedule().database.MemoryDatabase()
    database = stack.enter_context(TuningDatabase(folder, target))
    log = stack.enter_context(TrialLog(folder))
    stack.enter_context(logging_to(folder / LOG))
    kernels = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tvm_na-tune-")))
    builder = Builder(options.jobs, target, kernels, folder / WORKERS_LOG)
    stack.callback(builder.close)
    conditions = Conditions(options.threads, cold_cache=options.cold_cache)
    measurer = device.measurer(conditions, target, folder / WORKERS_LOG)
    stack.callback(measurer.close)
    number = database.begin_session(**facts)
    stack.callback(lambda: database.end_session(**_facts(state)))
    stack.enter_context(interruptible(state.interrupted))
    return Session(
        state=state,
        database=database,
        log=log,
        builder=builder,
        measurer=measurer,
        target=target.tvm_target(options.threads),
        options=options,
        number=number,
        observe=observe,
        memory=memory,
    )


def _facts(state: TuneState) -> dict[str, Any]:
    """What is kept of a session in ``meta.json``."""
    return {
        "measured": state.measured,
        "ending": state.ending,
        "elapsed": round(state.elapsed, 1),
        "first_measurement": None if state.first is None else round(state.first, 1),
        "seconds": {phase: round(spent, 1) for phase, spent in state.seconds.items()},
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
        measured = tvm.IRModule({"main": formulation.func})
        workload = session.database.register(measured)
        # MetaSchedule's own estimate fails on Let, which the expressions have.
        module = tvm.IRModule({"main": formulation.func.with_attr("estimated_flops", task.problem.useful_flops)})
        searched = session.memory.commit_workload(module)
        slots.append(Slot(problem, state, formulation, module, workload, structural_hash(measured), searched))
    session.slots += slots
    return slots


def _recall(session: Session, slots: Sequence[Slot], records: Sequence[Record], trials: Sequence[Trial]) -> None:
    """Take over what former sessions measured of a problem's formulations, under the same conditions."""
    problem, by_text = slots[0].problem.problem, {slot.state.text: slot for slot in slots}
    for trial in _own(session, slots[0].problem, trials):
        slot = by_text.get(trial.formulation)
        if slot is None:  # of a formulation that there is no more, only the trials count
            slots[0].state.trials += 1
            continue
        session.known[(problem, *trial.point)] = trial.seconds
        note(slot.problem, slot.state, trial.seconds, trial.failure)
    conditions = session.options.threads, slots[0].problem.batch
    own = [r for r in records if r.problem == problem and (r.threads, r.batch) == conditions]
    for slot in slots:
        # A trace is of one expression; names are of any.
        usable = [r for r in own if r.formulation == slot.state.text and (r.is_compact or r.workload == slot.hash)]
        for record in sorted(usable, key=lambda record: record.seconds)[:_RECALLED]:
            _recall_record(session, slot, record)
        default = candidate_of(slot, slot.formulation.default.schedule)
        slot.state.default = session.known.get((problem, *default.point))


def _recall_record(session: Session, slot: Slot, record: Record) -> None:
    """Tell the search of a record of a formulation, if it is one of its points."""
    formulation = slot.formulation
    try:
        scheduled = recorded(record, formulation.space, formulation.func, session.database.target)
    except InapplicableError as error:
        _log.warning("%s: skipped, %s", record.place, error)
        return
    candidate = candidate_of(slot, scheduled.schedule)
    session.remember(slot, scheduled.schedule.trace, record.seconds, candidate.args_info)
    slot.state.best = record.seconds if slot.state.best is None else min(slot.state.best, record.seconds)


def _own(session: Session, problem: ProblemState, trials: Sequence[Trial]) -> list[Trial]:
    """The trials of a problem with the session's threads and the problem's batch."""
    text, own = problem.problem.to_json(), (session.options.threads, problem.batch)
    return [trial for trial in trials if trial.problem == text and (trial.threads, trial.batch) == own]


def _nominal(session: Session, problem: ProblemState, trials: Sequence[Trial]) -> float | None:
    """The seconds that former sessions took the default kernel of a problem to need; None if there were none."""
    known = (trial.reference for trial in reversed(_own(session, problem, trials)))
    return next((seconds for seconds in known if seconds is not None), problem.default)


def _run(session: Session, tasks: Sequence[TuneTask], batches: Sequence[int], target: NATarget) -> None:
    """Measure the defaults, then search."""
    options, state, folder = session.options, session.state, session.database.folder
    records, trials = records_in(folder), trials_in(folder)
    with state.during("searching"):
        # One after the other, so that the first measurement does not wait for all.
        for task, batch in zip(tasks, batches, strict=True):
            formulations = formulations_of(task.problem, target)
            slots = _add(session, task, formulations[: 1 if options.only_default_formulation else None], batch)
            _recall(session, slots, records, trials)
            problem = slots[0].problem
            if not state.stopped():
                session.refer_to(slots[0], _nominal(session, problem, trials))
            if options.defaults_first:
                _measure_defaults(session, problem)
            problem.note_round()
            if len(problem.formulations) > 1 and options.defaults_first:
                problem.drop_hopeless()
                _measure_sketches(session, problem)
            if state.stopped():
                break
        if not state.stopped():
            Search(session).run()
    state.ending = state.ending or "nothing is left to try"
    state.phase = "done"
    session.observe(state)


def _measure_defaults(session: Session, problem: ProblemState) -> None:
    """Measure the default point of every formulation of a problem that is not known."""
    slots = [slot for slot in session.slots if slot.problem is problem and slot.state.default is None]
    candidates = [candidate_of(slot, slot.formulation.default.schedule) for slot in slots]
    if candidates and not session.state.stopped():
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
    if new and not session.state.stopped():
        session.try_out(new)
