"""Training: ``python -m benchmarks.training [--check]``.

The operator's backward pass at NAT-Tiny's four stages beside its forward pass and beside peers that PyTorch can
differentiate, a step of a whole model beside the same step with the reference backend, and peak memory. float32, all
cores; candidates take turns in one process, and gradients that deviate from the float64 reference get no time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.memory import Peak, peak_of
from benchmarks.op import STAGES
from benchmarks.peers import PEERS, heads_first
from benchmarks.report import RESULTS, load_before, use_all_cores, write_json
from benchmarks.stage import mean_of
from tvm_na.functional import Backend, na2d
from tvm_na.measure.timing import Timing, format_time, interleaved_ratio, measure
from tvm_na.models import create_model
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference
from tvm_na.reference.accuracy import relative_error

MAX_OF_FORWARD, MIN_STEP, MAX_MEMORY = 3.0, 5.0, 3.0
#: Largest relative error of a gradient, of an operator's and of a model's.
GRADIENTS, MODEL_GRADIENTS = 5e-6, 1e-3
OURS, FORWARD, BACKWARD = "tvm_na", "forward kernel", "backward kernel"


@dataclass
class Stage:
    """What was measured for one problem: seconds, and the largest relative error of a gradient, by candidate."""

    problem: NAProblem
    timings: dict[str, Timing] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    @property
    def of_forward(self) -> float | None:
        """The time of the backward kernel over that of the forward kernel; None if our gradients are wrong."""
        if not self.errors[OURS] <= GRADIENTS:
            return None
        return interleaved_ratio(self.timings[BACKWARD], self.timings[FORWARD])

    def over(self, peer: str) -> float | None:
        """A peer's time, forward and backward, over ours; None if the gradients of either are wrong."""
        right = max(self.errors[OURS], self.errors.get(peer, float("inf"))) <= GRADIENTS
        return interleaved_ratio(self.timings[peer], self.timings[OURS]) if right else None


def differentiated(run: Callable[[], Tensor], tensors: list[Tensor], d_out: Tensor) -> tuple[Tensor, ...]:
    """The gradients of ``tensors``, forward and backward."""
    return torch.autograd.grad(run(), tensors, d_out)


def run_stage(problem: NAProblem, rounds: int) -> Stage:
    """Measure every candidate at one problem."""
    torch.manual_seed(0)
    stage, scale = Stage(problem), problem.head_dim**-0.5
    drawn = [torch.randn(1, *problem.spatial, problem.heads, problem.head_dim) for _ in range(4)]
    *tensors, d_out = drawn
    doubles = [t.double().requires_grad_() for t in tensors]
    right = torch.autograd.grad(reference.neighborhood_attention(problem, *doubles, scale)[0], doubles, d_out.double())
    leaves = [t.requires_grad_() for t in tensors]
    calls: dict[str, Callable[[], Any]] = {}

    def ours() -> Tensor:
        out: Tensor = na2d(*leaves, problem.kernel_size, backend=Backend.COMPILED)
        return out

    calls[OURS] = partial(differentiated, ours, leaves, d_out)
    stage.errors[OURS] = max(map(relative_error, calls[OURS](), right))
    first = [heads_first(t.detach()).requires_grad_() for t in leaves]
    for peer in PEERS:
        try:
            call = partial(differentiated, peer.prepare(problem, tuple(first)), first, heads_first(d_out))
            found = call()
        except Exception as error:  # a compiler's failure has no type of its own; it is reported by name
            cause = error.__cause__ or error  # what Dynamo observed, rather than that it did
            stage.unavailable[peer.name] = f"{type(cause).__name__}: {cause}".strip().splitlines()[0]
            continue
        stage.errors[peer.name] = max(relative_error(g, heads_first(r)) for g, r in zip(found, right, strict=True))
        calls[peer.name] = call
    stage.timings = measure({**calls, **_kernels(problem, tensors, d_out, scale)}, rounds=rounds)
    return stage


def _kernels(problem: NAProblem, tensors: list[Tensor], d_out: Tensor, scale: float) -> dict[str, Callable[[], Any]]:
    """The operators of the two passes alone, with what autograd gives them: the forward pass keeps its log-sum-exp."""
    query, key, value = (t.detach() for t in tensors)
    window = (problem.kernel_size, problem.stride, problem.dilation, problem.is_causal)
    forward, backward = torch.ops.tvm_na.na_forward_lse, torch.ops.tvm_na.na_backward
    _, lse = forward(query, key, value, None, *window, scale)
    return {
        FORWARD: lambda: forward(query, key, value, None, *window, scale),
        BACKWARD: lambda: backward(query, key, value, None, lse, d_out, None, *window, scale),
    }


@dataclass(frozen=True)
class Step:
    """A training step of a model, by backend; the largest relative error of a parameter's gradient in float64."""

    timings: dict[str, Timing]
    errors: dict[str, float]

    @property
    def speedup(self) -> float | None:
        """The reference backend's time over ours, round by round; None if our gradients are wrong."""
        ours, other = self.timings[Backend.COMPILED.value], self.timings[Backend.REFERENCE.value]
        return interleaved_ratio(other, ours) if max(self.errors.values()) <= MODEL_GRADIENTS else None


def step(model: nn.Module, x: Tensor, target: Tensor) -> None:
    """Loss and gradients."""
    model.zero_grad()
    nn.functional.cross_entropy(model(x), target).backward()


def run_step(name: str, input_size: int, batch: int, rounds: int) -> Step:
    """Time a step of a model with random weights on noise."""
    torch.manual_seed(0)
    x, target = torch.randn(batch, 3, input_size, input_size), torch.randint(0, 1000, (batch,))
    base = create_model(name, backend=Backend.REFERENCE, drop_path_rate=0.0)
    models = {backend.value: copy.deepcopy(base) for backend in (Backend.COMPILED, Backend.REFERENCE)}
    models[Backend.COMPILED.value].set_backend(Backend.COMPILED)
    step(base.double(), x.double(), target)
    right = dict(base.named_parameters())
    errors = {}
    for backend, model in models.items():
        step(model, x, target)
        errors[backend] = max(relative_error(p.grad, right[n].grad) for n, p in model.named_parameters())
    calls = {backend: partial(step, model, x, target) for backend, model in models.items()}
    return Step(measure(calls, rounds=rounds, sample_time=0.1, warmup_time=0.5), errors)


def _ratio(value: float | None) -> str:
    return "refused" if value is None else f"{value:.2f}x"


def table_of(stages: list[Stage]) -> Table:
    """Medians in milliseconds."""
    names = [FORWARD, BACKWARD, OURS, *(peer.name for peer in PEERS)]
    title = "2D neighborhood attention, k 7, head_dim 32, float32, batch 1: ms; from the third on forward and backward"
    table = Table(title=title, box=SIMPLE_HEAD)
    for column in ("map, heads", *names, "backward / forward"):
        table.add_column(column, justify="left" if column == "map, heads" else "right")
    for stage in stages:
        p = stage.problem
        cells = [
            format_time(stage.timings[name].median).removesuffix(" ms") if name in stage.timings else "unavailable"
            for name in names
        ]
        table.add_row(f"{p.spatial[0]}x{p.spatial[1]}, {p.heads}", *cells, _ratio(stage.of_forward))
    return table


def failures_of(stages: list[Stage], one: Step, peaks: list[Peak]) -> list[str]:
    """What is below its goal."""
    found = []
    mean = mean_of([stage.of_forward for stage in stages])
    if mean is None or mean > MAX_OF_FORWARD:
        found.append(f"backward / forward, geometric mean: required <= {MAX_OF_FORWARD:g}x, got {_ratio(mean)}")
    if one.speedup is None or one.speedup < MIN_STEP:
        found.append(f"reference's step / ours: required >= {MIN_STEP:g}x, got {_ratio(one.speedup)}")
    for peak in peaks:
        if peak.ratio > MAX_MEMORY:
            found.append(f"peak memory at {peak.problem}: required <= {MAX_MEMORY:g}x, got {peak.ratio:.2f}x")
    return found


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Samples of every candidate.")] = 15,
    model: Annotated[str, typer.Option(help="Whose step is timed.")] = "nat_tiny",
    input_size: Annotated[int, typer.Option(min=32, help="Of its images, in pixels.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Images of a step.")] = 8,
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = RESULTS / "training.json",
    check: Annotated[bool, typer.Option(help="Exit 1 below a goal.")] = False,
) -> None:
    """Measure what training costs."""
    console = Console()
    cores = use_all_cores()
    load = load_before(console)
    stages = []
    for problem in STAGES:
        with console.status(f"{problem}"):
            stages.append(run_stage(problem, rounds))
    console.print(table_of(stages))
    mean = mean_of([stage.of_forward for stage in stages])
    console.print(
        f"backward / forward, geometric mean: {_ratio(mean)} ({rounds} rounds, {cores} threads)", style="bold"
    )
    for name, reason in {k: v for stage in stages for k, v in stage.unavailable.items()}.items():
        console.print(f"unavailable: {name}: {reason}", style="yellow", markup=False)
    with console.status(f"a step of {model}"):
        one = run_step(model, input_size, batch, rounds)
    for backend, timing in one.timings.items():
        console.print(f"step of {model}, {input_size} px, batch {batch}, {backend}: {format_time(timing.median)}")
    console.print(f"reference's step / ours: {_ratio(one.speedup)}", style="bold")
    with console.status("memory"):
        peaks = [peak_of(NAProblem.make((n, n), 7, 2, 32, bias=True)) for n in (56, 112, 224)]
    for peak in peaks:
        console.print(f"peak memory, {peak.problem}: {peak.peak / 1e6:.1f} MB, {peak.ratio:.2f}x of its tensors")
    content = {
        "benchmark": "training",
        "rounds": rounds,
        "load_before": load,
        "backward_over_forward": mean,
        "stages": [_to_dict(stage) for stage in stages],
        "step": {"model": model, "input_size": input_size, "batch": batch, "speedup": one.speedup, **_of(one)},
        "memory": [{"problem": str(p.problem), "tensors": p.tensors, "peak": p.peak} for p in peaks],
    }
    write_json(output, content)
    failures = failures_of(stages, one, peaks) if check else []
    for failure in failures:
        console.print(f"check failed: {failure}", style="red", markup=False)
    raise typer.Exit(1 if failures else 0)


def _of(measured: Stage | Step) -> dict[str, Any]:
    timings = {name: timing.to_dict() for name, timing in measured.timings.items()}
    return {"candidates": timings, "errors": measured.errors}


def _to_dict(stage: Stage) -> dict[str, Any]:
    peers = {peer.name: stage.over(peer.name) for peer in PEERS if peer.name in stage.errors}
    found = {"problem": str(stage.problem), "unavailable": stage.unavailable, "over_peers": peers}
    return {**found, "backward_over_forward": stage.of_forward, **_of(stage)}


if __name__ == "__main__":
    typer.run(main)
