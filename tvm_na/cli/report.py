"""``tvm-na report``: a folder of tuning records as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_na.cli.common import console, reports_errors, say


@reports_errors
def report(
    target: Annotated[str | None, typer.Option(help="Whose records; default: TVM_NA_TARGET, or this machine.")] = None,
    records: Annotated[Path | None, typer.Option(help="Folder of records; default: the user's of the target.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("tvm-na-report"),
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure this machine's rates, or take an earlier report's.")
    ] = True,
    open_page: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
) -> None:
    """Write a page about tuning: curves, bounds, the cost model, the best schedules in words. Takes TVM.

    The page needs nothing beside it; its pictures are also written as files.
    """
    from tvm_na.report.page import write_report

    if target is not None and records is not None:
        raise ValueError(f"target: required without --records, got {target} and {records}")
    folder = _users(target) if records is None else records
    if not folder.is_dir():
        raise FileNotFoundError(f"records: required an existing folder, got {folder}")
    with console().status("measuring and drawing" if measure else "drawing"):
        page = write_report(folder, output, measure)
    say(f"written: {page}")
    if open_page:
        typer.launch(str(page))


def _users(target: str | None) -> Path:
    """The folder of the user's records of a target; ValueError, with a hint, if there is none."""
    from tvm_na import settings
    from tvm_na.records.files import shipped_folder, user_folder
    from tvm_na.targets.target import parse_target

    name = parse_target(target or settings.target_name()).name
    folder, shipped = user_folder(name), shipped_folder(name)
    if not folder.is_dir():
        hint = f"; --records {shipped} reports those that came with tvm_na" if shipped.is_dir() else ""
        raise ValueError(f"records: required records of {name}, got none in {folder}{hint}")
    return folder
