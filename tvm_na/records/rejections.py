"""Tuning records that turned out not to apply, remembered so that they are skipped.

Whether a record applies shows when a kernel is built with it: the expression may have changed, its trace may fail.
What was found out holds for the same versions, expressions and schedules, and until ``tvm-na cache clear``.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Literal

from tvm_na import fingerprint, owned
from tvm_na.problems.registry import Problem
from tvm_na.records import files
from tvm_na.records.index import RecordRef
from tvm_na.targets.target import NATarget

_log = logging.getLogger(__name__)

Scope = Literal["record", "workload", "formulation"]

#: Reasons by name: those of this process, beside those on disk.
_rejected: dict[str, str] = {}


class InapplicableError(Exception):
    """A record cannot be used for a problem.

    Attributes:
        scope: What else cannot: no other ``record``, no record of its ``workload``, or no record of its
            ``formulation`` for this problem.
        lasting: Whether it stays so while versions, expressions and records stay.
    """

    def __init__(self, reason: str, scope: Scope = "record", *, lasting: bool = True) -> None:
        super().__init__(reason)
        self.scope, self.lasting = scope, lasting


class Rejections:
    """The records that do not apply to one problem on one target."""

    def __init__(self, problem: Problem, target: NATarget) -> None:
        self.problem, self._target = problem, target.name
        self._context = fingerprint.context_digest(target)[:16]
        self._pair = fingerprint.digest_of(problem.to_json(), self._context)[:16]
        try:
            self._on_disk = frozenset(os.listdir(files.rejections_dir()))
        except OSError:  # none yet, or none that can be read
            self._on_disk = frozenset()

    def _name(self, scope: Scope, ref: RecordRef) -> str:
        if scope == "record":
            return f"{self._pair}-{ref.digest}"
        if scope == "workload":
            return f"{self._context}-{ref.workload}"
        # What another level calls so may still have its like here.
        return f"{self._pair}-{hashlib.sha256(f'{ref.target} {ref.formulation}'.encode()).hexdigest()[:17]}"

    def reason(self, ref: RecordRef) -> str | None:
        """Why a record does not apply; None where nothing is known against it."""
        scopes: tuple[Scope, ...] = ("record", "workload", "formulation")
        for name in (self._name(scope, ref) for scope in scopes):
            if name in _rejected:
                return _rejected[name]
            if name in self._on_disk:
                return _reason_in(files.rejections_dir() / name)
        return None

    def add(self, ref: RecordRef, error: InapplicableError) -> None:
        """Skip a record, and what else the error is about, from now on.

        Logs that, as a warning where it is a record of the problem itself.
        """
        own = (ref.problem, ref.target) == (self.problem, self._target)
        _log.log(
            logging.WARNING if own else logging.INFO,
            "tuning record %s (%s, %s) does not apply to %s: %s",
            *(ref.digest, ref.place, ref.problem, self.problem, error),
        )
        name = self._name(error.scope, ref)
        _rejected[name] = str(error)
        if not error.lasting:
            return
        try:
            owned.make(files.rejections_dir())
            (files.rejections_dir() / name).write_text(str(error), encoding="utf-8")
        except OSError as failure:
            _log.warning("cannot remember that for other processes: %s", failure)


def _reason_in(file: Path) -> str | None:
    """Why a record was rejected; None where that cannot be read: then it is tried again."""
    try:
        return files.read_file(file).decode(errors="replace")
    except OSError as error:
        _log.warning("%s: the reason for a rejection is skipped, it cannot be read: %s", file, error)
        return None
