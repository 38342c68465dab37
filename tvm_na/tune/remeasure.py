"""The fastest records of a problem measured against each other, interleaved.

Of many candidates that are about as fast, the one with the shortest time is the one whose measurement erred the most.
Measured once more, with more repeats, that luck is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from tvm_na import fingerprint, settings
from tvm_na.jit import build
from tvm_na.measure.clocks import clock_of
from tvm_na.measure.local import Conditions, Kernel, Measured, checked_call
from tvm_na.measure.timing import measure
from tvm_na.problems.registry import Problem
from tvm_na.records.files import writing
from tvm_na.records.maintain import keep_compact
from tvm_na.records.read import records_in
from tvm_na.records.record import Machine, Record, best_of, grouped
from tvm_na.records.rejections import InapplicableError
from tvm_na.records.replay import noted, point_of
from tvm_na.records.select import Selection
from tvm_na.records.write import now
from tvm_na.reference.case import WrongNumbers
from tvm_na.targets.target import NATarget, cpu_name, parse_target
from tvm_na.tune.tasks import formulations_of
from tvm_na.tune.verify import check_measurable, running_on

_SAMPLE, _WARM_UP = 5e-4, 1e-2  # seconds


@dataclass(frozen=True)
class Outcome:
    """What came of one problem.

    Attributes:
        default: Seconds per call of every sample of the default schedule.
        records: The records that took part, each with its samples, converted to the speed of the machine at which the
            default takes its median; the fastest first. The default itself is one of them where none was of its point.
        failures: What those that could not be measured failed at.
    """

    problem: Problem
    threads: int
    batch: int
    default: tuple[float, ...]
    records: tuple[tuple[Record, tuple[float, ...]], ...]
    failures: tuple[str, ...]

    @property
    def gain(self) -> float:
        """How many times faster than the default the fastest is: the median of the ratios of neighboring samples."""
        return median(self.default) / median(self.records[0][1]) if self.records else 1.0


def remeasure(folder: Path, count: int, rounds: int) -> Iterator[Outcome]:
    """Measure records of each problem and number of threads, interleaved with the default schedule.

    The ``count`` fastest take part, and the first, since the tuner begins with default points; all with the batch that
    the fastest was measured with, and as many samples as ``rounds``.

    Raises:
        ValueError: the records are for another target, or need more cores than there are.
        RuntimeError: a package or the C++ compiler is missing, or the cache cannot be written.
    """
    records = records_in(folder)
    first = {(record.problem, record.threads): record for record in reversed(records)}  # a default point, mostly
    taking_part = dict.fromkeys([*first.values(), *best_of(records, count)])
    for (_, threads), records in grouped(taking_part, lambda record: (record.problem, record.threads)).items():
        target = parse_target(records[0].target)
        device = check_measurable(records, target)
        fastest = min(records, key=lambda record: record.seconds_per_sample)
        of_its_batch = [record for record in records if record.batch == fastest.batch]
        with running_on(threads):
            yield _measured(of_its_batch, target, device.conditions(Conditions(threads)), rounds)


def _measured(records: Sequence[Record], target: NATarget, conditions: Conditions, rounds: int) -> Outcome:
    from tvm_na.jit import runtime

    problem, batch = records[0].problem, records[0].batch
    runtime.use_threads(problem.useful_flops * batch)
    default, of_default = build.kernel_for(problem, target, records="off"), _default_of(records[0], target)
    calls, failures = {"default": _call(default, batch, conditions, of_default.formulation)}, []
    for record in records:
        try:
            kernel = build.kernel_with(Selection.of(record, "to be measured again"), problem, target)
            calls[record.digest] = _call(kernel, batch, conditions, record.formulation)
        except (InapplicableError, ValueError) as error:
            failures.append(f"{record.digest}: {error}")
    clock = clock_of(conditions.device)
    timings = measure(calls, rounds=rounds, sample_time=_SAMPLE, warmup_time=_WARM_UP, clock=clock)
    default_secs = timings["default"].samples
    found = []
    for record in records:
        if record.digest in timings:
            measured = Measured(timings[record.digest].samples, reference_secs=default_secs)
            found.append((record, measured.beside(median(default_secs))))
    if point_of(of_default, target) not in [point_of(record, target) for record, _ in found]:
        found.append((of_default, default_secs))
    found.sort(key=lambda pair: median(pair[1]))
    return Outcome(problem, records[0].threads, batch, default_secs, tuple(found), tuple(failures))


def _default_of(record: Record, target: NATarget) -> Record:
    """The default schedule as a record like another one of its problem: what to keep where nothing is faster."""
    formulation = formulations_of(record.problem, target)[0]
    point = formulation.default
    parameters = tuple(point.values.items())
    return replace(record, formulation=formulation.text, sketch=point.sketch, parameters=parameters, trace_json="")


def _call(kernel: build.Kernel, batch: int, conditions: Conditions, formulation: str) -> Callable[[], object]:
    """A call of a kernel, whose numbers are right; ValueError if they are not."""
    try:
        what = Kernel(kernel.file, kernel.problem, batch=batch, formulation=formulation)
        return checked_call(kernel.file, what, conditions)
    except WrongNumbers as error:
        raise ValueError(f"wrong numbers: {error}") from error


def keep(folder: Path, outcomes: Sequence[Outcome], count: int) -> int:
    """Leave only the ``count`` fastest records of each outcome in ``folder``, compact, with these times.

    Returns:
        How many there are now.

    Raises:
        ValueError: another process writes to the folder.
    """
    machine = Machine(cpu_name(), settings.available_cores(), "", tuple(fingerprint.versions().items()))
    tvm = (fingerprint.versions()["apache-tvm"],)
    kept = [
        replace(
            noted(record),
            run_secs=seconds,
            default_seconds=median(outcome.default),
            date=now(),
            tvm=tvm,
            machine=replace(machine, gpu=record.machine.gpu),
        )
        for outcome in outcomes
        for record, seconds in outcome.records[:count]
    ]
    with writing(folder):
        keep_compact(folder, kept)
    return len(kept)
