"""The operator against its peers at NAT-Tiny's four stages: ``python -m benchmarks.op [--device cuda] [--check]``.

The candidates are interleaved in one process: the operator as it is used, with tuning records where there are some; its
peers; a baseline. A candidate whose numbers deviate from the float64 reference gets no time.

On a CPU: float32, batch 1, all cores, also the operator with its default schedule; the baseline is a matrix product.

On a GPU: float16 and float32; batch 128, with the bias that NAT has and without, and batch 1. Inputs rotate through
more memory than the last cache holds. Times are those of CUDA events around some calls, with batch 1 around replays of
a CUDA graph of them: there the host takes longer to launch than the GPU to compute, and for some longer than for
others. The baseline is a copy that moves as much memory as query, key, value and output take. A run that is repeated
goes on where it was: cases that are in the output file are not measured again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.case import CHECKED, OURS, Calls, carry_out, error_of, mean_of, stages_of
from benchmarks.common import Device, end, milliseconds, numbers_table, ratio_text, result_file, start, write_json
from benchmarks.op_case import COPY, DEFAULT, MATMUL, MATMUL_SIZE, OpCase, failures_of, geomean, tuning_goals
from benchmarks.peers import PEERS
from tvm_na.functional import Backend, na2d
from tvm_na.jit.build import explain, target_for
from tvm_na.measure.cuda import rotating
from tvm_na.measure.timing import measure
from tvm_na.ops.launch import forget
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference

_DUEL = 16  # short samples of ours and of the default for each long one


def our_calls(problem: NAProblem, *tensors: Tensor, rpb: Tensor | None = None) -> dict[str, Callable[[], Tensor]]:
    """The operator with tuning records, where there are some, and with its default schedule.

    A call keeps the kernel that it got first, so the two must be different calls: one names the window's length, the
    other the lengths of its axes. Otherwise they go the same way.
    """
    windows = {OURS: problem.kernel_size[0], DEFAULT: problem.kernel_size}
    options: dict[str, Any] = {"rpb": rpb, "backend": Backend.COMPILED}
    calls: dict[str, Any] = {n: partial(na2d, *tensors, w, **options) for n, w in windows.items()}
    for name, function in calls.items():
        forget()  # there they are one call; above it each keeps its own
        with patch.dict(os.environ, {"TVM_NA_RECORDS": "off"} if name == DEFAULT else {}):
            function()
    return calls


def all_cases(device: str) -> list[OpCase]:
    """What is measured on a device."""
    if device == "cpu":
        return [OpCase(problem) for problem in stages_of()]
    dtypes, kinds = ("float16", "float32"), ((128, False), (128, True), (1, False))
    return [OpCase(p, batch, device) for dtype in dtypes for batch, bias in kinds for p in stages_of(dtype, bias)]


def run_case(case: OpCase, rounds: int) -> None:
    """Measure every candidate of one case."""
    problem, sets, rpb = case.problem, case.draw(3), case.draw_bias()
    query, key, value = (t[:CHECKED].double() for t in sets[0])
    bias = None if rpb is None else rpb.double()
    expected = reference.neighborhood_attention(problem, query, key, value, problem.head_dim**-0.5, bias)[:1]
    calls: Calls = {}
    if case.device == "cpu":
        calls |= our_calls(problem, *sets[0], rpb=rpb)
        case.errors = {name: error_of([call()], expected) for name, call in calls.items()}  # type: ignore[list-item]
    else:
        ours = partial(na2d, kernel_size=problem.kernel_size, rpb=rpb, backend=Backend.COMPILED)
        calls[OURS] = rotating(ours, sets)
        case.errors[OURS] = error_of([ours(*sets[0])], expected)
    case.schedule = explain(problem, target_for("cuda", 0) if case.device == "cuda" else None)
    case.add_peers(calls, sets, expected, lambda call: lambda *tensors: (call(*tensors),), rpb)
    case.measure(calls, rounds, baseline_of(case, sets))
    if case.device == "cpu" and case.is_right(OURS) and case.is_right(DEFAULT):
        two = {name: calls[name] for name in (OURS, DEFAULT)}
        case.duel = measure(two, rounds=_DUEL * rounds, sample_time=5e-4)


def baseline_of(case: OpCase, sets: list[tuple[Tensor, ...]]) -> Calls:
    """What bounds the time: on a CPU a matrix product, on a GPU a copy of as many bytes as must be moved."""
    if case.device == "cpu":
        a, b = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE)
        return {MATMUL: lambda: torch.mm(a, b)}
    # As many bytes read as written.
    halves = [(q.new_empty(2 * q.numel()), torch.cat([q.flatten(), k.flatten()])) for q, k, _ in sets]
    return {COPY: rotating(lambda to, source: to.copy_(source), halves)}


def names_of(device: str) -> list[str]:
    """Candidates in the order of tables."""
    return [OURS, *([DEFAULT] if device == "cpu" else []), *(peer.name for peer in PEERS[device])]


def _cell(case: OpCase, name: str) -> str:
    if name in case.unavailable:
        return "unavailable"
    if not case.is_right(name):
        return "[red]wrong numbers[/red]"
    timing = case.timings[name]
    best = "bold" if name == case.best_peer else "not dim"
    return f"[{best}]{milliseconds(timing.median)}[/] [dim]±{timing.spread / 2 / timing.median:.0%}[/dim]"


def table_of(cases: list[OpCase]) -> Table:
    """Medians in milliseconds of every candidate; half the interquartile range in percent of them."""
    device, names = cases[0].device, names_of(cases[0].device)
    baseline = "mm" if device == "cpu" else COPY
    what = "float32, batch 1: ms" if device == "cpu" else "ms"
    title = f"2D neighborhood attention, k 7, head_dim 32, {what}"
    table = numbers_table("map, heads", *names, baseline, "speedup", title=title)
    for case in cases:
        bound = case.matmul_time if device == "cpu" else case.timings[COPY].median
        cells = [_cell(case, name) for name in names]
        table.add_row(case.label, *cells, milliseconds(bound), ratio_text(case.over_peer()))
    return table


def ratios_of(cases: list[OpCase]) -> Table:
    """Where the operator stands beside its default schedule, the baseline and the best peer."""
    table = numbers_table("map, heads", *cases[0].ratios(), title="by medians / round by round")
    rows = [[(ratio(False), ratio(True)) for ratio in case.ratios().values()] for case in cases]
    for case, row in zip(cases, rows, strict=True):
        table.add_row(case.label, *(" / ".join(map(ratio_text, pair)) for pair in row))
    table.add_section()
    means = [[mean_of([pair[kind] for pair in column]) for kind in (0, 1)] for column in zip(*rows, strict=True)]
    table.add_row("geometric mean", *(" / ".join(map(ratio_text, pair)) for pair in means))
    return table


def plot(cases: list[OpCase], path: Path) -> None:
    """A bar chart of the medians on a CPU, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = names_of("cpu")
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        shown = [(x, case.timings[name].median * 1e3) for x, case in enumerate(cases) if case.is_right(name)]
        positions = [x + (i - (len(names) - 1) / 2) * width for x, _ in shown]
        bars = axes.bar(positions, [ms for _, ms in shown], width * 0.95, label=name, color=f"C{i}")
        axes.bar_label(bars, fmt="{:.3g}", fontsize=7, padding=1)
    for x, case in enumerate(cases):
        ms = case.matmul_time * 1e3
        axes.hlines(ms, x - 0.42, x + 0.42, "black", "--", linewidth=1, label="" if x else "torch.mm, same FLOPs")
    labels = [f"{case.problem.spatial[0]}², {case.problem.heads} heads" for case in cases]
    axes.set_xticks(range(len(cases)), labels)
    axes.set_yscale("log")
    axes.set_ylabel("median time per call, ms")
    axes.set_title("2D neighborhood attention: window 7x7, head_dim 32, float32, batch 1")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(names) + 1, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def show(cases: list[OpCase], console: Console) -> None:
    """Tables, and what they do not say."""
    console.print(table_of(cases))
    for peer in PEERS[cases[0].device]:
        console.print(f"  {peer.name}: {peer.what}", style="dim")
    what = "what torch.mm takes for the same useful FLOPs" if cases[0].device == "cpu" else "as many bytes, copied"
    console.print(f"  {'mm' if cases[0].device == 'cpu' else COPY}: {what}", style="dim")
    console.print(ratios_of(cases))
    for case in cases:
        console.print(f"  {case.label}: {case.schedule}", style="dim", markup=False)
    for name, reason in {k: v for case in cases for k, v in case.unavailable.items()}.items():
        console.print(f"unavailable: {name}: {reason}", style="yellow", markup=False)
    mean, by_round = geomean(cases), geomean(cases, by_round=True)
    wrong = "refused: there are wrong numbers, or no peer"
    console.print("geometric mean of best peer / ours: " + (wrong if mean is None else f"{mean:.2f}x"), style="bold")
    if by_round is not None:
        console.print(f"the same round by round: {by_round:.2f}x")


def main(
    device: Device = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Number of samples of every candidate.")] = 21,
    output: Annotated[Path | None, typer.Option(help="JSON file to write; results/op.json if none.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="PNG file to draw.")] = None,
    check: Annotated[bool, typer.Option(help="Exit 1 if a stage is slower than a peer, or the mean below 5x.")] = False,
    goals: Annotated[bool, typer.Option(help="Exit 1 also if tuned kernels miss one of their goals.")] = False,
    dtype: Annotated[Literal["float16", "float32"] | None, typer.Option(help="Only this data type.")] = None,
) -> None:
    """Compare the compiled operator with its peers: gathers, masked SDPA, flex_attention; on a GPU also NATTEN."""
    console = Console(width=200 if device == "cuda" else None)
    load = start(device, console, check=check, goals=goals, plot=plot_file)
    if device == "cpu" and dtype == "float16":
        raise typer.BadParameter("dtype: required float32 with --device cpu, got float16")
    output = output or result_file("op", device)

    def write(done: list[OpCase]) -> None:
        content: dict[str, Any] = {"benchmark": "op", "rounds": rounds, "load_before": load, "geomean": geomean(done)}
        if device == "cpu":
            content["tuning_goals"] = [vars(goal) for goal in tuning_goals(done)]
        write_json(output, {**content, "stages": [case.to_dict() for case in done]}, device)

    with torch.inference_mode():
        cases = carry_out(all_cases(device), partial(run_case, rounds=rounds), write, output, console, dtype)
    show(cases, console)
    console.print(f"medians of {rounds} samples ± half the interquartile range, {torch.get_num_threads()} threads")
    reached = tuning_goals(cases) if device == "cpu" else []
    for goal in reached:
        console.print(str(goal), style="green" if goal.met else "yellow", markup=False)
    if plot_file is not None:
        plot(cases, plot_file)
    failures = failures_of(cases) if check else []
    failures += [str(goal) for goal in reached if not goal.met] if goals else []
    end(failures, console)


if __name__ == "__main__":
    typer.run(main)
