"""Measuring the kernels of a package, on a machine with PyTorch and a GPU, without TVM and without a compiler.

Each kernel is checked and measured beside the default kernel of its problem, as by the tuner, and noted in the trial
log. Of many that are about as fast the one with the shortest time is the one whose measurement erred the most: so the
best few are then measured again, all in turns, and those times are the records.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tvm_na.measure.devices import LocalDevice
from tvm_na.measure.local import Conditions
from tvm_na.packages.package import Package
from tvm_na.packages.problem_run import ProblemRun, Session
from tvm_na.packages.records import check_usable, install, write_records
from tvm_na.problems.checks import check_int
from tvm_na.problems.registry import Problem
from tvm_na.records.files import user_folder
from tvm_na.records.read import records_in
from tvm_na.records.write import TuningDatabase
from tvm_na.tune.logs import LOG, WORKERS_LOG, logging_to
from tvm_na.tune.options import batch_for
from tvm_na.tune.state import TuneState, interruptible
from tvm_na.tune.trial_log import Trial, TrialLog, trials_in

_log = logging.getLogger("tvm_na.tune")

#: The part of a problem's time that is left for its best in turns.
_FOR_BEST = 0.15


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure a package.

    Attributes:
        batch: Samples of a call; 0 for 128, or fewer where the GPU's memory is small, or as before in the same folder.
        time_limit: Seconds at most; problems get equal parts of what is left.
        best: How many of each problem are measured again in turns, and become its records.
        rounds: Samples of each of these.
        seed: Of the order in which points are measured: where time is up, a fair part was.

    Raises:
        TypeError, ValueError: name the option, what was required and what came.
    """

    batch: int = 0
    time_limit: float | None = None
    best: int = 8
    rounds: int = 101
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch", 0), ("best", 1), ("rounds", 2), ("seed", 0)):
            check_int(name, getattr(self, name), least)
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"time_limit: required seconds > 0, got {self.time_limit}")


class MeasureState(TuneState):
    """Where measuring stands: as the tuner's, but it is not over when every kernel has had its trial."""

    def stopped(self) -> bool:
        if not self.ending and time.monotonic() >= self.deadline:
            self.ending = "the time is up"
        return bool(self.ending)


def measure_package(
    package: Package,
    output: Path | None = None,
    options: MeasureOptions | None = None,
    *,
    device: LocalDevice | None = None,
    observer: Callable[[TuneState], None] | None = None,
) -> TuneState:
    """Measure the kernels of a package, write records of the best, and put the fastest into the kernel cache.

    What was measured before in the same folder, with the same batch, is not measured again. Ctrl-C (in the main thread)
    ends it in good order, and loses nothing. It starts a process, so it cannot run in one that may not (a daemon).

    Args:
        package: The kernels. They are run: whoever made them must be trusted.
        output: The folder of the records; the user's for the target if None.
        options: How to measure.
        device: Where, in place of this machine's GPU.
        observer: Called with the state after every kernel.

    Returns:
        Where it stands; ``ending`` says why it ended.

    Raises:
        ValueError: names the argument, what was required and what came; without such a GPU it says so.
        RuntimeError: what kernels run on is missing, or the cache cannot be written.
    """
    options, target = options or MeasureOptions(), package.target
    check_usable(package)
    device = device or LocalDevice.of(target)
    device.check(target)
    if (busy := device.busy()) is not None:
        _log.warning("measurements will err: required a GPU that nobody else uses, got one that is not idle, %s", busy)
    folder = user_folder(target.name) if output is None else output
    state = MeasureState([], len(package.kernels) + len(package.refused))
    if options.time_limit is not None:
        state.deadline = state.started + options.time_limit
    with ExitStack() as stack:
        session = _open(stack, package, folder, device, state, observer or (lambda _: None))
        trials = [trial for trial in trials_in(folder) if trial.threads == 1]
        stack.enter_context(state.during("searching"))
        for number, problem in enumerate(package.problems):
            if state.stopped():
                break
            left = (state.deadline - time.monotonic()) / (len(package.problems) - number)
            own = [trial for trial in trials if trial.problem == problem.to_json()]
            batch = batch_for(problem, target, options.batch, own[-1].batch if own else None, device.free_bytes(target))
            _measure(session, problem, batch, own, folder, options, left)
            session.observe()
        state.ending = state.ending or "all kernels are measured"
        state.phase = "done"
        session.observe()
    return state


def _open(
    stack: ExitStack,
    package: Package,
    folder: Path,
    device: LocalDevice,
    state: MeasureState,
    observer: Callable[[TuneState], None],
) -> Session:
    """Everything that a session works with; ``stack`` closes it."""

    def end() -> None:
        with TuningDatabase(folder, package.target) as database:
            elapsed = round(state.elapsed, 1)
            database.end_session(measured=state.measured, ending=state.ending, elapsed=elapsed)

    facts = {"kernels": len(package.kernels), "problems": len(package.problems), "package": package.context}
    with TuningDatabase(folder, package.target) as database:
        number = database.begin_session(threads=1, **facts, **device.about(package.target))
    stack.callback(end)
    log = stack.enter_context(TrialLog(folder))
    stack.enter_context(logging_to(folder / LOG))
    libraries = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tvm_na-package-")))
    measurer = device.measurer(Conditions(1), package.target, folder / WORKERS_LOG)
    stack.callback(measurer.close)
    stack.enter_context(interruptible(state.interrupted))
    return Session(package, state, log, measurer, number, lambda: observer(state), libraries)


def _measure(
    session: Session,
    problem: Problem,
    batch: int,
    trials: list[Trial],
    folder: Path,
    options: MeasureOptions,
    seconds: float,
) -> None:
    """Measure a problem's kernels, in about so many seconds, and write its records."""
    state, package, end = session.state, session.package, time.monotonic() + (1 - _FOR_BEST) * seconds
    run = ProblemRun(session, problem, batch, [trial for trial in trials if trial.batch == batch])
    with state.during("measuring"):
        run.measure(options.seed, lambda: state.stopped() or time.monotonic() > end)
    recorded = [r for r in records_in(folder) if (r.problem, r.batch) == (problem, batch) and len(r.run_secs) > 1]
    if not run.best(1) or (recorded and not run.is_new):
        return
    with state.during("measuring in turns"):
        times = run.in_turns(options.best, options.rounds, state.stopped) or run.once(options.best)
    write_records(package, folder, batch, times)
    install(package, [times[0][0]])
