"""What people see while kernels are built: a bar for many ahead of their first call, a line for one at its call."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from tvm_na.problems.registry import Problem
    from tvm_na.targets.target import NATarget

_log = logging.getLogger(__name__)


@contextmanager
def building(problem: Problem, target: NATarget, console: Console | None = None) -> Iterator[None]:
    """Tell people that a kernel is being built while it is: in one line of a terminal, else as a log message.

    Args:
        problem: What the kernel computes.
        target: What it is built for.
        console: The terminal, if it is one; None for standard error.
    """
    console = console or Console(stderr=True, highlight=False)
    what, start = f"tvm_na: building the kernel of {problem} for {target.name}", time.perf_counter()
    if not console.is_terminal:
        _log.info("%s", what)
        yield
        _log.info("%s: %.1f s", what, time.perf_counter() - start)
        return
    with console.status(what):
        yield
    console.print(f"{what}: {time.perf_counter() - start:.1f} s", markup=False)


def build_kernels(problems: Iterable[Problem], console: Console | None = None) -> int:
    """Build, for this machine's CPU, those kernels of ``problems`` that are not in the cache; how many were built.

    Args:
        problems: What to build for; repeated ones are built once.
        console: Where the progress bar goes; none is shown if everything is in the cache.
    """
    from tvm_na.jit.build import is_cached, kernel_for, target_for

    target = target_for("cpu")
    missing = [problem for problem in dict.fromkeys(problems) if not is_cached(problem, target)]
    if not missing:
        return 0
    columns = (TextColumn("building kernels"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}", markup=False), console=console) as progress:
        task = progress.add_task("", total=len(missing))
        for problem in missing:
            progress.update(task, description=str(problem))
            kernel_for(problem, target)
            progress.advance(task)
        progress.update(task, description="")
    return len(missing)
