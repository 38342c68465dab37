"""The tuner: ``python -m benchmarks.tuning search|overhead [--check]``.

``search`` takes about half an hour on two cores; killed, it goes on where it was. ``overhead`` takes minutes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.report import RESULTS, load_before, use_all_cores, write_json
from benchmarks.search import DEFAULT, MODEL, RANDOM, STRATEGIES, TASKS, Outcome, compare, search, wins
from tvm_na.jit.build import current_target
from tvm_na.measure.timing import format_time
from tvm_na.records.read import read_meta
from tvm_na.tune.trial_log import TRIAL_LOG

#: In how many of ten tasks the search with the cost model must find the better schedule.
MIN_WINS = 0.8
MAX_SECONDS_TO_FIRST, MIN_PRODUCTIVE = 20.0, 0.6

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


@app.command("search")
def search_command(
    tasks: Annotated[int, typer.Option(min=1, max=len(TASKS), help="How many of the tasks.")] = len(TASKS),
    trials: Annotated[int, typer.Option(min=1, help="Trials of each search.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each schedule that was found.")] = 301,
    folder: Annotated[Path | None, typer.Option(help="Where records are kept, to go on; a temporary one.")] = None,
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = RESULTS / "tuning_search.json",
    check: Annotated[bool, typer.Option(help="Exit 1 unless the model wins 8 of 10.")] = False,
) -> None:
    """Search with MetaSchedule and XGBoost, and draw as many random points; who finds the better schedule?"""
    console = Console()
    cores = use_all_cores()
    load = load_before(console)
    root = Path(tempfile.gettempdir()) / "tvm_na-benchmark-search" if folder is None else folder
    console.print(f"records are kept in {root}", style="dim", markup=False, soft_wrap=True)
    outcomes = _search_all(tasks, trials, rounds, root, console)
    console.print(_search_table(outcomes))
    console.print(f"medians of {rounds} samples in ms, {trials} trials, {cores} threads; the ratio is round by round")
    won = wins(outcomes)
    console.print(f"{MODEL} wins {won} of {len(outcomes)}", style="bold")
    content = {"benchmark": "tuning_search", "trials": trials, "rounds": rounds, "load_before": load}
    write_json(output, {**content, "wins": won, "tasks": [outcome.to_dict() for outcome in outcomes]})
    if check and won < MIN_WINS * len(outcomes):
        console.print(f"check failed: required {MIN_WINS:.0%} of the tasks, got {won}", style="red")
        raise typer.Exit(1)


def _search_all(tasks: int, trials: int, rounds: int, root: Path, console: Console) -> list[Outcome]:
    target, outcomes = current_target(), []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=tasks * len(STRATEGIES) * trials)
        for number, task in enumerate(TASKS[:tasks]):
            found = {}
            # Another one first every time, so that neither always has the quieter machine.
            for turn, strategy in enumerate(sorted(STRATEGIES, reverse=number % 2 == 1)):
                begun = (number * len(STRATEGIES) + turn) * trials
                progress.update(bar, completed=begun, description=f"{task.name}, {strategy}")
                found[strategy] = search(
                    task,
                    strategy,
                    trials,
                    root,
                    target,
                    lambda state, begun=begun: progress.update(bar, completed=begun + state.trials),  # type: ignore[misc]
                )
            outcomes.append(compare(task, found, target, rounds))
        progress.update(bar, completed=tasks * len(STRATEGIES) * trials, description="")
    return outcomes


def _search_table(outcomes: list[Outcome]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for column in ("task", "seed", DEFAULT, RANDOM, MODEL, f"{RANDOM} / {MODEL}"):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for outcome in outcomes:
        times = (outcome.timings[name].median for name in (DEFAULT, RANDOM, MODEL))
        ratio = outcome.advantage
        cells = [format_time(seconds).removesuffix(" ms") for seconds in times]
        shown = f"[{'green' if ratio > 1 else 'red'}]{ratio:.3f}[/]"
        table.add_row(outcome.task.name, str(outcome.task.seed), *cells, shown)
    return table


@app.command("overhead")
def overhead_command(
    model: Annotated[str, typer.Option(help="Whose problems are tuned.")] = "nat_tiny",
    trials: Annotated[int, typer.Option(min=1, help="Trials over all problems.")] = 128,
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = RESULTS / "tuning_overhead.json",
    check: Annotated[bool, typer.Option(help="Exit 1 if a goal is missed.")] = False,
) -> None:
    """Run ``tvm-na tune`` in a fresh process: how long until the first measurement, and where the time goes."""
    console = Console()
    use_all_cores()
    load = load_before(console)
    with tempfile.TemporaryDirectory(prefix="tvm_na-benchmark-") as name, console.status(f"tuning {model}"):
        first, wall, facts = _tune_in_a_process(model, trials, Path(name))
    seconds = {phase: float(spent) for phase, spent in facts["seconds"].items()}
    productive = (seconds.get("building", 0.0) + seconds.get("measuring", 0.0)) / wall
    table = Table(box=SIMPLE_HEAD)
    for column in ("", "seconds", "of all"):
        table.add_column(column, justify="left" if not column else "right")
    for phase, spent in seconds.items():
        table.add_row(phase, f"{spent:.1f}", f"{spent / wall:.0%}")
    rest = wall - sum(seconds.values())
    table.add_row("imports, set-up, the end", f"{rest:.1f}", f"{rest / wall:.0%}")
    table.add_row("the process", f"{wall:.1f}", "")
    console.print(table)
    met = first <= MAX_SECONDS_TO_FIRST, productive >= MIN_PRODUCTIVE
    goals = (
        (f"start to first measurement: required <= {MAX_SECONDS_TO_FIRST:g} s, got {first:.1f} s", met[0]),
        (f"building and measuring: required >= {MIN_PRODUCTIVE:.0%} of all, got {productive:.0%}", met[1]),
    )
    for goal, reached in goals:
        console.print(f"goal {'met' if reached else 'missed'}: {goal}", style="green" if reached else "red")
    content = {"benchmark": "tuning_overhead", "model": model, "trials": trials, "load_before": load}
    content |= {"seconds_to_first": first, "wall_seconds": wall, "productive": productive}
    write_json(output, {**content, "session": facts})
    raise typer.Exit(0 if not check or all(met) else 1)


def _tune_in_a_process(model: str, trials: int, folder: Path) -> tuple[float, float, dict[str, Any]]:
    """Seconds from the process's start to its first measurement, and to its end; the facts of its session."""
    command = [sys.executable, "-m", "tvm_na", "tune", model, "--trials", str(trials), "--output", str(folder)]
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen([*command, "--seed", "0"], stdout=said, stderr=subprocess.STDOUT)
        try:
            first = None
            while process.poll() is None:
                if first is None and _has_line(folder / TRIAL_LOG):
                    first = time.perf_counter() - start
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
        wall = time.perf_counter() - start
        said.seek(0)
        output = said.read().decode(errors="replace")
    meta = read_meta(folder)
    if process.returncode or first is None or meta is None:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output[-2000:]}")
    return first, wall, meta.sessions[-1]


def _has_line(file: Path) -> bool:
    try:
        return b"\n" in file.read_bytes()[:1_000_000]
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    app()
