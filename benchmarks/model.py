"""A whole model, compiled against the reference backend and masked SDPA: ``python -m benchmarks.model [--check]``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.peers import DenseMaskAttention
from benchmarks.report import RESULTS, load_before, use_all_cores, write_json
from tvm_na.functional import Backend
from tvm_na.measure.timing import Timing, format_speedup, format_time, measure, speedup
from tvm_na.models import create_model
from tvm_na.models.problems import problem_of_module
from tvm_na.nn import NeighborhoodAttention2D
from tvm_na.problems.attention import NAProblem
from tvm_na.reference.accuracy import LOGITS_BUDGET, relative_error

MIN_SPEEDUP = 3.0
OURS, REFERENCE, SDPA = Backend.COMPILED.value, Backend.REFERENCE.value, "masked SDPA"


def replaced(
    model: nn.Module, x: torch.Tensor, replacement: Callable[[NeighborhoodAttention2D, NAProblem], nn.Module]
) -> nn.Module:
    """A copy of ``model`` with another module in place of each neighborhood attention, for inputs of ``x``'s size."""
    shapes: dict[str, torch.Size] = {}

    def note(name: str) -> torch.utils.hooks.RemovableHandle:
        module = model.get_submodule(name)
        return module.register_forward_pre_hook(lambda _, args: shapes.__setitem__(name, args[0].shape))

    names = [name for name, module in model.named_modules() if isinstance(module, NeighborhoodAttention2D)]
    hooks = [note(name) for name in names]
    model(x)
    for hook in hooks:
        hook.remove()
    peer = copy.deepcopy(model)
    for name in names:
        module = peer.get_submodule(name)
        assert isinstance(module, NeighborhoodAttention2D)
        peer.set_submodule(name, replacement(module, problem_of_module(module, shapes[name])))
    return peer


def with_masked_sdpa(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """A copy of ``model`` that attends by SDPA with dense masks, for inputs of ``x``'s size."""
    return replaced(model, x, DenseMaskAttention)


@dataclass(frozen=True)
class Comparison:
    """What was measured of one model.

    Attributes:
        timings: By backend or peer.
        errors: Relative error of the logits against the model in float64, by backend or peer.
        difference: Relative difference of the logits between our two backends.
    """

    timings: dict[str, Timing]
    errors: dict[str, float]
    difference: float

    def faster_than(self, name: str) -> float | None:
        """A candidate's time over ours; None if our numbers, or its, are wrong."""
        error = max(self.difference, self.errors[OURS], self.errors[name])
        return speedup(self.timings[OURS], self.timings[name], error, LOGITS_BUDGET)


def compare(name: str, input_size: int, batch: int, rounds: int) -> Comparison:
    """Time a model with random weights on noise, with every backend and peer."""
    torch.manual_seed(0)
    with torch.inference_mode():
        x = torch.randn(batch, 3, input_size, input_size)
        reference = create_model(name, backend=Backend.REFERENCE).eval()
        ours = copy.deepcopy(reference)
        ours.set_backend(Backend.COMPILED)
        models = {OURS: ours, REFERENCE: reference, SDPA: with_masked_sdpa(reference, x)}
        logits = {candidate: model(x) for candidate, model in models.items()}
        expected = copy.deepcopy(reference).double()(x.double())
        timings = measure({k: partial(m, x) for k, m in models.items()}, rounds=rounds, sample_time=0.1)
    errors = {candidate: relative_error(out, expected) for candidate, out in logits.items()}
    return Comparison(timings, errors, relative_error(logits[OURS], logits[REFERENCE]))


def table_of(comparison: Comparison, title: str) -> Table:
    """Median, spread and error of every candidate."""
    table = Table(title=title)
    for column in ("attention", "median", "spread", "error of the logits", f"{OURS} is faster by"):
        table.add_column(column, justify="left" if column == "attention" else "right")
    for name, timing in comparison.timings.items():
        ratio = "" if name == OURS else format_speedup(comparison.faster_than(name))
        error = f"{comparison.errors[name]:.1e}"
        table.add_row(name, format_time(timing.median), format_time(timing.spread), error, ratio)
    return table


def main(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")] = "nat_mini",
    input_size: Annotated[int, typer.Option(min=32, help="Height and width in pixels.")] = 224,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of every candidate.")] = 11,
    output: Annotated[Path | None, typer.Option(help="JSON file to write; results/model_MODEL.json if none.")] = None,
    check: Annotated[bool, typer.Option(help="Exit 1 below the goal: right logits, 3x the reference.")] = False,
) -> None:
    """Compare a model's latency and logits between backends (random weights, fixed seed)."""
    console = Console()
    cores = use_all_cores()
    load = load_before(console)
    with console.status(f"measuring {name}"):
        comparison = compare(name, input_size, batch, rounds)
    title = f"{name}, batch {batch}, {input_size}x{input_size}, float32, {cores} threads"
    console.print(table_of(comparison, title))
    console.print(f"logits of {OURS} and {REFERENCE} differ by {comparison.difference:.1e}")
    content = {
        "benchmark": "model",
        "model": name,
        "batch": batch,
        "input_size": input_size,
        "rounds": rounds,
        "load_before": load,
        "logits_difference": comparison.difference,
        "candidates": {
            k: {**timing.to_dict(), "relative_error": comparison.errors[k], "speedup": comparison.faster_than(k)}
            for k, timing in comparison.timings.items()
        },
    }
    write_json(output or RESULTS / f"model_{name}.json", content)
    ratio = comparison.faster_than(REFERENCE)
    if check and (ratio is None or ratio < MIN_SPEEDUP):
        wanted = f"required logits within {LOGITS_BUDGET:g} and >= {MIN_SPEEDUP:g}x {REFERENCE}"
        came = f"{comparison.difference:.1e} and {format_speedup(ratio)}"
        console.print(f"check failed: {wanted}, got {came}", style="red", markup=False)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
