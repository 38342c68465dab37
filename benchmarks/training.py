"""Training: ``python -m benchmarks.training [--device cuda] [--check]``.

The operator's backward pass at NAT-Tiny's four stages beside its forward pass and beside peers that PyTorch can
differentiate. Candidates are interleaved in one process; gradients that deviate from the float64 reference get no time.

On a CPU: float32, batch 1, all cores; also a step of a whole model beside the same step with the reference backend, and
peak memory. On a GPU: batch 128, float16 and float32, ours also with the relative position bias that NAT has; otherwise
as ``benchmarks.op``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.case import CHECKED, OURS, Calls, Case, carry_out, error_of, mean_of, stages_of
from benchmarks.common import Device, end, milliseconds, numbers_table, ratio_text, result_file, start, write_json
from benchmarks.memory import Peak, peak_of
from benchmarks.peers import PEERS
from tvm_na.functional import Backend, na2d
from tvm_na.jit.build import explain, target_for
from tvm_na.measure.cuda import rotating
from tvm_na.measure.timing import Timing, format_time, interleaved_ratio, measure
from tvm_na.models import create_model
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.reference import attention as reference
from tvm_na.reference.accuracy import relative_error

MAX_OF_FORWARD, MIN_STEP, MAX_MEMORY = 3.0, 5.0, 3.0
#: Largest relative error of a gradient: of an operator's by dtype, and of a model's.
BUDGET, MODEL_GRADIENTS = {"float16": 4e-3, "float32": 5e-6}, 1e-3
BIASED, FORWARD, BACKWARD = "tvm_na, bias", "forward kernel", "backward kernel"


@dataclass
class TrainingCase(Case):
    """What was measured for one problem: forward and backward; errors are the largest of a gradient."""

    schedules: dict[str, str] = field(default_factory=dict)

    @property
    def budget(self) -> float:
        return BUDGET[self.problem.dtype]

    @property
    def of_forward(self) -> float | None:
        """The time of the backward kernel over that of the forward kernel; None if our gradients are wrong."""
        return self.ratio(BACKWARD, FORWARD, by_round=True) if self.is_right(OURS) else None

    def over(self, peer: str) -> float | None:
        """A peer's time over ours; None if the gradients of either are wrong."""
        return self.ratio(peer, OURS, by_round=True) if self.is_right(OURS) and self.is_right(peer) else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        peers = {peer.name: self.over(peer.name) for peer in PEERS[self.device] if peer.name in self.errors}
        found = {**super().to_dict(), "over_peers": peers, "backward_over_forward": self.of_forward}
        return {**found, "schedules": self.schedules}

    def load(self, content: dict[str, Any]) -> None:
        super().load(content)
        self.schedules = content["schedules"]


def all_cases(device: str) -> list[TrainingCase]:
    """What is measured on a device."""
    if device == "cpu":
        return [TrainingCase(problem) for problem in stages_of()]
    return [TrainingCase(problem, 128, device) for dtype in BUDGET for problem in stages_of(dtype)]


def gradients(call: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    """The gradients of all ``tensors`` but the last, which is that of the output; forward and backward."""
    *leaves, d_out = tensors
    return torch.autograd.grad(call(*leaves), leaves, d_out)


def expected(problem: NAProblem, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The same by the reference in float64, of query, key, value and maybe a bias."""

    def right(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None = None) -> Tensor:
        return reference.neighborhood_attention(problem, query, key, value, scale=problem.head_dim**-0.5, rpb=rpb)[0]

    *leaves, d_out = tensors
    return gradients(right, *(t.detach().double().requires_grad_() for t in leaves), d_out.double())


def run_case(case: TrainingCase, rounds: int, biased: bool) -> None:
    """Measure every candidate of one case; ``biased``: ours with a bias, too."""
    problem, sets = case.problem, case.draw(4, differentiated=True)

    def ours(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None = None) -> Tensor:
        return na2d(query, key, value, problem.kernel_size, rpb=rpb, backend=Backend.COMPILED)

    few = [t[:CHECKED] for t in sets[0]]
    right = expected(problem, *few)
    calls: Calls = {OURS: rotating(partial(gradients, ours), sets)}
    case.errors[OURS] = error_of(gradients(ours, *sets[0]), right)
    if biased:
        shape = (problem.heads, *(2 * k - 1 for k in problem.kernel_size))
        rpb = torch.randn(shape, dtype=few[0].dtype, device=case.device).requires_grad_()
        calls[BIASED] = rotating(partial(gradients, ours), [(*tensors, rpb, d_out) for *tensors, d_out in sets])
        leaves = [t.detach().requires_grad_() for t in (*few[:3], rpb)]
        case.errors[BIASED] = error_of(gradients(ours, *leaves, few[3]), expected(problem, *leaves, few[3]))
    case.add_peers(calls, sets, right, lambda call: partial(gradients, call))
    case.measure({**calls, **passes(problem, sets)}, rounds)
    target = target_for("cuda", 0) if case.device == "cuda" else None
    case.schedules["backward"] = explain(BackwardProblem(problem), target)
    case.schedules["forward"] = explain(NAProblem(**{**vars(problem), "return_lse": True}), target)


def passes(problem: NAProblem, sets: Sequence[tuple[Tensor, ...]]) -> Calls:
    """The operators of the two passes alone, with what autograd gives them: the forward pass keeps its log-sum-exp."""
    forward, backward = torch.ops.tvm_na.na_forward_lse, torch.ops.tvm_na.na_backward
    window, scale = problem.window, problem.head_dim**-0.5
    plain = [tuple(t.detach() for t in tensors) for tensors in sets]
    known = [(q, k, v, forward(q, k, v, None, *window, scale)[1], d_out) for q, k, v, d_out in plain]
    return {
        FORWARD: rotating(lambda *t: forward(*t[:3], None, *window, scale), known),
        BACKWARD: rotating(lambda q, k, v, lse, d: backward(q, k, v, None, lse, d, None, *window, scale), known),
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


def table_of(cases: list[TrainingCase]) -> Table:
    """Medians in milliseconds."""
    device = cases[0].device
    ours = (OURS,) if device == "cpu" else (OURS, BIASED)
    names = [FORWARD, BACKWARD, *ours, *(peer.name for peer in PEERS[device])]
    title = "2D neighborhood attention, k 7, head_dim 32: ms; from the third on forward and backward"
    table = numbers_table("map, heads", *names, "backward / forward", "best peer / ours", title=title)
    for case in cases:
        cells = [
            milliseconds(case.timings[name].median)
            if name in case.timings
            else ("unavailable" if name in case.unavailable else "wrong")
            for name in names
        ]
        table.add_row(case.label, *cells, ratio_text(case.of_forward), ratio_text(case.over_peer()))
    return table


def failures_of(cases: list[TrainingCase], one: Step, peaks: list[Peak]) -> list[str]:
    """What is below its goal."""
    found = []
    mean = mean_of([case.of_forward for case in cases])
    if mean is None or mean > MAX_OF_FORWARD:
        found.append(f"backward / forward, geometric mean: required <= {MAX_OF_FORWARD:g}x, got {ratio_text(mean)}")
    if one.speedup is None or one.speedup < MIN_STEP:
        found.append(f"reference's step / ours: required >= {MIN_STEP:g}x, got {ratio_text(one.speedup)}")
    for peak in peaks:
        if peak.ratio > MAX_MEMORY:
            found.append(f"peak memory at {peak.problem}: required <= {MAX_MEMORY:g}x, got {peak.ratio:.2f}x")
    return found


def main(
    device: Device = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Number of samples of every candidate.")] = 15,
    model: Annotated[str, typer.Option(help="Name of the model whose step is timed, on a CPU.")] = "nat_tiny",
    input_size: Annotated[int, typer.Option(min=32, help="Height and width of its images in pixels.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Batch size of its step.")] = 8,
    output: Annotated[Path | None, typer.Option(help="JSON file to write; results/training.json if none.")] = None,
    check: Annotated[bool, typer.Option(help="Exit 1 below a goal.")] = False,
) -> None:
    """Measure what training costs."""
    console = Console(width=200 if device == "cuda" else None)
    load = start(device, console, check=check)
    output = output or result_file("training", device)
    content: dict[str, Any] = {"benchmark": "training", "rounds": rounds, "load_before": load}

    def write(done: list[TrainingCase]) -> None:
        content["backward_over_forward"] = mean_of([case.of_forward for case in done])
        content["stages"] = [case.to_dict() for case in done]
        write_json(output, content, device)

    run = partial(run_case, rounds=rounds, biased=device == "cuda")
    cases = carry_out(all_cases(device), run, write, output, console)
    console.print(table_of(cases))
    mean = ratio_text(mean_of([case.of_forward for case in cases]))
    console.print(f"backward / forward, geometric mean: {mean} ({rounds} rounds)", style="bold")
    for name, reason in {k: v for case in cases for k, v in case.unavailable.items()}.items():
        console.print(f"unavailable: {name}: {reason}", style="yellow", markup=False)
    if device == "cuda":
        return
    with console.status(f"a step of {model}"):
        one = run_step(model, input_size, batch, rounds)
    for backend, timing in one.timings.items():
        console.print(f"step of {model}, {input_size} px, batch {batch}, {backend}: {format_time(timing.median)}")
    console.print(f"reference's step / ours: {ratio_text(one.speedup)}", style="bold")
    with console.status("memory"):
        peaks = [peak_of(NAProblem.make((n, n), 7, 2, 32, bias=True)) for n in (56, 112, 224)]
    for peak in peaks:
        console.print(f"peak memory, {peak.problem}: {peak.peak / 1e6:.1f} MB, {peak.ratio:.2f}x of its tensors")
    candidates = {name: timing.to_dict() for name, timing in one.timings.items()}
    about = {"model": model, "input_size": input_size, "batch": batch, "speedup": one.speedup}
    content["step"] = {**about, "candidates": candidates, "errors": one.errors}
    content["memory"] = [{"problem": str(p.problem), "tensors": p.tensors, "peak": p.peak} for p in peaks]
    write_json(output, content)
    failures = failures_of(cases, one, peaks) if check else []
    end(failures, console)


if __name__ == "__main__":
    typer.run(main)
