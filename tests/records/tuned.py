"""Tuning records made without tuning: drawn schedules with invented times."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tvm_na.jit import build
from tvm_na.problems.registry import Problem
from tvm_na.records import index, rejections
from tvm_na.records.checksums import begin_checksums
from tvm_na.records.compact import with_checksum
from tvm_na.records.files import COMPACT, META, RECORDS
from tvm_na.records.write import TuningDatabase
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Plan, Scheduled
from tvm_na.targets.target import NATarget, detect_target


def drawn(problem: Problem, formulation: int = 0, sample: bool = True) -> tuple[Any, Scheduled]:
    """A PrimFunc of ``problem`` with a batch of 1 and a drawn (or the default) schedule of it."""
    target = detect_target()
    space = spaces_for(problem, target)[0]
    func = space.formulations(problem, target, 1)[formulation]
    scheduled = space.apply(func, target, Plan(sample=sample))
    assert scheduled is not None
    return func, scheduled


def commit_drawn(
    folder: Path,
    problem: Problem,
    milliseconds: Sequence[float] = (1.0,),
    threads: int = 1,
    formulation: int = 0,
    target: NATarget | None = None,
) -> None:
    """Commit one drawn schedule of ``problem`` for each time."""
    import tvm

    with TuningDatabase(folder, target or detect_target()) as database:
        for ms in milliseconds:
            func, scheduled = drawn(problem, formulation)
            workload = database.register(tvm.IRModule({"main": func}))
            database.commit(workload, scheduled.schedule.trace, [ms / 1e3 * f for f in (1.1, 0.9, 1.0)], threads)


def edit_meta(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what ``meta.json`` says."""
    meta = json.loads((folder / META).read_text(encoding="utf-8"))
    change(meta)
    (folder / META).write_text(json.dumps(meta), encoding="utf-8")


def edit_line(folder: Path, number: int, change: Callable[[list[Any]], None]) -> None:
    """Change one record, ``[workload, [trace, run_secs, target, args_info]]``, as if it had been written so.

    ``number`` counts from 1.
    """
    lines = (folder / RECORDS).read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[number - 1])
    change(record)
    lines[number - 1] = json.dumps(record)
    (folder / RECORDS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    begin_checksums(folder, anew=True)


def edit_compact(folder: Path, number: int, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a compact record, a JSON object, as if it had been written so; ``number`` counts from 1."""
    lines = (folder / COMPACT).read_bytes().splitlines()
    record = json.loads(lines[number - 1])
    change(record)
    del record["checksum"]
    lines[number - 1] = with_checksum(json.dumps(record).encode())
    (folder / COMPACT).write_bytes(b"".join(line + b"\n" for line in lines))


def as_users(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a folder of records of this machine's target as the user's, of a process that knows nothing yet."""
    for name, place in (("CACHE", "cache"), ("RECORDS", "user")):
        monkeypatch.setenv(f"TVM_NA_{name}_DIR", str(tmp_path / place))
    monkeypatch.setenv("TVM_NA_RECORDS", "user")
    forget(monkeypatch)
    return Path(shutil.copytree(folder, tmp_path / "user" / detect_target().name))


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be as a process that has read no records and built no kernel."""
    for owner, name in ((build, "_kernels"), (index, "_loaded"), (rejections, "_rejected")):
        monkeypatch.setattr(owner, name, {})
