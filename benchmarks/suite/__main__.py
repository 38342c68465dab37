"""Every number of docs/BENCHMARKS.md: ``python -m benchmarks.suite [--quick]``, and ``... report FOLDER``.

Each case runs in a process of its own and is written as it ends: the same command with the same folder goes on where it
was. Peers are what PyTorch has, NATTEN and natten-mps where they are installed, Swin-T and ConvNeXt-T of timm where it
can be imported, else of transformers.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.common import RESULTS, Device, start
from benchmarks.suite.cases import MAIN_DTYPE, Setting
from benchmarks.suite.parts import PARTS
from benchmarks.suite.runner import carry_out
from benchmarks.suite.store import Store, described_machine

app = typer.Typer(help=__doc__, pretty_exceptions_enable=False, add_completion=False)
FOLDER = Path("build/bench")
ROOT = Path(__file__).parents[2]
PUBLISHED = RESULTS / "suite"


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    device: Device = "cpu",
    only: Annotated[list[str] | None, typer.Option(help=f"A part, may be repeated: {', '.join(PARTS)}.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A rehearsal of tiny sizes, under a minute.")] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="What tensors are in; float32 on a CPU if none, else float16. Another has fewer cases."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where results are kept; build/bench if none.")] = None,
) -> None:
    """Measure what is not in the folder yet. Exits with 1 if a case failed."""
    if context.invoked_subcommand is not None:
        return
    unknown = [name for name in only or () if name not in PARTS]
    if unknown:
        raise typer.BadParameter(f"only: required one of {', '.join(PARTS)}, got {', '.join(unknown)}")
    console = Console()
    start(device, console)
    folder = output or FOLDER.with_name(
        f"bench-{device}{'-quick' if quick else ''}" if quick or device != "cpu" else "bench"
    )
    setting = Setting(device, quick, folder, dtype or MAIN_DTYPE[device])
    begun = time.perf_counter()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("")
        show = lambda name, done, total: progress.update(bar, description=name, completed=done, total=total)  # noqa: E731
        parts = [PARTS[name] for name in (only or PARTS)]
        failed = carry_out(parts, setting, Store(described_machine(device), setting), show)
    for failure in failed:
        console.print(failure, style="yellow", markup=False)
    console.print(f"results: {folder}, after {time.perf_counter() - begun:.0f} s", markup=False)
    raise typer.Exit(1 if failed else 0)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Where results are.")] = PUBLISHED,
    publish: Annotated[bool, typer.Option("--publish", help="Keep them, and renew docs and README.")] = False,
) -> None:
    """Write report.md with tables, and pictures; with --publish those of the repository.

    What is published is what the folder has, beside what was published before.
    """
    from benchmarks.suite.report.pictures import draw
    from benchmarks.suite.report.render import page, with_numbers
    from benchmarks.suite.report.results import Results, files_of

    results = Results.read(folder)
    if not files_of(folder):
        raise typer.BadParameter(f"folder: required results of the suite, got none in {folder}")
    if publish:
        if results.has_rehearsals:
            raise typer.BadParameter(f"folder: required no rehearsal to publish, got {folder}")
        PUBLISHED.mkdir(parents=True, exist_ok=True)
        for measured in files_of(folder):
            if folder.resolve() != PUBLISHED.resolve():
                shutil.copyfile(measured, PUBLISHED / measured.name)
        results = Results.read(PUBLISHED)
    draw(results, ROOT / "docs" / "pictures" if publish else folder / "pictures")
    file = ROOT / "docs" / "BENCHMARKS.md" if publish else folder / "report.md"
    file.write_text(page(results), encoding="utf-8")
    if publish:
        readme = ROOT / "README.md"
        readme.write_text(with_numbers(readme.read_text(encoding="utf-8"), results), encoding="utf-8")
    typer.echo(file)


if __name__ == "__main__":
    app()
