"""A whole model with different kinds of attention: ``python -m benchmarks.model [MODEL] [--device cuda] [--check]``.

The same weights in every candidate. On a CPU: float32, against the reference backend and masked SDPA. On a GPU:
float16, batch 128, against ``flex_attention`` (compiled, with the relative position bias as its ``score_mod``), each as
it is and through ``torch.compile``. Logits are compared with the model in float64 first; what is wrong gets no time.
Candidates are interleaved; on a GPU inputs rotate and times are those of CUDA events.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.common import Device, end, numbers_table, result_file, start, write_json
from benchmarks.peers import DenseMaskAttention, FlexAttention
from tvm_na.functional import Backend
from tvm_na.measure.clocks import clock_of
from tvm_na.measure.cuda import rotating
from tvm_na.measure.timing import Timing, format_speedup, format_time, measure, speedup
from tvm_na.models import create_model
from tvm_na.models.problems import problem_of_module
from tvm_na.nn import NeighborhoodAttention2D
from tvm_na.problems.attention import NAProblem
from tvm_na.reference.accuracy import LOGITS_BUDGET, relative_error

MIN_SPEEDUP = 3.0
OURS, REFERENCE, SDPA, FLEX = Backend.COMPILED.value, Backend.REFERENCE.value, "masked SDPA", "flex"
_COMPILED = ", torch.compile"
#: Of logits, relative to the largest; on a GPU of float16 throughout some twenty layers.
BUDGET = {"cpu": LOGITS_BUDGET, "cuda": 2e-2}
_CHECKED = 2  # images on a GPU


def replaced(
    model: nn.Module, x: Tensor, replacement: Callable[[NeighborhoodAttention2D, NAProblem], nn.Module]
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


@dataclass(frozen=True)
class Comparison:
    """What was measured of one model, by candidate.

    Attributes:
        timings: Of candidates with right logits.
        errors: Relative error of the logits against the model in float64.
        budget: The largest error that is right.
        difference: Relative difference of the logits between our two backends; 0 on a GPU, where one is compared.
    """

    timings: dict[str, Timing]
    errors: dict[str, float]
    budget: float
    difference: float = 0.0

    def faster_than(self, name: str) -> float | None:
        """A candidate's time over that of ours (through ``torch.compile``, if it is); None if either is wrong."""
        ours = OURS + (_COMPILED if name.endswith(_COMPILED) else "")
        if not {ours, name} <= self.timings.keys():
            return None
        error = max(self.difference, self.errors[ours], self.errors[name])
        return speedup(self.timings[ours], self.timings[name], error, self.budget)


def candidates_of(ours: nn.Module, x: Tensor, compiled: bool) -> dict[str, Any]:
    """The model with each attention, for inputs like ``x``; on a GPU also through ``torch.compile`` if wanted."""
    if x.device.type == "cpu":
        reference = copy.deepcopy(ours)
        reference.set_backend(Backend.REFERENCE)
        return {OURS: ours, REFERENCE: reference, SDPA: replaced(reference, x, DenseMaskAttention)}
    found: dict[str, Any] = {OURS: ours, FLEX: replaced(ours, x, FlexAttention)}
    if compiled:
        found |= {f"{name}{_COMPILED}": torch.compile(copy.deepcopy(model)) for name, model in found.items()}
    return found


def compare(name: str, input_size: int, batch: int, device: str, rounds: int, compiled: bool = True) -> Comparison:
    """Time a model with random weights on noise, with every way to attend."""
    torch.manual_seed(0)
    on_gpu = device == "cuda"
    dtype = torch.half if on_gpu else torch.float32
    with torch.inference_mode():
        sets = [torch.randn(batch, 3, input_size, input_size).to(device, dtype) for _ in range(2 if on_gpu else 1)]
        ours = create_model(name, backend=Backend.COMPILED).eval().to(device, dtype)
        models = candidates_of(ours, sets[0], compiled)
        exact = copy.deepcopy(ours).cpu().double()
        exact.set_backend(Backend.REFERENCE)
        expected = exact((sets[0][:_CHECKED] if on_gpu else sets[0]).cpu().double())
        logits = {key: model(sets[0])[: len(expected)].cpu() for key, model in models.items()}
        errors = {key: relative_error(found, expected) for key, found in logits.items()}
        right = {key: rotating(m, [(x,) for x in sets]) for key, m in models.items() if errors[key] <= BUDGET[device]}
        sample_time, warmup_time = (0.0, 0.0) if on_gpu else (0.1, 0.1)
        times = {"sample_time": sample_time, "warmup_time": warmup_time}
        timings = measure(right, rounds=rounds, clock=clock_of(device), **times) if right else {}
    difference = 0.0 if on_gpu else relative_error(logits[OURS], logits[REFERENCE])
    return Comparison(timings, errors, BUDGET[device], difference)


def table_of(comparison: Comparison, title: str, batch: int) -> Table:
    """Median, spread, images per second and error of every candidate."""
    columns = ("attention", "median", "spread", "images/s", "error of the logits", f"{OURS} is faster by")
    table = numbers_table(*columns, title=title)
    for name, error in comparison.errors.items():
        timing = comparison.timings.get(name)
        shown = ["-"] * 3
        if timing is not None:
            shown = [format_time(timing.median), format_time(timing.spread), f"{batch / timing.median:.0f}"]
        ratio = "" if name.startswith(OURS) else format_speedup(comparison.faster_than(name))
        table.add_row(name, *shown, f"{error:.1e}", ratio)
    return table


def main(
    name: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="nat_mini if none, nat_tiny on a GPU.")] = None,
    device: Device = "cpu",
    input_size: Annotated[int, typer.Option(min=32, help="Height and width in pixels.")] = 224,
    batch: Annotated[int | None, typer.Option(min=1, help="Batch size; 1 if none, 128 on a GPU.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of samples of every candidate.")] = 11,
    compiled: Annotated[bool, typer.Option(help="On a GPU also through torch.compile, which takes minutes.")] = True,
    output: Annotated[Path | None, typer.Option(help="JSON file to write; results/model_MODEL.json if none.")] = None,
    check: Annotated[bool, typer.Option(help="Exit 1 below the goal: right logits, 3x the reference.")] = False,
) -> None:
    """Compare a model's latency and logits between ways to attend (random weights, fixed seed)."""
    console = Console()
    load = start(device, console, check=check)
    name = name or ("nat_mini" if device == "cpu" else "nat_tiny")
    batch = batch or (1 if device == "cpu" else 128)
    with console.status(f"measuring {name}"):
        comparison = compare(name, input_size, batch, device, rounds, compiled)
    kind = f"float32, {torch.get_num_threads()} threads" if device == "cpu" else "float16"
    console.print(table_of(comparison, f"{name}, batch {batch}, {input_size}x{input_size}, {kind}", batch))
    if device == "cpu":
        console.print(f"logits of {OURS} and {REFERENCE} differ by {comparison.difference:.1e}")
    about = {k: {"relative_error": e, "speedup": comparison.faster_than(k)} for k, e in comparison.errors.items()}
    content = {
        "benchmark": "model",
        "model": name,
        "batch": batch,
        "input_size": input_size,
        "rounds": rounds,
        "load_before": load,
        "logits_difference": comparison.difference,
        "images_per_second": {k: batch / timing.median for k, timing in comparison.timings.items()},
        "candidates": {k: {**t.to_dict(), **about[k]} for k, t in comparison.timings.items()},
        "wrong": {k: found for k, found in about.items() if k not in comparison.timings},
    }
    write_json(output or result_file(f"model_{name}", device), content, device)
    ratio = comparison.faster_than(REFERENCE) if device == "cpu" else None
    if check and (ratio is None or ratio < MIN_SPEEDUP):
        wanted = f"required logits within {LOGITS_BUDGET:g} and >= {MIN_SPEEDUP:g}x {REFERENCE}"
        end([f"{wanted}, got {comparison.difference:.1e} and {format_speedup(ratio)}"], console)


if __name__ == "__main__":
    typer.run(main)
