"""The command line. Commands import what is slow themselves, so that ``--help`` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from tvm_na import __version__
from tvm_na.cli import bench, check, compile, info, options, records, report, run, serve, tune
from tvm_na.cli.common import console, reports_errors, say, size_of

app = typer.Typer(
    name="tvm-na",
    help="Neighborhood attention, compiled by TVM for the hardware at hand.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
cache_app = typer.Typer(help="The compiled kernels on disk.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
app.add_typer(bench.app, name="bench")
app.add_typer(records.app, name="records")
app.command()(check.check)
app.command("compile")(compile.compile_model)
app.command()(info.info)
app.command()(report.report)
app.command()(run.run)
app.command()(serve.serve)
app.command()(tune.tune)


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


@cache_app.command("ls")
@reports_errors
def cache_ls() -> None:
    """List the compiled kernels."""
    from rich.table import Table

    from tvm_na import settings
    from tvm_na.jit import cache

    kernels = cache.entries()
    if not kernels:
        return say(f"no kernels in {settings.cache_dir()}")
    table = Table("problem", "target", "size", "modified")
    for entry in sorted(kernels, key=lambda e: (e.target, e.problem)):
        table.add_row(entry.problem, entry.target, size_of(entry.bytes), f"{entry.modified:%Y-%m-%d %H:%M}")
    console().print(table)
    return None


@cache_app.command("clear")
@reports_errors
def cache_clear(yes: options.Yes = False) -> None:
    """Delete every compiled kernel."""
    from tvm_na import settings
    from tvm_na.jit import cache

    kernels = cache.kernel_files()
    if kernels and not yes:
        size = size_of(sum(file.lstat().st_size for file in kernels))
        typer.confirm(f"Delete {len(kernels)} kernels, {size}, in {settings.cache_dir()}?", abort=True)
    typer.echo(f"{cache.clear()} kernels deleted")
