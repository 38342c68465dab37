"""Tuning records that last: written as they come, whole whatever happens to their writer.

Merging and pruning are in :mod:`tvm_na.records.maintain`. TVM is imported inside of functions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tvm_na import fingerprint, settings
from tvm_na.problems.registry import Problem, problem_from_json
from tvm_na.records.checks import checked_seconds
from tvm_na.records.checksums import add_checksums, begin_checksums, checksum_of
from tvm_na.records.files import RECORDS, WORKLOADS, append, lines_of, workload_hash, write_atomically, writing
from tvm_na.records.meta import Meta, check_meta, features_of, machine_of, read_meta, write_meta
from tvm_na.records.read import parse_line
from tvm_na.records.record import Machine
from tvm_na.targets.target import NATarget, cpu_name

_log = logging.getLogger(__name__)


def now() -> str:
    """The time, to the second, as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def structural_hash(mod: Any) -> str:
    """What names ``mod``, an IRModule, in a JSONDatabase: decimal digits (imports TVM)."""
    import tvm_ffi

    return str(tvm_ffi.structural_hash(mod))


def trace_as_json(trace: Any) -> Any:
    """A Trace as plain JSON, as TVM's databases have it.

    TVM's own ways in Python do not do: ``TuningRecord.as_json`` fails on index maps of layouts, and ``Trace.as_json``
    leaves numbers as objects of TVM's.
    """
    return json.loads(json.dumps(trace.as_json(), default=lambda number: number.value))


def _target_and_arguments(workload: Any, target: Any, args_info: Any = None) -> tuple[Any, Any]:
    """TVM's target, and MetaSchedule's description of a workload's arguments, as records have them (imports TVM)."""
    from tvm.s_tir.meta_schedule.arg_info import ArgInfo
    from tvm.s_tir.meta_schedule.database import TuningRecord
    from tvm.s_tir.schedule import Trace

    if args_info is None:
        args_info = ArgInfo.from_prim_func(workload.mod["main"])
    # All but the trace, which TVM does not always get into JSON.
    _, _, spec, arguments = TuningRecord(Trace([], {}), workload, [1.0], target, args_info).as_json()
    return spec, arguments


def _cut_off_torn_lines(folder: Path) -> None:
    """Leave only what TVM's JSONDatabase can read, which fails or crashes on anything else.

    Raises:
        ValueError: a workload other than the last is damaged, so that it is not known what the rest belongs to.
    """
    workloads, kept = lines_of(folder / WORKLOADS), []
    for number, line in enumerate(workloads, 1):
        if workload_hash(line) is not None:
            kept.append(line)
        elif number < len(workloads):
            raise ValueError(f"records: required workloads that can be read, got line {number} of {folder / WORKLOADS}")
    if len({workload_hash(line) for line in kept}) < len(kept):
        # TVM numbers them as they differ, not as they lie: records would get the number of another workload.
        raise ValueError(
            f"records: required every workload once, got {folder} with one twice (files put one after the other?); "
            f"`tvm-na records merge {folder} --into NEW` makes a folder without"
        )
    records = lines_of(folder / RECORDS)
    whole = [line for line in records if _is_whole(line, len(kept))]
    for name, before, after in ((WORKLOADS, workloads, kept), (RECORDS, records, whole)):
        data = b"".join(line + b"\n" for line in after)
        if (folder / name).exists() and (folder / name).stat().st_size != len(data):
            _log.warning("%s: cut off %d torn lines", folder / name, len(before) - len(after))
            write_atomically(folder / name, data)


def line_of(value: Any) -> bytes:
    """A line of a file of ours, without its end."""
    return json.dumps(value, separators=(",", ":")).encode()


def _is_whole(line: bytes, workloads: int) -> bool:
    try:
        return 0 <= parse_line(line)[0] < workloads
    except ValueError:
        return False


def _set_batch(arguments: list[Any], problem: Problem, batch: int) -> None:
    """Put a batch into MetaSchedule's description of a call's arguments, of those that have one."""
    known = (*problem.arguments(), *problem.scratch())  # scratch memory on GPUs alone
    for (_, _, shape), argument in zip(arguments, known, strict=False):
        if argument.has_batch:
            shape[0] = batch


class TuningDatabase:
    """A folder of records, open for one writer; a context manager.

    Everything is on disk when the method that writes it returns. A writer that is killed leaves at most one
    torn line, which the next one cuts off. Lines are written here, and not by TVM's JSONDatabase: that one
    replays every trace that there is when it is opened, which takes minutes for some thousand of them.
    """

    def __init__(self, folder: Path, target: NATarget) -> None:
        self.folder, self.target = Path(folder), target
        self._meta = Meta(target.name, features_of(target))
        self._numbers: dict[str, int] = {}
        self._closing = ExitStack()

    def __enter__(self) -> TuningDatabase:
        """Open the folder; creates it.

        Raises:
            ValueError: another process writes to it, it is damaged, or its records are of another target.
        """
        with ExitStack() as stack:  # closes what it opened if the rest fails
            stack.enter_context(writing(self.folder))
            self._meta = read_meta(self.folder) or self._meta
            check_meta(self._meta, self.folder, self.target)
            _cut_off_torn_lines(self.folder)
            begin_checksums(self.folder)
            hashes = map(workload_hash, lines_of(self.folder / WORKLOADS))
            self._numbers = {key: number for number, key in enumerate(hashes) if key is not None}
            write_meta(self.folder, self._meta)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def register(self, mod: Any) -> Any:
        """MetaSchedule's Workload of an IRModule, which is now known by name.

        Its "main" is for a batch of 1, and has the attributes ``tvm_na.problem`` and ``tvm_na.formulation``.
        """
        from tvm.s_tir.meta_schedule.database import Workload

        workload, key = Workload(mod), structural_hash(mod)
        if key not in self._numbers:
            append(self.folder / WORKLOADS, line_of(workload.as_json()) + b"\n")
            self._numbers[key] = len(self._numbers)
        self._meta.describe(key, mod["main"].attrs, now())
        write_meta(self.folder, self._meta)
        return workload

    def commit(
        self,
        workload: Any,
        trace: Any,
        run_secs: Sequence[float],
        threads: int,
        args_info: Any = None,
        batch: int = 1,
    ) -> None:
        """Keep one finished measurement of a workload of :meth:`register`: seconds of every repeat, at least one.

        ``args_info`` is MetaSchedule's ArgInfo of the arguments, with a batch of 1; found out where it is None. The
        record has ``batch`` in its arguments.

        Raises:
            ValueError: a time is not positive and finite, or there is none.
        """
        seconds = list(checked_seconds(run_secs))
        problem = problem_from_json(str(workload.mod["main"].attrs["tvm_na.problem"]))
        spec, arguments = _target_and_arguments(workload, self.target.tvm_target(threads), args_info)
        arguments = [[kind, dtype, list(shape)] for kind, dtype, shape in arguments]
        _set_batch(arguments, problem, batch)
        key = structural_hash(workload.mod)
        line = line_of([self._numbers[key], [trace_as_json(trace), seconds, spec, arguments]])
        add_checksums(self.folder, [checksum_of(key, line)])
        append(self.folder / RECORDS, line + b"\n")

    @property
    def machine(self) -> Machine:
        """Where the last session measured."""
        return machine_of(self._meta.sessions[-1:])

    def begin_session(self, **facts: Any) -> int:
        """Note in ``meta.json`` that tuning begins: date, machine, versions and ``facts``; its number, from 0."""
        machine = {"cpu": cpu_name(), "cores": settings.available_cores()}
        self._meta.sessions.append({"date": now(), **machine, "versions": fingerprint.versions(), **facts})
        write_meta(self.folder, self._meta)
        return len(self._meta.sessions) - 1

    def end_session(self, **facts: Any) -> None:
        """Note its end, and ``facts``, with the session that was begun last."""
        self._meta.sessions[-1].update({"end": now(), **facts})
        write_meta(self.folder, self._meta)
