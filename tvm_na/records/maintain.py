"""Maintenance of tuning records: merging folders, pruning one, finding out what a bare JSONDatabase is about.

Each writes all of a folder anew and puts it into place at once; traces stay as they are.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_na.records.checksums import add_checksums, begin_checksums, checksum_of
from tvm_na.records.files import RECORDS, data_files, read_lines, replace_files, workload_hash, writing
from tvm_na.records.meta import Meta, read_meta
from tvm_na.records.read import Record, grouped, parse_line, records_in
from tvm_na.records.write import check_meta, features_of, line_of, now, write_meta
from tvm_na.targets.target import NATarget, name_of_spec, parse_target

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Removed:
    """What pruning removes.

    Attributes:
        workloads: The workloads that none of the remaining records belongs to, by structural hash.
        lines: Lines of the records file that are no measured schedules: failures, and what cannot be read.
    """

    records: tuple[Record, ...]
    workloads: tuple[str, ...]
    lines: int


def meta_of(folder: Path) -> Meta:
    """A folder's meta.json; ValueError without one."""
    meta = read_meta(folder)
    if meta is None:
        bare = data_files(folder)[1].exists()
        what = "a meta.json beside the records (see tvm-na records repair)" if bare else "a folder of records"
        raise ValueError(f"records: required {what}, got {folder}")
    return meta


def best_of(records: Iterable[Record], keep: int = 1) -> list[Record]:
    """The ``keep`` fastest records of every problem and number of threads, over all formulations."""
    groups = grouped(records, lambda record: (record.problem, record.threads)).values()
    return [r for group in groups for r in sorted(group, key=lambda r: r.seconds_per_sample)[:keep]]


def merge(sources: Sequence[Path], into: Path) -> int:
    """Add the measured records of folders to another one, which is created where there is none.

    A schedule that is there already, or comes more than once, is kept with its shortest time.

    Returns:
        How many records the folder has more than before.

    Raises:
        ValueError: a source has no records with a meta.json, or targets differ, or another process writes to
            ``into``.
    """
    metas = [meta_of(source) for source in sources]
    if not metas:
        raise ValueError("sources: required at least one folder, got none")
    target = parse_target(metas[0].target)
    for source, meta in zip(sources, metas, strict=True):
        check_meta(meta, source, target)
    with writing(into):
        meta = read_meta(into) or Meta(target.name, features_of(target))
        check_meta(meta, into, target)
        before = records_in(into)
        kept: dict[str, Record] = {}
        for record in [*before, *(r for source in sources for r in records_in(source))]:
            known = kept.get(record.digest)
            if known is None or record.seconds_per_sample < known.seconds_per_sample:
                kept[record.digest] = record
        for other in metas:
            meta.add(other)
        write_meta(into, meta)  # before there are records of new workloads
        rewrite(into, list(kept.values()), meta)
    return len(kept) - len(before)


def prune(
    folder: Path, keep: int, is_current: Callable[[Record], bool] = lambda record: True, dry_run: bool = False
) -> Removed:
    """Remove all but the ``keep`` fastest records of every problem and number of threads, and workloads without any.

    ``is_current`` says which records may be kept at all. With ``dry_run`` nothing is removed.

    Raises:
        ValueError: there is no meta.json, or another process writes to the folder.
    """
    if keep < 1:
        raise ValueError(f"keep: required an integer >= 1, got {keep}")
    meta = meta_of(folder)
    with writing(folder):
        records = records_in(folder)
        kept = best_of([record for record in records if is_current(record)], keep)
        lines = {record.line for record in kept}
        used = {record.workload for record in kept}
        all_workloads, all_lines = read_lines(folder)
        hashes = {key for line in all_workloads if (key := workload_hash(line)) is not None}
        removed = Removed(
            tuple(record for record in records if record.line not in lines),
            tuple(sorted({*hashes, *meta.workloads} - used)),
            len(all_lines) - len(records),
        )
        if not dry_run:
            rewrite(folder, sorted(kept, key=lambda r: r.line), meta)
    return removed


def rewrite(folder: Path, records: Sequence[Record], meta: Meta) -> None:
    """Make ``records``, of this folder and others, all that ``folder`` holds; in their order, with the times they have.

    The folder is open to this writer alone (:func:`tvm_na.records.files.writing`); ``meta``, its own, knows all their
    workloads, and loses the others.
    """
    sources = {source: read_lines(source) for source in {record.folder for record in records}}
    workloads = {workload_hash(line): line for lines, _ in sources.values() for line in lines}
    numbers = {key: number for number, key in enumerate(dict.fromkeys(record.workload for record in records))}
    lines = []
    for record in records:
        entry = json.loads(sources[record.folder][1][record.line - 1])
        entry[0], entry[1][1] = numbers[record.workload], list(record.run_secs)
        lines.append(line_of(entry))
    begin_checksums(folder)
    add_checksums(folder, map(checksum_of, (record.workload for record in records), lines))
    replace_files(folder, [workloads[key] for key in numbers], lines)
    meta.workloads = {key: about for key, about in meta.workloads.items() if key in numbers}
    write_meta(folder, meta)


def repair(folder: Path) -> int:
    """Write the ``meta.json`` of a JSONDatabase that has none, or one that does not know all workloads.

    Loads the workloads with TVM and reads the attributes of their PrimFuncs. Records count as they are from then on,
    whatever their checksums were.

    Returns:
        How many workloads are known now that were not.

    Raises:
        ValueError: there is no JSONDatabase, a workload is none of tvm_na's, or its records are of several targets
            or an unknown one.
    """
    from tvm.s_tir.meta_schedule.database import Workload

    if not data_files(folder)[1].exists():
        raise ValueError(f"records: required a JSONDatabase ({RECORDS} and its workloads), got {folder}")
    with writing(folder):
        target = _target_of_lines(folder)
        meta = _meta_or_new(folder, target)
        unknown = [line for line in read_lines(folder)[0] if workload_hash(line) not in {None, *meta.workloads}]
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
    for number, line in enumerate(read_lines(folder)[1], 1):
        try:
            specs.append(parse_line(line)[3])
        except ValueError as damage:
            _log.warning("%s, line %d: skipped, %s", folder / RECORDS, number, damage)
    names = {name_of_spec(spec) for spec in specs}
    if len(names) != 1 or None in names:
        got = ", ".join(sorted(name or "an unknown one" for name in names)) or "none"
        raise ValueError(f"records: required records of one known target in {folder}, got {got}")
    return parse_target(str(names.pop()))
