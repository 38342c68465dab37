"""The operator against its peers at NAT-Tiny's four stages: ``python -m benchmarks.op [--check] [--plot FILE]``.

float32, batch 1, all cores, no bias (flex_attention and SDPA would need another formulation). The candidates take
turns in one process. A candidate whose numbers deviate from the float64 reference gets no time.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.peers import PEERS, heads_first
from benchmarks.report import RESULTS, load_before, use_all_cores, write_json
from tvm_na import reference
from tvm_na.benchmark import ERROR_BUDGET, Timing, format_time, measure, relative_error, speedup
from tvm_na.functional import Backend, na2d
from tvm_na.problem import NAProblem

OURS = "tvm_na"
MATMUL = "torch.mm"
MATMUL_SIZE = 1024
MIN_GEOMEAN = 5.0

STAGES = tuple(NAProblem.make((n, n), 7, heads, 32) for n, heads in ((56, 2), (28, 4), (14, 8), (7, 16)))


@dataclass
class Stage:
    """What was measured for one problem.

    Attributes:
        problem: The problem.
        timings: By candidate that ran, including :data:`MATMUL`, the product of two 1024x1024 matrices.
        errors: Relative error by candidate that ran.
        unavailable: Why a candidate did not run.
    """

    problem: NAProblem
    timings: dict[str, Timing] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    def is_right(self, name: str) -> bool:
        """Whether a candidate ran and its error is within the budget."""
        return self.errors.get(name, float("inf")) <= ERROR_BUDGET[self.problem.dtype]

    @property
    def best_peer(self) -> str | None:
        """The fastest peer with right numbers."""
        right = [peer.name for peer in PEERS if self.is_right(peer.name)]
        return min(right, key=lambda name: self.timings[name].median, default=None)

    @property
    def speedup(self) -> float | None:
        """Best peer's time over ours; None if our numbers are wrong or there is no peer."""
        best = self.best_peer
        if best is None:
            return None
        budget = ERROR_BUDGET[self.problem.dtype]
        return speedup(self.timings[OURS], self.timings[best], self.errors[OURS], budget)

    @property
    def fastest_speedup(self) -> float | None:
        """The same by fastest samples."""
        if self.speedup is None:
            return None
        peers = [self.timings[peer.name].minimum for peer in PEERS if self.is_right(peer.name)]
        return min(peers) / self.timings[OURS].minimum

    @property
    def matmul_time(self) -> float:
        """Seconds that ``torch.mm`` would need for the problem's useful operations."""
        return self.timings[MATMUL].median * self.problem.useful_flops / (2 * MATMUL_SIZE**3)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "problem": str(self.problem),
            "useful_flops": self.problem.useful_flops,
            "candidates": {
                name: {**timing.to_dict(), "relative_error": self.errors.get(name)}
                for name, timing in self.timings.items()
            },
            "unavailable": self.unavailable,
            "matmul_time": self.matmul_time,
            "best_peer": self.best_peer,
            "speedup": self.speedup,
            "fastest_speedup": self.fastest_speedup,
        }


def run_stage(problem: NAProblem, rounds: int) -> Stage:
    """Measure every candidate at one problem."""
    stage = Stage(problem)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, *problem.spatial, problem.heads, problem.head_dim) for _ in range(3))
    expected, _ = reference.neighborhood_attention(
        problem, q.double(), k.double(), v.double(), scale=problem.head_dim**-0.5
    )
    candidates: dict[str, Any] = {OURS: lambda: na2d(q, k, v, problem.kernel_size, backend=Backend.COMPILED)}
    stage.errors[OURS] = relative_error(candidates[OURS](), expected)
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
    for column in ("map, heads", OURS, *(peer.name for peer in PEERS), "mm", "speedup"):
        table.add_column(column, justify="left" if column == "map, heads" else "right", no_wrap=True)
    for stage in stages:
        p = stage.problem
        name = f"{p.spatial[0]}x{p.spatial[1]}, {p.heads}"
        cells = [_cell(stage, candidate) for candidate in (OURS, *(peer.name for peer in PEERS))]
        ratio = "[red]refused[/red]" if stage.speedup is None else f"{stage.speedup:.2f}x"
        table.add_row(name, *cells, _milliseconds(stage.matmul_time), ratio)
    return table


def geomean(stages: list[Stage], fastest: bool = False) -> float | None:
    """Geometric mean of each stage's speedup, by medians or fastest samples; None if one is refused."""
    ratios = [stage.fastest_speedup if fastest else stage.speedup for stage in stages]
    right = [ratio for ratio in ratios if ratio is not None]
    return statistics.geometric_mean(right) if len(right) == len(ratios) else None


def plot(stages: list[Stage], path: Path) -> None:
    """A bar chart of the medians, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [OURS, *(peer.name for peer in PEERS)]
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


def failures_of(stages: list[Stage]) -> list[str]:
    """What ``--check`` complains about. Fastest samples count as well, since noise that favors us hides in medians."""
    found = [f"{stage.problem}: no speedup" for stage in stages if stage.speedup is None]
    for kind, fastest in (("medians", False), ("fastest samples", True)):
        for stage in stages:
            ratio = stage.fastest_speedup if fastest else stage.speedup
            if ratio is not None and ratio < 1:
                found.append(f"{stage.problem}: slower than the best peer by {kind}")
        mean = geomean(stages, fastest)
        if mean is None or mean < MIN_GEOMEAN:
            found.append(f"geometric mean by {kind}: required >= {MIN_GEOMEAN}, got {mean}")
    return found


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Samples of every candidate.")] = 21,
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = RESULTS / "op.json",
    plot_file: Annotated[Path | None, typer.Option("--plot", help="PNG file to draw.")] = None,
    check: Annotated[bool, typer.Option(help="Exit 1 below the goal: nowhere slower, geometric mean >= 5.")] = False,
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
    for name, reason in {k: v for stage in stages for k, v in stage.unavailable.items()}.items():
        console.print(f"unavailable: {name}: {reason}", style="yellow", markup=False)
    wrong = "refused: there are wrong numbers, or no peer"
    console.print("geometric mean of best peer / ours: " + (wrong if mean is None else f"{mean:.2f}x"), style="bold")
    if (fastest := geomean(stages, fastest=True)) is not None:
        console.print(f"the same by fastest samples, which other processes disturb least: {fastest:.2f}x")
    content = {"benchmark": "op", "rounds": rounds, "load_before": load, "geomean": mean}
    write_json(output, {**content, "stages": [stage.to_dict() for stage in stages]})
    if plot_file is not None:
        plot(stages, plot_file)
    failures = failures_of(stages) if check else []
    for failure in failures:
        console.print(f"check failed: {failure}", style="red", markup=False)
    raise typer.Exit(1 if failures else 0)


if __name__ == "__main__":
    typer.run(main)
