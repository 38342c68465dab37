"""The operator against its peers at NAT-Tiny's four stages: ``python -m benchmarks.op [--check] [--plot FILE]``.

float32, batch 1, all cores, no bias (flex_attention and SDPA would need another formulation). The candidates take
turns in one process: the operator as it is used, with tuning records where there are some; the operator with its
default schedule; its peers; a matrix product. A candidate whose numbers deviate from the float64 reference gets no
time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.goals import failures_of, tuning_goals
from benchmarks.peers import PEERS, heads_first
from benchmarks.report import RESULTS, load_before, use_all_cores, write_json
from benchmarks.stage import DEFAULT, MATMUL, MATMUL_SIZE, OURS, Stage, geomean, mean_of
from tvm_na.functional import Backend, na2d
from tvm_na.jit.build import explain
from tvm_na.measure.timing import format_time, measure
from tvm_na.ops.launch import forget
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference
from tvm_na.reference.accuracy import relative_error

_DUEL = 16  # short samples of ours and of the default for each long one
STAGES = tuple(NAProblem.make((n, n), 7, heads, 32) for n, heads in ((56, 2), (28, 4), (14, 8), (7, 16)))


@contextmanager
def records_off() -> Iterator[None]:
    """Let kernels have their default schedules."""
    with patch.dict(os.environ, {"TVM_NA_RECORDS": "off"}):
        yield


def our_calls(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: NAProblem) -> dict[str, Any]:
    """The operator with tuning records, where there are some, and with its default schedule.

    A call keeps the kernel that it got first, so the two must be different calls: one names the window's length, the
    other the lengths of its axes. Otherwise they go the same way.
    """

    def call(window: int | tuple[int, ...]) -> Any:
        return lambda: na2d(q, k, v, window, backend=Backend.COMPILED)

    calls = {OURS: call(problem.kernel_size[0]), DEFAULT: call(problem.kernel_size)}
    for name, function in calls.items():
        forget()  # there they are one call; above it each keeps its own
        with records_off() if name == DEFAULT else nullcontext():
            function()
    return calls


def run_stage(problem: NAProblem, rounds: int) -> Stage:
    """Measure every candidate at one problem."""
    stage = Stage(problem)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, *problem.spatial, problem.heads, problem.head_dim) for _ in range(3))
    expected, _ = reference.neighborhood_attention(
        problem, q.double(), k.double(), v.double(), scale=problem.head_dim**-0.5
    )
    candidates = our_calls(q, k, v, problem)
    stage.schedule = explain(problem)
    stage.errors = {name: relative_error(call(), expected) for name, call in candidates.items()}
    tensors = (heads_first(q), heads_first(k), heads_first(v))
    for peer in PEERS:
        try:
            run = peer.prepare(problem, tensors)
            out = run()
        except Exception as error:  # a compiler's failure has no type of its own; it is reported by name
            stage.unavailable[peer.name] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            continue
        stage.errors[peer.name] = relative_error(out, heads_first(expected))
        candidates[peer.name] = run
    a, b = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE)
    stage.timings = measure({**candidates, MATMUL: lambda: torch.mm(a, b)}, rounds=rounds)
    two = {name: candidates[name] for name in (OURS, DEFAULT)}
    stage.duel = measure(two, rounds=_DUEL * rounds, sample_time=5e-4)
    return stage


def _cell(stage: Stage, name: str) -> str:
    if name in stage.unavailable:
        return "unavailable"
    if not stage.is_right(name):
        return "[red]wrong numbers[/red]"
    timing = stage.timings[name]
    best = "bold" if name == stage.best_peer else "not dim"
    return f"[{best}]{_milliseconds(timing.median)}[/] [dim]±{timing.spread / 2 / timing.median:.0%}[/dim]"


def _milliseconds(seconds: float) -> str:
    return format_time(seconds).removesuffix(" ms")


def table_of(stages: list[Stage]) -> Table:
    """Medians in milliseconds of every candidate; half the interquartile range in percent of them."""
    table = Table(title="2D neighborhood attention, k 7, head_dim 32, float32, batch 1: ms", box=SIMPLE_HEAD)
    for column in ("map, heads", OURS, DEFAULT, *(peer.name for peer in PEERS), "mm", "speedup"):
        table.add_column(column, justify="left" if column == "map, heads" else "right", no_wrap=True)
    for stage in stages:
        cells = [_cell(stage, candidate) for candidate in (OURS, DEFAULT, *(peer.name for peer in PEERS))]
        table.add_row(_name(stage), *cells, _milliseconds(stage.matmul_time), _ratio(stage.speedup))
    return table


def _name(stage: Stage) -> str:
    p = stage.problem
    return f"{p.spatial[0]}x{p.spatial[1]}, {p.heads}"


def _ratio(ratio: float | None) -> str:
    return "[red]refused[/red]" if ratio is None else f"{ratio:.2f}x"


def ratios_of(stages: list[Stage]) -> Table:
    """Where the operator stands beside its default schedule, the matrix product and the best peer."""
    table = Table(title="by medians / round by round", box=SIMPLE_HEAD)
    for column in ("map, heads", "default / ours", "ours / mm", "best peer / ours"):
        table.add_column(column, justify="left" if column == "map, heads" else "right", no_wrap=True)
    ratios = [
        [
            [each(stage, in_turns) for in_turns in (False, True)]
            for each in (Stage.over_default, Stage.of_matmul, Stage.over_peer)
        ]
        for stage in stages
    ]
    for stage, row in zip(stages, ratios, strict=True):
        table.add_row(_name(stage), *(" / ".join(map(_ratio, pair)) for pair in row))
    table.add_section()
    columns = [[[row[i][j] for row in ratios] for j in range(2)] for i in range(3)]
    means = (" / ".join(_ratio(mean_of(kind)) for kind in column) for column in columns)
    table.add_row("geometric mean", *means)
    return table


def plot(stages: list[Stage], path: Path) -> None:
    """A bar chart of the medians, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [OURS, DEFAULT, *(peer.name for peer in PEERS)]
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        shown = [(x, stage.timings[name].median * 1e3) for x, stage in enumerate(stages) if stage.is_right(name)]
        positions = [x + (i - (len(names) - 1) / 2) * width for x, _ in shown]
        bars = axes.bar(positions, [ms for _, ms in shown], width * 0.95, label=name, color=f"C{i}")
        axes.bar_label(bars, fmt="{:.3g}", fontsize=7, padding=1)
    for x, stage in enumerate(stages):
        ms = stage.matmul_time * 1e3
        axes.hlines(ms, x - 0.42, x + 0.42, "black", "--", linewidth=1, label="" if x else "torch.mm, same FLOPs")
    labels = [f"{s.problem.spatial[0]}², {s.problem.heads} heads" for s in stages]
    axes.set_xticks(range(len(stages)), labels)
    axes.set_yscale("log")
    axes.set_ylabel("median time per call, ms")
    axes.set_title("2D neighborhood attention: window 7x7, head_dim 32, float32, batch 1")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(names) + 1, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Samples of every candidate.")] = 21,
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = RESULTS / "op.json",
    plot_file: Annotated[Path | None, typer.Option("--plot", help="PNG file to draw.")] = None,
    check: Annotated[bool, typer.Option(help="Exit 1 if a stage is slower than a peer, or the mean below 5x.")] = False,
    goals: Annotated[bool, typer.Option(help="Exit 1 also if tuned kernels miss one of their goals.")] = False,
) -> None:
    """Compare the compiled operator with gather-and-einsum, masked SDPA and flex_attention."""
    console = Console()
    cores = use_all_cores()
    load = load_before(console)
    stages = []
    for problem in STAGES:
        with console.status(f"{problem}"), torch.inference_mode():
            stages.append(run_stage(problem, rounds))
    mean = geomean(stages)
    console.print(table_of(stages))
    console.print(f"medians of {rounds} samples ± half the interquartile range, {cores} threads")
    for peer in PEERS:
        console.print(f"  {peer.name}: {peer.what}", style="dim")
    console.print("  mm: what torch.mm takes for the same useful FLOPs", style="dim")
    console.print(ratios_of(stages))
    for stage in stages:
        console.print(f"  {_name(stage)}: {stage.schedule}", style="dim", markup=False)
    for name, reason in {k: v for stage in stages for k, v in stage.unavailable.items()}.items():
        console.print(f"unavailable: {name}: {reason}", style="yellow", markup=False)
    wrong = "refused: there are wrong numbers, or no peer"
    console.print("geometric mean of best peer / ours: " + (wrong if mean is None else f"{mean:.2f}x"), style="bold")
    if (in_turns := geomean(stages, in_turns=True)) is not None:
        console.print(f"the same round by round: {in_turns:.2f}x")
    content: dict[str, Any] = {"benchmark": "op", "rounds": rounds, "load_before": load, "geomean": mean}
    reached = tuning_goals(stages)
    for goal in reached:
        console.print(str(goal), style="green" if goal.met else "yellow", markup=False)
    content["tuning_goals"] = [vars(goal) for goal in reached]
    write_json(output, {**content, "stages": [stage.to_dict() for stage in stages]})
    if plot_file is not None:
        plot(stages, plot_file)
    failures = failures_of(stages) if check else []
    failures += [str(goal) for goal in reached if not goal.met] if goals else []
    for failure in failures:
        console.print(f"check failed: {failure}", style="red", markup=False)
    raise typer.Exit(1 if failures else 0)


if __name__ == "__main__":
    typer.run(main)
