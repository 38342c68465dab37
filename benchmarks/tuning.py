"""The tuner: ``python -m benchmarks.tuning search|overhead [--check]``.

``search`` sets the search with its cost model against random points: ten problems, as many trials each, the same seeds.
Both draw from the same spaces (the default formulation, all structures), start without the default point, and build and
measure alike; what each found best is measured again, interleaved. It takes about half an hour on two cores; killed, it
goes on where it was. ``overhead`` takes minutes.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.common import RESULTS, end, milliseconds, numbers_table, start, write_json
from tvm_na import fingerprint
from tvm_na.jit import build, runtime
from tvm_na.measure.timing import Timing, interleaved_ratio, measure
from tvm_na.problems.attention import NAProblem
from tvm_na.records.meta import read_meta
from tvm_na.records.read import records_in
from tvm_na.records.record import Record
from tvm_na.records.select import Selection
from tvm_na.reference.accuracy import ERROR_BUDGET
from tvm_na.reference.cases import case_of
from tvm_na.targets.target import NATarget
from tvm_na.tune.options import SearchOptions, Strategy
from tvm_na.tune.run import tune
from tvm_na.tune.state import TuneState
from tvm_na.tune.tasks import TuneTask
from tvm_na.tune.trial_log import TRIAL_LOG, Trial, trials_in

MODEL, RANDOM, DEFAULT = "xgboost", "random", "default"
STRATEGIES: dict[str, Strategy] = {MODEL: "evolutionary", RANDOM: "random"}
#: In how many of ten tasks the search with the cost model must find the better schedule.
MIN_WINS = 0.8
MAX_SECONDS_TO_FIRST, MIN_PRODUCTIVE = 20.0, 0.6

_FINISHED = ("all trials are done", "nothing is left to try")

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


@dataclass(frozen=True)
class Goal:
    """Something that is to be reached: how much is required, how much it is (in words), and whether it is reached."""

    name: str
    required: str
    got: str
    met: bool

    def __str__(self) -> str:
        return f"goal {'met' if self.met else 'missed'}: {self.name}: required {self.required}, got {self.got}"


@dataclass(frozen=True)
class SearchTask:
    """A problem that is searched, and the seed of both searches."""

    name: str
    problem: NAProblem
    seed: int


def _stage(size: int, heads: int, dilation: int = 1) -> NAProblem:
    return NAProblem.make((size, size), 7, heads, 32, dilation=dilation, bias=True)


TASKS = (
    SearchTask("NAT-Tiny stage 1", _stage(56, 2), 1),
    SearchTask("NAT-Tiny stage 2", _stage(28, 4), 2),
    SearchTask("NAT-Tiny stage 3", _stage(14, 8), 3),
    SearchTask("NAT-Tiny stage 4", _stage(7, 16), 4),
    SearchTask("NAT-Small stage 1", _stage(56, 3), 5),
    SearchTask("NAT-Small stage 2", _stage(28, 6), 6),
    SearchTask("NAT-Small stage 3", _stage(14, 12), 7),
    SearchTask("NAT-Tiny stage 1, dilation 8", _stage(56, 2, 8), 8),
    SearchTask("NAT-Tiny stage 2, dilation 4", _stage(28, 4, 4), 9),
    SearchTask("NAT-Tiny stage 3, dilation 2", _stage(14, 8, 2), 10),
)


@dataclass(frozen=True)
class Found:
    """What one search found: its fastest record, its trials in order, and in how many runs they were made."""

    best: Record
    trials: tuple[Trial, ...]
    sessions: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        seconds = [trial.seconds for trial in self.trials]
        return {
            "trials": len(seconds),
            "failed": seconds.count(None),
            "sessions": self.sessions,
            "digest": self.best.digest,
            "recorded_seconds": self.best.seconds,
            "seconds_of_trials": seconds,
        }


@dataclass(frozen=True)
class Outcome:
    """Both searches of a task by strategy, and what each found best and the default schedule, measured in turns."""

    task: SearchTask
    found: dict[str, Found]
    timings: dict[str, Timing]

    @property
    def advantage(self) -> float:
        """The time of random's best over that of the model's, round by round; 1 for one schedule."""
        if self.found[MODEL].best.digest == self.found[RANDOM].best.digest:
            return 1.0
        return interleaved_ratio(self.timings[RANDOM], self.timings[MODEL])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "task": self.task.name,
            "problem": str(self.task.problem),
            "seed": self.task.seed,
            "found": {name: found.to_dict() for name, found in self.found.items()},
            "timings": {name: timing.to_dict() for name, timing in self.timings.items()},
            "advantage": self.advantage,
        }


def wins(outcomes: list[Outcome]) -> int:
    """In how many tasks the search with the model found the better schedule."""
    return sum(outcome.advantage > 1 for outcome in outcomes)


def folder_of(task: SearchTask, strategy: str, trials: int, root: Path, target: NATarget) -> Path:
    """The records of one search; another one if an expression or a schedule was changed."""
    return root / fingerprint.context_digest(target)[:8] / f"{trials}-trials" / f"seed-{task.seed}-{strategy}"


def search(
    task: SearchTask, strategy: str, trials: int, root: Path, target: NATarget, observe: Callable[[TuneState], None]
) -> Found:
    """Search a task, or finish a search that was cut short, or take what a finished one found.

    Raises:
        KeyboardInterrupt: it was interrupted; what was measured is kept.
        RuntimeError: nothing could be measured.
    """
    folder = folder_of(task, strategy, trials, root, target)
    if not is_finished(folder, trials):
        drawn = {"defaults_first": False, "only_default_formulation": True}
        options = SearchOptions(trials=trials, seed=task.seed, strategy=STRATEGIES[strategy], **drawn)
        result = tune([TuneTask(task.problem)], target, options, output=folder, observer=observe)
        if result.state.ending == "interrupted":
            raise KeyboardInterrupt
    records, meta = records_in(folder), read_meta(folder)
    if not records or meta is None:
        raise RuntimeError(f"{task.name}, {strategy}: nothing could be measured; see {folder}")
    best = min(records, key=lambda record: record.seconds)
    return Found(best, tuple(trials_in(folder)), len(meta.sessions))


def is_finished(folder: Path, trials: int) -> bool:
    """Whether a search has nothing left to do."""
    meta = read_meta(folder)
    if meta is None or not meta.sessions:
        return False
    return len(trials_in(folder)) >= trials or meta.sessions[-1].get("ending") in _FINISHED


def compare(task: SearchTask, found: dict[str, Found], target: NATarget, rounds: int) -> Outcome:
    """Measure what the searches found best in turns, and the default schedule beside them."""
    kernels = {
        name: build.kernel_with(Selection.of(f.best, "to be compared"), task.problem, target)
        for name, f in found.items()
    }
    kernels[DEFAULT] = build.kernel_for(task.problem, target, records="off")
    case = case_of(task.problem)
    runtime.use_threads(task.problem.useful_flops)
    calls = {}
    for name, kernel in kernels.items():
        outputs = case.outputs()
        calls[name] = functools.partial(kernel.function, *case.inputs, *outputs)
        calls[name]()
        case.check(outputs, ERROR_BUDGET[task.problem.dtype])
    timings = measure(calls, rounds=rounds, sample_time=5e-4, warmup_time=0.05)
    return Outcome(task, found, timings)


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
    load = start("cpu", console)
    root = Path(tempfile.gettempdir()) / "tvm_na-benchmark-search" if folder is None else folder
    console.print(f"records are kept in {root}", style="dim", markup=False, soft_wrap=True)
    outcomes = _search_all(tasks, trials, rounds, root, console)
    console.print(_search_table(outcomes))
    how = f"{trials} trials, {torch.get_num_threads()} threads; the ratio is round by round"
    console.print(f"medians of {rounds} samples in ms, {how}")
    won = wins(outcomes)
    console.print(f"{MODEL} wins {won} of {len(outcomes)}", style="bold")
    content = {"benchmark": "tuning_search", "trials": trials, "rounds": rounds, "load_before": load}
    write_json(output, {**content, "wins": won, "tasks": [outcome.to_dict() for outcome in outcomes]})
    if check and won < MIN_WINS * len(outcomes):
        end([f"required {MIN_WINS:.0%} of the tasks, got {won}"], console)


def _search_all(tasks: int, trials: int, rounds: int, root: Path, console: Console) -> list[Outcome]:
    target, outcomes = build.current_target(), []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=tasks * len(STRATEGIES) * trials)
        show = lambda begun, state: progress.update(bar, completed=begun + state.trials)  # noqa: E731
        for number, task in enumerate(TASKS[:tasks]):
            found = {}
            # Another one first every time, so that neither always has the quieter machine.
            for turn, strategy in enumerate(sorted(STRATEGIES, reverse=number % 2 == 1)):
                begun = (number * len(STRATEGIES) + turn) * trials
                progress.update(bar, completed=begun, description=f"{task.name}, {strategy}")
                observe = functools.partial(show, begun)
                found[strategy] = search(task, strategy, trials, root, target, observe)
            outcomes.append(compare(task, found, target, rounds))
        progress.update(bar, completed=tasks * len(STRATEGIES) * trials, description="")
    return outcomes


def _search_table(outcomes: list[Outcome]) -> Table:
    table = numbers_table("task", "seed", DEFAULT, RANDOM, MODEL, f"{RANDOM} / {MODEL}")
    for outcome in outcomes:
        times = (outcome.timings[name].median for name in (DEFAULT, RANDOM, MODEL))
        ratio = outcome.advantage
        cells = [milliseconds(seconds) for seconds in times]
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
    load = start("cpu", console)
    with tempfile.TemporaryDirectory(prefix="tvm_na-benchmark-") as name, console.status(f"tuning {model}"):
        first, wall, facts = _tune_in_a_process(model, trials, Path(name))
    seconds = {phase: float(spent) for phase, spent in facts["seconds"].items()}
    productive = (seconds.get("building", 0.0) + seconds.get("measuring", 0.0)) / wall
    table = numbers_table("", "seconds", "of all")
    for phase, spent in seconds.items():
        table.add_row(phase, f"{spent:.1f}", f"{spent / wall:.0%}")
    rest = wall - sum(seconds.values())
    table.add_row("imports, set-up, the end", f"{rest:.1f}", f"{rest / wall:.0%}")
    table.add_row("the process", f"{wall:.1f}", "")
    console.print(table)
    soon, busy = first <= MAX_SECONDS_TO_FIRST, productive >= MIN_PRODUCTIVE
    goals = [
        Goal("start to first measurement", f"<= {MAX_SECONDS_TO_FIRST:g} s", f"{first:.1f} s", soon),
        Goal("building and measuring", f">= {MIN_PRODUCTIVE:.0%} of all", f"{productive:.0%}", busy),
    ]
    for goal in goals:
        console.print(str(goal), style="green" if goal.met else "red")
    content = {"benchmark": "tuning_overhead", "model": model, "trials": trials, "load_before": load}
    content |= {"seconds_to_first": first, "wall_seconds": wall, "productive": productive}
    write_json(output, {**content, "session": facts})
    raise typer.Exit(0 if not check or (soon and busy) else 1)


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
