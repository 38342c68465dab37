"""``tvm-na records``: what was tuned, and its upkeep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_na.cli.common import console, fail, reports_errors, warn

if TYPE_CHECKING:
    from tvm_na.records.maintain import Removed
    from tvm_na.records.read import Record
    from tvm_na.tune.remeasure import Outcome
    from tvm_na.tune.verify import Verified

app = typer.Typer(help="The tuning records: what was measured, and their upkeep.", no_args_is_help=True)

Folders = Annotated[
    list[Path] | None, typer.Argument(metavar="[FOLDER]...", help="Of records; default: the user's and the shipped.")
]
Folder = Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="Of records; default: the user's.")]


def _folders(given: Sequence[Path] | None) -> list[Path]:
    """Existing folders: those that were given, or the user's and the shipped one, as far as TVM_NA_RECORDS has them."""
    from tvm_na import settings
    from tvm_na.jit.build import current_target
    from tvm_na.records.read import shipped_folder, user_folder

    if given:
        for folder in given:
            if not folder.is_dir():
                raise FileNotFoundError(f"records: required an existing folder, got {folder}")
        return list(given)
    name, mode = current_target().name, settings.records_mode()
    folders = {"user": [user_folder(name)], "shipped": [shipped_folder(name)]}
    return [f for f in folders.get(mode, [*folders["user"], *folders["shipped"]]) if f.is_dir()]


def _users(given: Path | None) -> Path:
    """One existing folder: the one that was given, or the user's."""
    from tvm_na.jit.build import current_target
    from tvm_na.records.read import user_folder

    return _folders([user_folder(current_target().name) if given is None else given])[0]


def _groups(folders: Sequence[Path]) -> list[list[Record]]:
    """The records of each problem, number of threads, batch and folder, the fastest first."""
    from tvm_na.records.read import records_in

    groups: dict[tuple[str, int, int, Path], list[Record]] = {}
    for folder in folders:
        for record in records_in(folder):
            groups.setdefault((str(record.problem), record.threads, record.batch, folder), []).append(record)
    return [sorted(groups[key], key=lambda record: record.seconds) for key in sorted(groups)]


def _none_found(folders: Sequence[Path]) -> None:
    where = ", ".join(map(str, folders)) or "the user's folder or with tvm_na"
    console().print(f"no tuning records in {where}", markup=False, soft_wrap=True)


@app.command("ls")
@reports_errors
def records_ls(folders: Folders = None) -> None:
    """List the problems that were tuned: how often, the best time and its spread."""
    from rich.table import Table

    from tvm_na.measure.timing import format_time

    where = _folders(folders)
    groups = _groups(where)
    if not groups:
        return _none_found(where)
    out = console()
    batched = any(records[0].batch > 1 for records in groups)
    for folder in where:
        table = Table(
            *("problem", "threads", *(["batch"] if batched else []), "records", "best", "spread", "date"),
            title=str(folder),
            title_justify="left",
        )
        for records in groups:
            best = records[0]
            if best.folder == folder:
                figures = (format_time(best.seconds), f"{best.spread:.0%}", best.date[:10] or "?")
                conditions = [best.threads, *([best.batch] if batched else [])]
                table.add_row(str(best.problem), *map(str, conditions), str(len(records)), *figures)
        out.print(table)
    out.print("best: the median of its repeats; spread: their interquartile range over it")
    return None


@app.command("best")
@reports_errors
def records_best(folders: Folders = None) -> None:
    """Show the fastest schedule of every problem: formulation, sketch, parameters. Takes TVM."""
    from rich.text import Text

    from tvm_na.cli.common import rows_of
    from tvm_na.measure.timing import format_time
    from tvm_na.records.select import conditions_in_words

    where = _folders(folders)
    groups = _groups(where)
    if not groups:
        return _none_found(where)
    out = console()
    for records in groups:
        best = records[0]
        conditions = conditions_in_words(best.target, best.threads, best.batch)
        title = f"{best.problem}, {conditions}: {format_time(best.seconds)}"
        out.print(Text(title, style="bold cyan"), soft_wrap=True)
        rows: list[tuple[object, ...]] = [("record", f"{best.digest}, {best.folder}, line {best.line}")]
        rows += [("" if number else "schedule", words) for number, words in enumerate(_described(best))]
        out.print(rows_of(rows), "")
    return None


def _described(record: Record) -> list[str]:
    from tvm_na.records.replay import point_of
    from tvm_na.records.select import InapplicableError
    from tvm_na.schedules.describe import describe
    from tvm_na.targets.target import parse_target

    try:
        sketch, parameters = point_of(record, parse_target(record.target))
    except InapplicableError as error:
        return [*describe(record.formulation), f"it no longer applies: {error}"]
    return describe(record.formulation, sketch, parameters)


@app.command("merge")
@reports_errors
def records_merge(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Folders of records.")],
    into: Annotated[Path, typer.Option(help="The folder that gets them; created where there is none.")],
) -> None:
    """Add the records of folders to another one. A schedule that it has already keeps its shortest time.

    The tuner's journal is not merged, so that ``tvm-na report`` of the folder tells of its own sessions only.
    """
    from tvm_na.records.maintain import merge

    added = merge(_folders(sources), into)
    typer.echo(f"{added} records added to {into}")


@app.command("prune")
@reports_errors
def records_prune(
    folder: Folder = None,
    keep: Annotated[int, typer.Option(min=1, help="Records that are kept of each problem and number of threads.")] = 3,
    stale: Annotated[
        bool, typer.Option("--stale", help="Keep none of expressions that have changed since. Takes TVM.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove all but the fastest records, and workloads that none is left of."""
    from tvm_na.records import maintain as upkeep

    where = _users(folder)
    is_current = _is_current if stale else lambda record: True
    removed = upkeep.prune(where, keep, is_current, dry_run=True)
    if not (removed.records or removed.workloads or removed.lines):
        typer.echo(f"nothing to remove from {where}")
        return
    if not yes:
        _show_removed(removed, "would be removed")
        typer.confirm(f"Remove them from {where}?", abort=True)
    _show_removed(upkeep.prune(where, keep, is_current), "removed")


def _is_current(record: Record) -> bool:
    from tvm_na.records.replay import workloads_of
    from tvm_na.targets.target import parse_target

    return record.workload in workloads_of(record.problem, parse_target(record.target))


def _show_removed(removed: Removed, what: str) -> None:
    counts: dict[str, int] = {}
    for record in removed.records:
        counts[str(record.problem)] = counts.get(str(record.problem), 0) + 1
    for problem, count in sorted(counts.items()):
        typer.echo(f"{problem}: {count} records {what}")
    others = f"{len(removed.workloads)} workloads, {removed.lines} lines without a measurement"
    typer.echo(f"in all {len(removed.records)} records, {others} {what}")


@app.command("repair")
@reports_errors
def records_repair(folder: Folder = None) -> None:
    """Find out what the records of a JSONDatabase without a meta.json are about. Takes TVM."""
    from tvm_na.records.maintain import repair

    where = _users(folder)
    typer.echo(f"{repair(where)} workloads of {where} are known now that were not")


@app.command("verify")
@reports_errors
def records_verify(
    folders: Folders = None,
    sample: Annotated[int, typer.Option(min=1, help="Records that are measured, drawn among the fastest.")] = 8,
    threshold: Annotated[float, typer.Option(min=1.0, help="How many times the recorded time is too slow.")] = 1.5,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
) -> None:
    """Measure a sample of the fastest records again; exit code 1 if one is wrong, too slow or does not apply.

    Kernels are built as any other, checked against the reference in float64 and timed on this machine.
    """
    from tvm_na.jit.build import current_target
    from tvm_na.records.read import records_in
    from tvm_na.tune.verify import draw, verify

    where = _folders(folders)
    records = [record for folder in where for record in records_in(folder)]
    if not records:
        _none_found(where)
        return
    drawn, left_out = draw(records, current_target(), sample, seed)
    if left_out:
        warn(f"{left_out} records with more threads than this machine has cores are left out")
    try:
        results = [verify(record) for record in drawn]
    except RuntimeError as error:  # no compiler, no place for the cache
        raise fail(str(error)) from error
    _show_verified(results, threshold)
    if any(result.is_bad(threshold) for result in results):
        raise typer.Exit(1)


def _show_verified(results: Sequence[Verified], threshold: float) -> None:
    from rich.table import Table

    from tvm_na.measure.timing import format_time

    table = Table("problem", "threads", "record", "recorded", "measured", "ratio", "")
    for result in results:
        record, seconds = result.record, result.seconds
        about = (str(record.problem), str(record.threads), record.digest[:8], format_time(record.seconds))
        times = ("", "") if seconds is None else (format_time(seconds), f"{seconds / record.seconds:.2f}")
        style = "bold red" if result.is_bad(threshold) else None
        table.add_row(*about, *times, result.failure or ("too slow" if style else "ok"), style=style)
    console().print(table)
    bad = sum(result.is_bad(threshold) for result in results)
    console().print(f"{len(results)} measured, {bad} wrong, inapplicable or more than {threshold:g} times slower")


@app.command("contest")
@reports_errors
def records_contest(
    folder: Folder = None,
    count: Annotated[int, typer.Option(min=1, help="Records of each problem and number of threads.")] = 6,
    keep: Annotated[int, typer.Option(min=1, help="Records that are kept of them.")] = 1,
    rounds: Annotated[int, typer.Option(min=3, help="Samples of each.")] = 200,
    output: Annotated[Path | None, typer.Option(help="JSON file for the times.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Measure the fastest records of each problem in turns, with the default; keep the winners, with these times.

    Of many that are about as fast, the first is the one whose measurement erred the most; measured again, it is not.
    """
    import statistics

    from tvm_na.measure.timing import format_speedup, format_time
    from tvm_na.tune import remeasure as contest

    where = _users(folder)
    if not yes:
        typer.confirm(f"Replace all records in {where} by the winners?", abort=True)
    outcomes = []
    try:
        for outcome in contest.contest(where, count, rounds):
            outcomes.append(outcome)
            default = statistics.median(outcome.default)
            best = format_time(default / outcome.gain)
            gain = f"{format_time(default)} by default, {best}: {format_speedup(outcome.gain)}"
            batch = f", batch {outcome.batch}" if outcome.batch > 1 else ""
            typer.echo(f"{outcome.problem}, threads {outcome.threads}{batch}: {gain}")
            for failure in outcome.failures:
                warn(failure)
    except RuntimeError as error:
        raise fail(str(error)) from error
    contest.keep(where, outcomes, keep)
    if output is not None:
        output.write_text(json.dumps([_outcome(o) for o in outcomes], indent=1) + "\n", encoding="utf-8")
    typer.echo(f"{sum(min(keep, len(o.records)) for o in outcomes)} records kept in {where}")


def _outcome(outcome: Outcome) -> dict[str, object]:
    """For JSON: median and shortest seconds."""
    import statistics

    def times(samples: Sequence[float]) -> dict[str, float]:
        return {"minimum": min(samples), "median": statistics.median(samples)}

    records = [{"record": record.digest, **times(samples)} for record, samples in outcome.records]
    about = {"problem": str(outcome.problem), "threads": outcome.threads, "batch": outcome.batch, "gain": outcome.gain}
    return {**about, "default": times(outcome.default), "records": records}
