"""The command line. Commands import what is slow themselves, so that ``--help`` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_na import __version__, cli_bench, cli_run
from tvm_na.cli_common import console, reports_errors, rows_of, size_of

app = typer.Typer(
    name="tvm-na",
    help="Neighborhood attention, compiled by TVM for the hardware at hand.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
cache_app = typer.Typer(help="The compiled kernels on disk.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
app.add_typer(cli_bench.app, name="bench")
app.command()(cli_run.run)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tvm-na {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
@reports_errors
def info() -> None:
    """Show the machine, the target, versions, settings, the kernel cache and the tuning records."""
    from rich.text import Text

    from tvm_na import cache, settings
    from tvm_na.benchmark import versions
    from tvm_na.target import cpu_name, parse_target

    out = console()

    def section(title: str, rows: list[tuple[object, ...]]) -> None:
        out.print(Text(title, style="bold cyan"))
        out.print(rows_of(rows), "")

    target = parse_target(settings.target_name())
    vectors = f"{target.vector_registers} vector registers of {target.vector_bytes} bytes"
    section(
        "machine",
        [
            ("cpu", cpu_name()),
            ("cores", settings.available_cores()),
            ("threads", f"{settings.num_threads()} used by kernels"),
            ("target", f"{target.name} ({target.kind}, {target.cpu}, {vectors})"),
        ],
    )
    section("versions", list(versions().items()))
    section("settings", list(settings.describe()))
    kernels = cache.entries()
    section(
        "kernel cache",
        [("folder", settings.cache_dir()), ("kernels", f"{len(kernels)}, {size_of(sum(e.bytes for e in kernels))}")],
    )
    section("tuning records", [(_records(target.name),)])


def _records(target_name: str) -> str:
    folder = Path("tuning_logs") / target_name
    found = f"{folder} exists, but " if folder.is_dir() else ""
    return f"{found}none are used by this version: they come with the tuner. Kernels have default schedules."


@cache_app.command("ls")
@reports_errors
def cache_ls() -> None:
    """List the compiled kernels."""
    from rich.table import Table

    from tvm_na import cache, settings

    kernels = cache.entries()
    if not kernels:
        console().print(f"no kernels in {settings.cache_dir()}", markup=False, soft_wrap=True)
        return
    table = Table("problem", "target", "size", "modified")
    for entry in sorted(kernels, key=lambda e: (e.target, e.problem)):
        table.add_row(entry.problem, entry.target, size_of(entry.bytes), f"{entry.modified:%Y-%m-%d %H:%M}")
    console().print(table)


@cache_app.command("clear")
@reports_errors
def cache_clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete every compiled kernel."""
    from tvm_na import cache, settings

    kernels = cache.entries()
    if kernels and not yes:
        size = size_of(sum(e.bytes for e in kernels))
        typer.confirm(f"Delete {len(kernels)} kernels, {size}, in {settings.cache_dir()}?", abort=True)
    typer.echo(f"{cache.clear()} kernels deleted")
