"""The numbers and pictures of docs/guide/properties.md: ``python -m benchmarks.properties [--no-cost]``.

What neighborhood attention costs over the size of the map beside self-attention, how its output nears that of
self-attention as the window grows, and what a shift by one pixel does to it and to attention within blocks. The last
two are the same on every machine but for rounding; times want an idle one, and ``--no-cost`` leaves them, their
picture and their table alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.common import RESULTS, load_before, milliseconds, numbers_table, use_all_cores, write_json
from benchmarks.memory import CANDIDATES, FUSED, OURS, WRITTEN_OUT, call_of, footprint_of, problem_of
from benchmarks.properties.cases import dense_flops, distance_to_self_attention, drawn, interior, shift_errors
from benchmarks.properties.plots import plot_cost, plot_shift, plot_window
from tvm_na.measure.timing import Timing, measure
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference
from tvm_na.reference.accuracy import ERROR_BUDGET, relative_error

DOCS = Path(__file__).parents[2] / "docs"
SIZES = (14, 28, 56, 84, 112)
#: The map, its windows and the shift of the pictures; blocks of the window's length fill the map.
MAP, WINDOWS, BLOCK, SHIFT = 28, (3, 5, 7, 11, 15, 19, 23, 26, 28), 7, (1, 1)
#: Around the part of the page that is written here.
BEGIN, END = "<!-- numbers: python -m benchmarks.properties -->\n", "<!-- end of numbers -->\n"


@dataclass(frozen=True)
class Cost:
    """What one map of ``size`` by ``size`` costs, by candidate.

    Attributes:
        footprints: Bytes beside inputs and output.
        errors: :func:`relative_error` of the outputs, against the reference or self-attention in float64.
    """

    size: int
    timings: dict[str, Timing]
    footprints: dict[str, int]
    errors: dict[str, float]

    def seconds(self, name: str) -> float | None:
        """The median time of a candidate; None if its numbers are wrong."""
        return self.timings[name].median if self.errors[name] <= ERROR_BUDGET["float32"] else None


def cost_of(size: int, rounds: int) -> Cost:
    """Measure every candidate on one map, interleaved, then the memory of each."""
    problem = problem_of(size)
    tensors = drawn(problem, problem.spatial, 1, 0)[:3]
    calls = {name: call_of(name, *tensors) for name in CANDIDATES}
    doubles = [t.double() for t in tensors]
    scale = problem.head_dim**-0.5
    right = {OURS: reference.neighborhood_attention(problem, *doubles, scale)[0]}
    right |= dict.fromkeys((FUSED, WRITTEN_OUT), call_of(FUSED, *doubles)())
    errors = {name: relative_error(call(), right[name]) for name, call in calls.items()}
    timings = measure(calls, rounds=rounds, sample_time=0.05)
    return Cost(size, timings, {name: footprint_of(name, size) for name in CANDIDATES}, errors)


def exponent(sizes: list[int], values: list[Any]) -> float | None:
    """The power of tokens with which a cost grows between the two largest maps; None if one is missing."""
    first, last = values[-2:]
    if not first or not last:
        return None
    return math.log(last / first) / math.log(sizes[-1] ** 2 / sizes[-2] ** 2)


def exponents_of(costs: list[Cost]) -> dict[str, dict[str, float | None]]:
    """:func:`exponent` of time and memory, by candidate."""
    sizes = [cost.size for cost in costs]
    return {
        name: {
            "time": exponent(sizes, [cost.seconds(name) for cost in costs]),
            "memory": exponent(sizes, [cost.footprints[name] for cost in costs]),
        }
        for name in CANDIDATES
    }


def _rows(costs: list[Cost]) -> list[list[str]]:
    """The table of costs, a header first: multiply-adds, then time and memory of every candidate."""
    names = [f"{name}, {unit}" for name in CANDIDATES for unit in ("ms", "MB")]
    rows = [["map", "NA, 10⁶ products", "self-attention", *names]]
    for cost in costs:
        problem = problem_of(cost.size)
        products = [f"{n / 2e6:,.1f}" for n in (problem.useful_flops, dense_flops(problem))]
        measured = []
        for name in CANDIDATES:
            seconds = cost.seconds(name)
            measured.append("wrong" if seconds is None else milliseconds(seconds))
            measured.append(f"{cost.footprints[name] / 1e6:.1f}")
        rows.append([f"{cost.size}x{cost.size}", *products, *measured])
    grown = ["exponent", "1", "2"]
    for found in exponents_of(costs).values():
        grown += ["refused" if power is None else f"{power:.2f}" for power in (found["time"], found["memory"])]
    return [*rows, grown]


def table_of(costs: list[Cost]) -> Table:
    """The costs for a terminal."""
    header, *rows = _rows(costs)
    table = numbers_table(*header, title="k 7, 2 heads of 32, float32, batch 1")
    for row in rows:
        table.add_row(*row)
    return table


def markdown_of(costs: list[Cost], rounds: int, threads: int) -> str:
    """The costs for the page."""
    header, *rows = _rows(costs)
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    picture = "![Cost over the size of the map](../pictures/cost.png)"
    return f"{picture}\n\n{table}\n\nMedians of {rounds} rounds, {threads} threads.\n"


def put_into(page: Path, text: str) -> None:
    """Replace what the page has between its marks; ValueError if it does not have both marks once, in order."""
    content = page.read_text(encoding="utf-8")
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"page: required the marks {BEGIN.strip()} and {END.strip()} once, got {page} without")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def distances() -> dict[int, float]:
    """The distance to self-attention by the window's length."""
    return {k: distance_to_self_attention(NAProblem.make((MAP, MAP), k, 2, 32)) for k in WINDOWS}


def shifted() -> dict[str, Tensor]:
    """Where a shift by one pixel is not kept, of neighborhood attention and of attention within blocks."""
    sliding = NAProblem.make((MAP, MAP), BLOCK, 2, 32, bias=True)
    blocked = NAProblem.make((MAP, MAP), BLOCK, 2, 32, stride=BLOCK, bias=True)
    found = {"neighborhood attention, k 7": sliding, "blocked attention, k 7, stride 7": blocked}
    return {name: shift_errors(problem, SHIFT) for name, problem in found.items()}


def measure_costs(sizes: list[int], rounds: int, console: Console) -> list[Cost]:
    """The cost of every map, smallest first."""
    costs = []
    for size in sorted(sizes):
        with console.status(f"{size}x{size}"), torch.inference_mode():
            costs.append(cost_of(size, rounds))
    return costs


def main(
    cost: Annotated[bool, typer.Option(help="Measure time and memory, too.")] = True,
    sizes: Annotated[str, typer.Option(help="Heights of the square maps, with commas.")] = ",".join(map(str, SIZES)),
    rounds: Annotated[int, typer.Option(min=1, help="Samples of every candidate.")] = 9,
    output: Annotated[Path, typer.Option(help="JSON file to write of the costs.")] = RESULTS / "properties.json",
    pictures: Annotated[Path, typer.Option(help="Folder to draw into.")] = DOCS / "pictures",
    page: Annotated[Path, typer.Option(help="Page whose table of costs is replaced.")] = DOCS / "guide/properties.md",
) -> None:
    """Measure the three properties and draw them."""
    console = Console()
    threads = use_all_cores()
    with console.status("windows and shifts"), torch.inference_mode():
        windows, shifts = distances(), shifted()
    plot_window(MAP, windows, pictures / "window.png")
    plot_shift(shifts, pictures / "shift.png")
    for k, distance in windows.items():
        console.print(f"kernel_size {k}: difference to self-attention {distance:.2g}")
    inside = interior(NAProblem.make((MAP, MAP), BLOCK, 2, 32), SHIFT)
    for name, error in shifts.items():
        console.print(f"{name}, a shift by one pixel: at most {error[inside].max().item():.2g} away from borders")
    if not cost:
        return
    heights = sizes.split(",")
    if len(heights) < 2 or not all(n.isdecimal() and int(n) >= BLOCK for n in heights):
        raise typer.BadParameter(f"required two or more integers >= {BLOCK}, with commas, got {sizes!r}")
    load = load_before(console)
    costs = measure_costs([int(n) for n in heights], rounds, console)
    console.print(table_of(costs))
    shown = [c.size for c in costs]
    flops = {"neighborhood attention": [problem_of(n).useful_flops for n in shown]}
    flops["self-attention"] = [dense_flops(problem_of(n)) for n in shown]
    times = {name: [c.seconds(name) for c in costs] for name in CANDIDATES}
    footprints = {name: [c.footprints[name] for c in costs] for name in CANDIDATES}
    plot_cost(shown, flops, times, footprints, pictures / "cost.png")
    content = {
        "benchmark": "properties",
        "rounds": rounds,
        "load_before": load,
        "exponents": exponents_of(costs),
        "costs": [_to_dict(c) for c in costs],
        "distances": {str(k): distance for k, distance in windows.items()},
    }
    write_json(output, content)
    put_into(page, markdown_of(costs, rounds, threads))


def _to_dict(cost: Cost) -> dict[str, Any]:
    problem = problem_of(cost.size)
    timings = {name: timing.to_dict() for name, timing in cost.timings.items()}
    flops = {"useful": problem.useful_flops, "dense": dense_flops(problem)}
    measured = {"errors": cost.errors, "bytes": cost.footprints, "candidates": timings}
    return {"problem": str(problem), "flops": flops, **measured}


if __name__ == "__main__":
    typer.run(main)
