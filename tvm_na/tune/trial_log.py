"""The trial log of the tuner: one line of JSON for each trial, failed ones too, in the order in which they ended."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

_log = logging.getLogger(__name__)

#: Its name in a folder of records.
TRIAL_LOG = "journal.jsonl"


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
    """The trials of a folder of records, oldest first; lines that cannot be read are skipped with a warning."""
    try:
        lines = (folder / TRIAL_LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Trial(**json.loads(line)))
        except (ValueError, TypeError) as damage:
            _log.warning("%s, line %d: skipped, %s", folder / TRIAL_LOG, number, damage)
    return found


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
