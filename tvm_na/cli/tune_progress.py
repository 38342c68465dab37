"""What tuning shows: a table that stays up to date on a terminal, lines elsewhere, a summary at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tvm_na.measure.timing import format_speedup, format_time
from tvm_na.problems.dense import DenseProblem

if TYPE_CHECKING:
    from tvm_na.tune.state import ProblemState, TuneState
    from tvm_na.tune.tasks import Formulation, TuneTask


def in_words(seconds: float) -> str:
    """A duration for people, such as ``"1 h 05 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _best(problem: ProblemState) -> tuple[str, str, str]:
    """Best time, improvement over the default, and the formulation that leads; empty before there are any."""
    if problem.leader is None or problem.best is None:
        return "", "", ""
    gain = "" if problem.improvement is None else format_speedup(problem.improvement)
    return format_time(problem.best), gain, problem.leader.label


def _failures(problem: ProblemState) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in problem.failures.most_common())


def _table(first: str, *numbers: str) -> Table:
    """A table of which only text wraps where there is little room."""
    table = Table(first, box=SIMPLE)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def problems_table(state: TuneState) -> Table:
    """A row for each problem."""
    batched = any(p.batch > 1 for p in state.problems)
    table = _table("problem", "weight", *(["batch"] if batched else []), "trials", "best", "gain")
    table.add_column("formulation")
    table.add_column("failed")
    for p in state.problems:
        batch = [str(p.batch)] if batched else []
        row = (str(p.problem), f"{p.weight:g}", *batch, str(p.trials), *_best(p), _failures(p))
        table.add_row(*(Text(cell) for cell in row))
    return table


def progress_line(state: TuneState) -> str:
    """Trials, time and phase."""
    left = state.seconds_left()
    rest = "" if left is None or state.ending else f", about {in_words(left)} left"
    return f"{state.trials} of {state.limit} trials, {in_words(state.elapsed)}{rest}: {state.ending or state.phase}"


@contextmanager
def observer(console: Console) -> Iterator[Callable[[TuneState], None]]:
    """What is to be called with the state whenever it changes: shows it on ``console``."""
    if not console.is_terminal:
        yield _line_printer(console)
        return
    from rich.live import Live

    latest: list[TuneState] = []

    def show() -> Any:
        if not latest or not latest[-1].problems:
            return Text("starting")
        return Group(problems_table(latest[-1]), Text(progress_line(latest[-1])))

    # Seldom, since drawing takes time from what is measured.
    with Live(console=console, get_renderable=show, refresh_per_second=2, transient=True):
        yield latest.append


def _line_printer(console: Console) -> Callable[[TuneState], None]:
    """Prints a line for each problem that a batch changed."""
    printed: dict[int, int] = {}

    def show(state: TuneState) -> None:
        for index, problem in enumerate(state.problems if state.phase in ("searching", "done") else ()):
            if printed.get(index, 0) != problem.trials:
                printed[index] = problem.trials
                best, gain, label = _best(problem)
                parts = [f"{problem.trials} trials", f"best {best}" if best else "", gain, label, _failures(problem)]
                line = f"{progress_line(state)}\n  {problem.problem}: {', '.join(p for p in parts if p)}"
                console.print(Text(line), soft_wrap=True)

    return show


def print_summary(console: Console, state: TuneState, folder: Path) -> None:
    """What was found, where it is, and where the time went."""
    console.print(problems_table(state))

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    known = [p for p in state.problems if p.default is not None and p.best is not None]
    if known:
        batches = sorted({p.batch for p in known})
        before = sum(p.weight * (p.default or 0.0) / p.batch for p in known)
        after = sum(p.weight * (p.best or 0.0) / p.batch for p in known)
        if len(batches) == 1:  # else only the time of a sample says something about all
            before, after = before * batches[0], after * batches[0]
        text = f"{format_time(before)} by default, {format_time(after)} tuned: {format_speedup(before / after)}"
        what = "kernels" if any(isinstance(p.problem, DenseProblem) for p in known) else "attention"
        say(f"{what}, weighted{_of_batches(batches)}: {text}", "bold green")
    say(f"{state.measured} trials in {in_words(state.elapsed)}, {state.trials} with those before; {state.ending}")
    say(where_the_time_went(state))
    say(f"records: {folder}")
    if state.ending in ("interrupted", "the time is up"):
        say("nothing measured is lost; the same command continues")


def _of_batches(batches: Sequence[int]) -> str:
    if len(batches) > 1:
        return ", per sample"
    return f", batch {batches[0]}" if batches != [1] else ""


def where_the_time_went(state: TuneState) -> str:
    """The share of each phase, and when the first measurement was."""
    total = max(state.elapsed, 1e-9)
    shares = [f"{phase} {seconds / total:.0%}" for phase, seconds in state.seconds.items()]
    rest = 1.0 - sum(state.seconds.values()) / total
    first = "no measurement" if state.first is None else f"first measurement after {state.first:.1f} s"
    return f"{first}; {', '.join([*shares, f'starting and ending {rest:.0%}'])}"


def print_plan(
    console: Console, tasks: Sequence[TuneTask], spaces: Sequence[Sequence[Formulation]], best: Sequence[float | None]
) -> None:
    """What would be tuned: tasks, the formulations of each, its best recorded time (in seconds for a sample)."""
    measured = all(seconds is not None for seconds in best)
    costs = [
        task.weight * (seconds if measured and seconds is not None else float(task.problem.useful_flops))
        for task, seconds in zip(tasks, best, strict=True)
    ]
    table = _table("problem", "weight", "share", "recorded", "formulations", "sketches", "points")
    for task, formulations, cost, seconds in zip(tasks, spaces, costs, best, strict=True):
        row = (
            str(task.problem),
            f"{task.weight:g}",
            f"{cost / sum(costs):.1%}",
            "" if seconds is None else format_time(seconds),
            str(len(formulations)),
            str(sum(len(f.spaces) for f in formulations)),
            f"{sum(f.points for f in formulations):,}",
        )
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    total = sum(f.points for formulations in spaces for f in formulations)
    basis = "recorded times" if measured else "useful FLOPs (not every problem has a record under these conditions)"
    console.print(Text(f"{len(tasks)} tasks, {total:,} points; shares by {basis}"), soft_wrap=True)
