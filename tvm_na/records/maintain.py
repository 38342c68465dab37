"""Maintenance of tuning records: merging folders, pruning one, finding out what a bare JSONDatabase is about.

What is kept is compact, in one file that is put into place at once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tvm_na.records.checksums import begin_checksums
from tvm_na.records.compact import write_compact
from tvm_na.records.files import CHECKSUMS, COMPACT, META, RECORDS, WORKLOADS, lines_of, workload_hash, writing
from tvm_na.records.meta import Meta, check_meta, features_of, read_meta, write_meta
from tvm_na.records.read import compact_records_in, parse_line, records_in
from tvm_na.records.record import Record, best_of
from tvm_na.records.rejections import InapplicableError
from tvm_na.records.write import now
from tvm_na.targets.target import NATarget, name_of_spec, parse_target

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Removed:
    """What pruning removes.

    Attributes:
        records: Those that others are faster than, that may not be kept, or do not apply.
        refused: Of the last, the reasons in words.
        lines: Lines that are no measured schedules: failures, and what cannot be read.
    """

    records: tuple[Record, ...]
    refused: tuple[str, ...]
    lines: int


def is_tuners(folder: Path) -> bool:
    """Whether a folder has a JSONDatabase, as the tuner writes it."""
    return (folder / RECORDS).exists()


def target_of(folder: Path) -> NATarget:
    """The target of a folder of records.

    Raises:
        ValueError: it has no records, or of several targets, or a JSONDatabase without a meta.json.
    """
    meta = read_meta(folder)
    if meta is None and is_tuners(folder):
        what = "a meta.json beside the records (see tvm-na records repair)"
        raise ValueError(f"records: required {what}, got {folder}")
    names = {record.target for record in compact_records_in(folder)} | ({meta.target} if meta else set())
    if len(names) != 1:
        got = f" with those of {' and '.join(sorted(names))}" if names else ""
        raise ValueError(f"records: required a folder of records of one target, got {folder}{got}")
    target = parse_target(names.pop())
    if meta is not None:
        check_meta(meta, folder, target)
    return target


def merge(sources: Sequence[Path], into: Path) -> tuple[int, list[str]]:
    """Add the measured records of folders to another one, which is created where there is none, and has compact ones.

    A schedule that is there already, or comes more than once, is kept with its shortest time. What the tuner wrote into
    ``into`` becomes compact too. (Imports TVM where a folder is the tuner's.)

    Returns:
        How many records the folder has more than before, and which do not apply and are left out, in words.

    Raises:
        ValueError: a source has no records, or targets differ, or another process writes to ``into``.
    """
    targets = [target_of(source) for source in sources]
    if not targets:
        raise ValueError("sources: required at least one folder, got none")
    for source, target in zip(sources, targets, strict=True):
        _check_target(source, target, targets[0])
    with writing(into):
        if is_tuners(into) or (into / META).exists() or (into / COMPACT).exists():
            _check_target(into, target_of(into), targets[0])
        before = records_in(into)
        given, refused = _compact([*before, *(record for source in sources for record in records_in(source))])
        kept: dict[str, Record] = {}
        for record in given.values():
            known = kept.get(record.digest)
            if known is None or record.seconds_per_sample < known.seconds_per_sample:
                kept[record.digest] = record
        keep_compact(into, list(kept.values()))
    return len(kept) - len(before), refused


def _check_target(folder: Path, target: NATarget, wanted: NATarget) -> None:
    if target != wanted:
        raise ValueError(f"records: required records of {wanted.name} in {folder}, got {target.name}")


def _compact(records: Iterable[Record]) -> tuple[dict[str, Record], list[str]]:
    """Records as compact ones, by the places where they lay, and which do not apply, in words.

    Compact ones stay as they are.
    """
    from tvm_na.records.replay import noted

    found, refused = {}, []
    for record in records:
        try:
            found[record.place] = record if record.is_compact else noted(record)
        except InapplicableError as error:
            refused.append(f"{record.place}, {record.problem}: left out, {error}")
    return found, refused


def prune(
    folder: Path, keep: int, is_current: Callable[[Record], bool] = lambda record: True, dry_run: bool = False
) -> Removed:
    """Remove all but the ``keep`` fastest records of every problem and number of threads; these become compact.

    (Imports TVM where the folder is the tuner's.)

    Args:
        folder: The folder.
        keep: How many.
        is_current: Which records may be kept at all.
        dry_run: Whether only to say what would be removed.

    Raises:
        ValueError: there are no records, or another process writes to the folder.
    """
    if keep < 1:
        raise ValueError(f"keep: required an integer >= 1, got {keep}")
    target_of(folder)
    with writing(folder):
        records = records_in(folder)
        kept, refused = _compact(best_of(filter(is_current, records), keep))
        removed = Removed(
            tuple(record for record in records if record.place not in kept),
            tuple(refused),
            len(lines_of(folder / RECORDS)) + len(lines_of(folder / COMPACT)) - len(records),
        )
        if not dry_run:
            in_order = [kept[record.place] for record in records if record.place in kept]
            keep_compact(folder, list({record.digest: record for record in in_order}.values()))
    return removed


def keep_compact(folder: Path, records: Sequence[Record]) -> None:
    """Make compact ``records``, in their order, all that ``folder`` holds; it is open to this writer alone.

    The tuner's JSONDatabase goes; what ``meta.json`` says of its sessions stays. Killed in between, both are there, and
    a record is as good twice.
    """
    write_compact(folder, records)
    for name in (RECORDS, WORKLOADS, CHECKSUMS):
        (folder / name).unlink(missing_ok=True)
    meta = read_meta(folder)
    if meta is not None and meta.workloads:
        write_meta(folder, replace(meta, workloads={}))


def repair(folder: Path) -> tuple[int, int]:
    """Take the records of a folder as they are, whatever their checksums were, and note what they are about.

    Of a JSONDatabase without a ``meta.json``, or with one that does not know all workloads, TVM reads this from the
    workloads. Compact records that apply get the names of the expression and the kernel that they mean now.

    Returns:
        How many workloads are known now that were not, and how many compact records name another kernel than before.

    Raises:
        ValueError: there are no records, a workload is none of tvm_na's, or its records are of several targets or an
            unknown one.
    """
    if not (is_tuners(folder) or (folder / COMPACT).exists()):
        raise ValueError(f"records: required a JSONDatabase ({RECORDS} and its workloads) or {COMPACT}, got {folder}")
    with writing(folder):
        known = _repair_database(folder) if is_tuners(folder) else 0
        return known, _repair_compact(folder) if (folder / COMPACT).exists() else 0


def _repair_compact(folder: Path) -> int:
    from tvm_na.records.replay import noted

    kept, changed = [], 0
    for record in compact_records_in(folder, as_they_are=True):
        try:
            kept.append(noted(record))
            changed += kept[-1].kernel != record.kernel
        except InapplicableError as error:
            _log.warning("%s: it does not apply: %s", record.place, error)
            kept.append(record)
    write_compact(folder, kept)
    return changed


def _repair_database(folder: Path) -> int:
    from tvm.s_tir.meta_schedule.database import Workload

    target = _target_of_lines(folder)
    meta = _meta_or_new(folder, target)
    unknown = [line for line in lines_of(folder / WORKLOADS) if workload_hash(line) not in {None, *meta.workloads}]
    for line in unknown:
        key = str(workload_hash(line))
        try:
            attrs = Workload.from_json(json.loads(line)).mod["main"].attrs
        except Exception as error:  # TVM's errors have no class in common
            raise ValueError(f"records: required workloads that TVM can read in {folder}, got {key}") from error
        if not attrs or "tvm_na.problem" not in attrs:
            raise ValueError(f"records: required workloads of tvm_na in {folder}, got {key}")
        meta.describe(key, attrs, now())  # this TVM can read it
    write_meta(folder, meta)
    begin_checksums(folder, anew=True)
    return len(unknown)


def _meta_or_new(folder: Path, target: NATarget) -> Meta:
    try:
        meta = read_meta(folder)
    except ValueError as damage:
        _log.warning("%s; it is made anew", damage)
        meta = None
    meta = meta or Meta(target.name, features_of(target))
    check_meta(meta, folder, target)
    return meta


def _target_of_lines(folder: Path) -> NATarget:
    specs: list[dict[str, Any]] = []
    for number, line in enumerate(lines_of(folder / RECORDS), 1):
        try:
            specs.append(parse_line(line)[3])
        except ValueError as damage:
            _log.warning("%s, line %d: skipped, %s", folder / RECORDS, number, damage)
    names = {name_of_spec(spec) for spec in specs}
    if len(names) != 1 or None in names:
        got = ", ".join(sorted(name or "an unknown one" for name in names)) or "none"
        raise ValueError(f"records: required records of one known target in {folder}, got {got}")
    return parse_target(str(names.pop()))
