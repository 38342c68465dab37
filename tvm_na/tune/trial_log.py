"""The trial log of the tuner: one line of JSON for each trial, failed ones too, in the order in which they ended."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tvm_na.records.files import MALFORMED, Skipped, lines_of

#: Its name in a folder of records.
TRIAL_LOG = "journal.jsonl"
_NONE = type(None)
#: Of what kinds the fields of a trial are.
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("time", "problem", "formulation", "structure", "reason"), (str,)),
    **dict.fromkeys(("session", "threads", "trial", "batch"), (int,)),
    **dict.fromkeys(("predicted", "seconds", "reference"), (int, float, _NONE)),
    "failure": (str, _NONE),
    "choices": (dict,),
}


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        time: When it ended (ISO 8601).
        session: The session of ``meta.json`` that it belongs to.
        problem: Canonical JSON of the problem.
        formulation: Canonical JSON of the formulation.
        threads: Threads it was measured with.
        trial: Its number among the problem's trials with that many threads and samples, from 0.
        predicted: The cost model's score before it was measured, higher is better; None before the model was trained.
        seconds: The median of its repeats, at the reference's speed of the machine; None if it failed.
        failure: What it failed at (:mod:`tvm_na.tune.builder`, :mod:`tvm_na.measure.local`); None if it did not.
        choices: The tunable parameters, by name; of an older name, as logs have it.
        structure: The name of its sketch; likewise.
        reference: Seconds that the default kernel was taken to need, which it was interleaved with; None if it was
            measured alone.
        batch: Samples of a call.
        reason: Why a candidate was rejected without a measurement, in words; "" otherwise.
    """

    time: str
    session: int
    problem: str
    formulation: str
    threads: int
    trial: int
    predicted: float | None
    seconds: float | None
    failure: str | None
    choices: Mapping[str, int] = field(default_factory=dict)
    structure: str = ""
    reference: float | None = None
    batch: int = 1
    reason: str = ""

    @property
    def point(self) -> tuple[object, ...]:
        """Which point of which space it was; equal for equal schedules."""
        return point(self.formulation, self.structure, self.choices)


def point(formulation: str, structure: str, choices: Mapping[str, int]) -> tuple[object, ...]:
    """A hashable name of a point of a space."""
    return formulation, structure, tuple(choices.items())


def trials_in(folder: Path) -> list[Trial]:
    """The trials of a folder of records, oldest first; lines that cannot be read are skipped with a warning.

    Raises:
        ValueError: the file cannot be read, or no line of it is a trial.
    """
    file = folder / TRIAL_LOG
    try:
        lines = lines_of(file)
    except OSError as error:
        raise ValueError(f"records: required a trial log that can be read, got {error}") from error
    found, skipped = [], Skipped(file)
    for number, line in enumerate(lines, 1):
        try:
            found.append(_trial(line))
        except MALFORMED as damage:
            skipped(number, damage)
    skipped.tell_rest()
    if skipped.count > 1 and not found:  # one may be the first, whose writer was killed
        raise ValueError(f"records: required a trial log of the tuner, got {file}, of which no line is a trial")
    return found


def _trial(line: bytes) -> Trial:
    trial = Trial(**json.loads(line))
    for name, kinds in _KINDS.items():
        value = getattr(trial, name)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise TypeError(f"{name}: required {' or '.join(kind.__name__ for kind in kinds)}, got {value!r}")
    if not all(type(value) is int for value in trial.choices.values()):
        raise TypeError(f"choices: required integers, got {trial.choices}")
    times = [time for time in (trial.seconds, trial.reference) if time is not None]
    if not all(time > 0 and math.isfinite(time) for time in times):
        raise ValueError(f"seconds, reference: required seconds > 0, got {times}")
    if not math.isfinite(trial.predicted or 0.0):
        raise ValueError(f"predicted: required a finite number, got {trial.predicted}")
    if not (1 <= trial.batch < 2**31 and 1 <= trial.threads < 2**31):
        raise ValueError(f"batch, threads: required numbers >= 1, got {trial.batch} and {trial.threads}")
    return trial


class TrialLog:
    """The trial log of a folder, open for writing; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._out = (folder / TRIAL_LOG).open("ab+")
        if self._out.tell():
            self._out.seek(-1, 2)
            if self._out.read(1) != b"\n":  # a writer was killed in the middle of a line
                self._out.write(b"\n")

    def __enter__(self) -> TrialLog:
        return self

    def __exit__(self, *error: object) -> None:
        self._out.close()

    def write(self, trial: Trial) -> None:
        """Append a trial; it is in the file when this returns."""
        self._out.write(json.dumps(asdict(trial), separators=(",", ":")).encode() + b"\n")
        self._out.flush()
