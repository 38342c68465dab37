"""``tvm-na report``: a folder of tuning records as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_na.cli.common import console, records_folder, reports_errors, say


@reports_errors
def report(
    target: Annotated[str | None, typer.Option(help="Target of the records; the current one if not given.")] = None,
    records: Annotated[Path | None, typer.Option(help="Folder of records; the user's if not given.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("tvm-na-report"),
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure this machine's rates, or take an earlier report's.")
    ] = True,
    open_page: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
) -> None:
    """Write a page about tuning: curves, bounds, the cost model, the best schedules described. Needs TVM.

    The page needs nothing beside it; its pictures are also written as files.
    """
    from tvm_na.report.page import write_report

    if target is not None and records is not None:
        raise ValueError(f"target: required without --records, got {target} and {records}")
    folder = records_folder(records, target)
    with console().status("measuring and drawing" if measure else "drawing"):
        page = write_report(folder, output, measure)
    say(f"written: {page}")
    if open_page:
        typer.launch(str(page))
