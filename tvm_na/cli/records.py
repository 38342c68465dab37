"""``tvm-na records``: what was tuned, and its maintenance."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_na.cli import options
from tvm_na.cli.common import console, records_folder, reports_errors, say, section, warn

if TYPE_CHECKING:
    from tvm_na.records.maintain import Removed
    from tvm_na.records.record import Record
    from tvm_na.tune.remeasure import Outcome
    from tvm_na.tune.verify import Verified

app = typer.Typer(help="The tuning records: what was measured, and their maintenance.", no_args_is_help=True)

Folders = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[FOLDER]...", help="Folders of records; the user's and the shipped one if not given."),
]
Folder = Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="Folder of records; the user's if not given.")]


def _folders(given: Sequence[Path] | None) -> list[Path]:
    """Existing folders: those that were given, or the user's and the shipped one, as far as TVM_NA_RECORDS has them."""
    from tvm_na import settings
    from tvm_na.jit.build import current_target
    from tvm_na.records.files import shipped_folder, user_folder

    if given:
        return [records_folder(folder) for folder in given]
    name, mode = current_target().name, settings.records_mode()
    folders = {"user": [user_folder(name)], "shipped": [shipped_folder(name)]}
    return [f for f in folders.get(mode, [*folders["user"], *folders["shipped"]]) if f.is_dir()]


def _records(folders: Sequence[Path]) -> list[Record]:
    """The records of the folders; says so if there are none."""
    from tvm_na.records.read import records_in

    records = [record for folder in folders for record in records_in(folder)]
    if not records:
        say(f"no tuning records in {', '.join(map(str, folders)) or 'any folder, the shipped one included'}")
    return records


def _groups(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each problem, number of threads, batch and folder, the fastest first."""
    from tvm_na.records.record import grouped

    groups = grouped(records, lambda record: (str(record.problem), record.threads, record.batch, record.folder))
    return [sorted(groups[key], key=lambda record: record.seconds) for key in sorted(groups)]


@app.command("ls")
@reports_errors
def records_ls(
    folders: Folders = None,
    check: Annotated[
        bool, typer.Option("--check", help="Say what has changed since the best was measured. Needs TVM, and a while.")
    ] = False,
) -> None:
    """List the problems that were tuned: how often, the best time, its spread, and what it gains over the default."""
    from rich.table import Table

    from tvm_na.measure.timing import format_time
    from tvm_na.records.replay import change_since

    where, out = _folders(folders), console()
    groups = _groups(_records(where))
    batched = ["batch"] if any(records[0].batch > 1 for records in groups) else []
    checked = ["since then"] if check else []
    for folder in where if groups else []:
        columns = ("problem", "threads", *batched, "records", "best", "spread", "gain", "date", *checked)
        table = Table(*columns, title=str(folder), title_justify="left")
        for best, *others in groups:
            if best.folder == folder:
                conditions = [best.threads, *([best.batch] if batched else []), 1 + len(others)]
                figures = (format_time(best.seconds), f"{best.spread:.0%}", _gain(best), best.date[:10] or "?")
                state = [change_since(best) or "ok"] if check else []
                table.add_row(str(best.problem), *map(str, conditions), *figures, *state)
        out.print(table)
    if groups:
        out.print(
            "best: the median of its repeats; spread: their interquartile range over it; gain: the default's over it"
        )


def _gain(record: Record) -> str:
    return "?" if record.default_seconds is None else f"{record.default_seconds / record.seconds:.2f}x"


@app.command("best")
@reports_errors
def records_best(folders: Folders = None) -> None:
    """Describe the fastest schedule of every problem: formulation, sketch, tunable parameters. Needs TVM."""
    from tvm_na.measure.timing import format_time
    from tvm_na.records.replay import describe_record
    from tvm_na.records.select import describe_conditions

    for best, *_ in _groups(_records(_folders(folders))):
        conditions = describe_conditions(best.target, best.threads, best.batch)
        rows: list[tuple[object, ...]] = [("record", f"{best.digest}, {best.place}")]
        rows += [("" if number else "schedule", part) for number, part in enumerate(describe_record(best).split("; "))]
        section(f"{best.problem}, {conditions}: {format_time(best.seconds)}", rows)


@app.command("merge")
@reports_errors
def records_merge(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Folders of records.")],
    into: Annotated[Path, typer.Option(help="Folder that gets them; created if it does not exist.")],
) -> None:
    """Add the records of folders to another one, all of it compact. A schedule that it has keeps its shortest time.

    The tuner's journal is not merged, so that ``tvm-na report`` of the folder tells of its own sessions only.
    """
    from tvm_na.records.maintain import merge

    added, refused = merge(_folders(sources), into)
    for what in refused:
        warn(what)
    typer.echo(f"{added} records added to {into}")


@app.command("prune")
@reports_errors
def records_prune(
    folder: Folder = None,
    keep: Annotated[int, typer.Option(min=1, help="Records to keep of each problem and number of threads.")] = 3,
    stale: Annotated[
        bool, typer.Option("--stale", help="Keep no record of a kernel that has changed since. Needs TVM.")
    ] = False,
    yes: options.Yes = False,
) -> None:
    """Keep the fastest records alone, and these compact: what was decided and measured, without traces."""
    from tvm_na.records import maintain

    where = records_folder(folder)
    is_current = _is_current if stale else lambda record: True
    removed = maintain.prune(where, keep, is_current, dry_run=True)
    if not (removed.records or removed.lines or maintain.is_tuners(where)):
        typer.echo(f"nothing to remove from {where}")
        return
    if not yes:
        _show_removed(removed, "would be removed")
        typer.confirm(f"Remove them from {where}?", abort=True)
    _show_removed(maintain.prune(where, keep, is_current), "removed")


def _is_current(record: Record) -> bool:
    from tvm_na.records.replay import change_since

    return change_since(record) is None


def _show_removed(removed: Removed, what: str) -> None:
    for reason in removed.refused:
        warn(reason)
    for problem, count in sorted(Counter(str(record.problem) for record in removed.records).items()):
        typer.echo(f"{problem}: {count} records {what}")
    typer.echo(f"in all {len(removed.records)} records, {removed.lines} lines without a measurement {what}")


@app.command("repair")
@reports_errors
def records_repair(folder: Folder = None) -> None:
    """Take the records of a folder as they are, damaged, edited or of a kernel that was another one. Needs TVM.

    Checksums are made anew. Of a JSONDatabase without a meta.json it is found out what its records are about; compact
    records name the kernels that they mean now.
    """
    from tvm_na.records.maintain import repair

    where = records_folder(folder)
    known, renamed = repair(where)
    typer.echo(f"{known} workloads of {where} are known now that were not, {renamed} records name another kernel")


@app.command("verify")
@reports_errors
def records_verify(
    folders: Folders = None,
    sample: Annotated[int, typer.Option(min=1, help="Number of records to measure, drawn among the fastest.")] = 8,
    threshold: Annotated[float, typer.Option(min=1.0, help="Times the recorded time that count as too slow.")] = 1.5,
    seed: options.Seed = 0,
) -> None:
    """Measure a sample of the fastest records again; exit code 1 if one is wrong, too slow or does not apply.

    Kernels are built as any other, checked against the reference in float64 and timed on this machine.
    """
    from tvm_na.jit.build import current_target
    from tvm_na.tune.verify import draw, verify

    records = _records(_folders(folders))
    if not records:
        return
    drawn, left_out = draw(records, current_target(), sample, seed)
    if left_out:
        warn(f"{left_out} records with more threads than this machine has cores are left out")
    results = [verify(record) for record in drawn]
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
        table.add_row(*about, *times, result.failure or result.change or ("too slow" if style else "ok"), style=style)
    console().print(table)
    bad = sum(result.is_bad(threshold) for result in results)
    console().print(
        f"{len(results)} measured, {bad} wrong, changed, inapplicable or more than {threshold:g} times slower"
    )


@app.command("remeasure")
@reports_errors
def records_remeasure(
    folder: Folder = None,
    count: Annotated[int, typer.Option(min=1, help="Records to measure of each problem and number of threads.")] = 6,
    keep: Annotated[int, typer.Option(min=1, help="Records to keep of them.")] = 1,
    rounds: Annotated[int, typer.Option(min=3, help="Samples of every candidate.")] = 200,
    output: Annotated[Path | None, typer.Option(help="JSON file to write the times to.")] = None,
    yes: options.Yes = False,
) -> None:
    """Measure the fastest records of each problem, in turns with the default; keep the winners with these times.

    Of many that are about as fast, the first is the one whose measurement erred the most; measured again, it is not.
    """
    import statistics

    from tvm_na.measure.timing import format_speedup, format_time
    from tvm_na.tune import remeasure

    where = records_folder(folder)
    if not yes:
        typer.confirm(f"Replace all records in {where} by the winners?", abort=True)
    outcomes = []
    for outcome in remeasure.remeasure(where, count, rounds):
        outcomes.append(outcome)
        default = statistics.median(outcome.default)
        best = format_time(default / outcome.gain)
        gain = f"{format_time(default)} by default, {best}: {format_speedup(outcome.gain)}"
        batch = f", batch {outcome.batch}" if outcome.batch > 1 else ""
        typer.echo(f"{outcome.problem}, threads {outcome.threads}{batch}: {gain}")
        for failure in outcome.failures:
            warn(failure)
    kept = remeasure.keep(where, outcomes, keep)
    if output is not None:
        output.write_text(json.dumps([_outcome(o) for o in outcomes], indent=1) + "\n", encoding="utf-8")
    typer.echo(f"{kept} records kept in {where}")


def _outcome(outcome: Outcome) -> dict[str, object]:
    """For JSON: median and shortest seconds."""
    import statistics

    def times(samples: Sequence[float]) -> dict[str, float]:
        return {"minimum": min(samples), "median": statistics.median(samples)}

    records = [{"record": record.digest, **times(samples)} for record, samples in outcome.records]
    about = {"problem": str(outcome.problem), "threads": outcome.threads, "batch": outcome.batch, "gain": outcome.gain}
    return {**about, "default": times(outcome.default), "records": records}
