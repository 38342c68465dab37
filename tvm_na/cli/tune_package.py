"""``tvm-na tune --prebuild`` and ``--from``: kernels built on one machine, measured on another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from tvm_na.cli.common import console, say, size_of, warn
from tvm_na.cli.tune_progress import in_words

if TYPE_CHECKING:
    from tvm_na.packages.prebuild import PrebuildState, Which
    from tvm_na.targets.target import NATarget
    from tvm_na.tune.tasks import TuneTask


def build(tasks: Sequence[TuneTask], target: NATarget, folder: Path, jobs: int, which: Which, python: str) -> None:
    """Build the points of problems into a package, and show how far it is."""
    from tvm_na.packages.prebuild import prebuild
    from tvm_na.packages.runtime import add_runtime
    from tvm_na.tune.state import INTERRUPTED

    problems = [task.problem for task in tasks]
    with building(console()) as observer:
        package, state = prebuild(problems, target, folder, jobs=jobs, which=which, observer=observer)
    for message in state.messages:
        warn(message)
    say(f"{state.ending}: {in_words(state.elapsed)}, {progress(state)}")
    if state.ending == INTERRUPTED:
        raise typer.Exit(130)
    add_runtime(folder, python)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    say(f"{len(package.kernels)} kernels of {len(package.problems)} problems in {folder}, {size_of(size)}")
    if state.failed:
        raise typer.Exit(1)


def progress(state: PrebuildState) -> str:
    """How many kernels there are, and why there are not more."""
    reasons = (state.refused + state.failed).most_common()
    return ", ".join([f"{state.built} built", *(f"{count} {reason}" for reason, count in reasons)])


@contextmanager
def building(console: Console) -> Iterator[Callable[[PrebuildState], None]]:
    """What is to be called with the state whenever it changes: a bar on a terminal, else lines."""
    if not console.is_terminal:
        yield _line_printer(console)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}", markup=False), console=console, transient=True) as bar:
        task = bar.add_task("looking at the problems", total=None)

        def show(state: PrebuildState) -> None:
            if state.points:
                bar.update(task, total=max(state.points, state.done), completed=state.done, description=progress(state))
            else:
                bar.update(task, description=f"{state.problems} problems looked at")

        yield show


def _line_printer(console: Console) -> Callable[[PrebuildState], None]:
    told = 0

    def show(state: PrebuildState) -> None:
        nonlocal told
        tenth = 10 * state.done // max(1, state.points)
        if tenth > told:
            told = tenth
            line = f"{state.done} of {state.points} points, {in_words(state.elapsed)}: {progress(state)}"
            console.print(Text(line), soft_wrap=True)

    return show


def measure(folder: Path, output: Path | None, seconds: float | None, batch: int, seed: int) -> None:
    """Measure the kernels of a package on this machine's GPU, and show what came of it."""
    from tvm_na.cli.tune_progress import observer, print_summary
    from tvm_na.packages.measure import MeasureOptions, measure_package
    from tvm_na.packages.package import Package
    from tvm_na.records.files import user_folder
    from tvm_na.tune.state import INTERRUPTED

    out, package = console(), Package.open(folder)
    records, options = output or user_folder(package.target.name), MeasureOptions(batch, seconds, seed=seed)
    with observer(out) as show:
        state = measure_package(package, records, options, observer=show)
    print_summary(out, state, records)
    if state.ending == INTERRUPTED:
        raise typer.Exit(130)
