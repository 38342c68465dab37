"""What the benchmarks share: devices, threads, JSON and file names."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine_of
from tvm_na import settings
from tvm_na.measure.timing import format_time

RESULTS = Path(__file__).parent / "results"
Device = Annotated[Literal["cpu", "cuda"], typer.Option(help="Device to measure on.")]


def use_all_cores() -> int:
    """Let PyTorch and our kernels use every core, whatever the environment says; their number."""
    cores = settings.available_cores()
    torch.set_num_threads(cores)
    os.environ["TVM_NA_NUM_THREADS"] = str(cores)
    return cores


def load_before(console: Console) -> float:
    """Processes that computed over the last minute; says so when there were any."""
    load = os.getloadavg()[0]
    if load > 0.5:
        console.print(
            f"warning: the machine is not idle (load {load:.1f} over the last minute); that slows whoever waits at "
            "OpenMP barriers most, so a speedup over PyTorch may come out too high",
            style="yellow",
        )
    return load


def start(device: str, console: Console) -> float:
    """Make ready to measure on ``cpu`` or ``cuda``; the machine's load. Exits with 2 if there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        console.print("required a CUDA device, got none", style="red")
        raise typer.Exit(2)
    use_all_cores()
    return load_before(console)


def write_json(path: Path, content: dict[str, Any], device: str = "cpu") -> None:
    """Write a result with the machine it was measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine_of(device), **content}, indent=1) + "\n", encoding="utf-8")


def end(failures: Sequence[str], console: Console) -> NoReturn:
    """Print what a check found, and exit with 1 if it found something."""
    for failure in failures:
        console.print(f"check failed: {failure}", style="red", markup=False)
    raise typer.Exit(1 if failures else 0)


def numbers_table(*columns: str, title: str = "") -> Table:
    """A table of a column of text and columns of numbers."""
    table = Table(title=title or None, box=SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def milliseconds(seconds: float) -> str:
    """Seconds in milliseconds, without the unit."""
    return format_time(seconds).removesuffix(" ms")
