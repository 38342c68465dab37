"""The tables of ``tvm-na info --model MODEL --target cuda-...``: what kernels would take, by the static model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tvm_na.cli.common import console, say

if TYPE_CHECKING:
    from tvm_na.cuda.static.bounds import Estimate
    from tvm_na.cuda.static.facts import Facts
    from tvm_na.problems.registry import Problem
    from tvm_na.targets.gpus import Gpu
    from tvm_na.targets.target import NATarget

_MICRO, _MEGA = 1e6, 1e-6


def show(title: str, problems: Mapping[Problem, int], target: NATarget, gpu: Gpu, batch: int) -> None:
    """Two tables with a row for each device function: what is in its code, and what it would take.

    Args:
        title: What the problems are of.
        problems: With the layers that pose each.
        target: What kernels are built for.
        gpu: Whose rates are taken.
        batch: Samples of a call.
    """
    from tvm_na.cuda.static.bounds import estimate

    found = _found(problems, target, batch)
    rows = [(problem, facts, estimate(facts, gpu)) for problem, functions in found.items() for facts in functions]
    say(f"{title}, batch {batch}, {gpu.name}: estimated from the code, not run on a GPU", style="bold cyan")
    console().print(_code_table(rows), "")
    console().print(_times_table(rows), "")
    total = sum(problems[problem] * times.seconds for problem, _, times in rows)
    say(f"all layers together: {total * _MICRO:.0f} us, estimated")
    _tell_of_what_lacks(facts for _, facts, _ in rows)


def _found(problems: Iterable[Problem], target: NATarget, batch: int) -> dict[Problem, list[Facts]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from tvm_na.cli.common import errors
    from tvm_na.jit.estimates import facts_for

    found, ordered = {}, list(problems)
    columns = (TextColumn("looking at kernels"), BarColumn(), MofNCompleteColumn())
    where = errors()
    with Progress(*columns, TextColumn("{task.description}", markup=False), console=where, transient=True) as progress:
        task = progress.add_task("", total=len(ordered))
        for problem in ordered:
            progress.update(task, description=str(problem))
            found[problem] = facts_for(problem, target, batch)
            progress.advance(task)
    return found


def _table(first: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, style="bold")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _labels(rows: Iterable[tuple[Problem, Facts, Estimate]]) -> list[str]:
    """The problem of each row, with a number for each but the first of its device functions."""
    labels: list[str] = []
    before: Problem | None = None
    number = 1
    for problem, _, _ in rows:
        number = number + 1 if problem == before else 1
        labels.append(f"{problem}" if number == 1 else f"  its function {number}")
        before = problem
    return labels


def _code_table(rows: list[tuple[Problem, Facts, Estimate]]) -> Any:
    """Registers, blocks, instructions."""
    language = rows[0][1].language if rows else ""
    names = ("regs", "spills", "KiB shared", "warps", "blocks/SM", language, "executed", "mma", "copies", "L2 MB", "MB")
    table = _table("problem", *names)
    for label, (_, facts, _) in zip(_labels(rows), rows, strict=True):
        table.add_row(
            label,
            str(facts.registers),
            str(facts.spill_bytes),
            f"{facts.shared_bytes / 1024:.1f}",
            str(facts.warps),
            str(facts.at_once),
            str(facts.code),
            f"{facts.executed:.0f}",
            f"{facts.products:g}" if facts.products.is_integer() else f"{facts.products:.1f}",
            f"{facts.copies:.0f}",
            f"{facts.from_cache * _MEGA:.4g}",
            f"{facts.tensors * _MEGA:.4g}",
        )
    return table


def _times_table(rows: list[tuple[Problem, Facts, Estimate]]) -> Any:
    """Bounds in us, the largest of them in bold, and the estimated time."""
    from tvm_na.cuda.static.bounds import BOUNDS

    table = _table("problem (us)", *BOUNDS, "largest", "estimated")
    for label, (_, _, times) in zip(_labels(rows), rows, strict=True):
        cells = [f"{times.bounds[name] * _MICRO:.3g}" for name in BOUNDS]
        cells = [
            f"[bold]{cell}[/]" if name == times.largest else cell for name, cell in zip(BOUNDS, cells, strict=True)
        ]
        table.add_row(label, *cells, times.largest, f"{times.seconds * _MICRO:.3g}")
    return table


def _tell_of_what_lacks(functions: Iterable[Facts]) -> None:
    known = list(functions)
    if any(facts.language == "PTX" for facts in known):
        say(
            "instructions are those of PTX, of which one may be several of the machine's: its own need cuobjdump and "
            "nvdisasm (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)"
        )
    if any(facts.guessed for facts in known):
        say("some branches depend on data: they are taken for not taken")
