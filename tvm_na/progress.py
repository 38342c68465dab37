"""Kernels built ahead of their first call, with a progress bar."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from tvm_na.problem import NAProblem


def build_kernels(problems: Iterable[NAProblem], console: Console | None = None) -> int:
    """Build, for this machine, those kernels of ``problems`` that are not in the cache; how many were built.

    Args:
        problems: What to build for; repeated ones are built once.
        console: Where the progress bar goes; none is shown if everything is in the cache.
    """
    from tvm_na.build import is_cached, kernel_for

    missing = [problem for problem in dict.fromkeys(problems) if not is_cached(problem)]
    if not missing:
        return 0
    columns = (TextColumn("building kernels"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}", markup=False), console=console) as progress:
        task = progress.add_task("", total=len(missing))
        for problem in missing:
            progress.update(task, description=str(problem))
            kernel_for(problem)
            progress.advance(task)
        progress.update(task, description="")
    return len(missing)
