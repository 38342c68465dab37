"""Training on an NVIDIA GPU: the operator forward and backward at NAT-Tiny's four stages, ``python -m
benchmarks.cuda_training [--output FILE]``.

Batch 128, float16 and float32; ours also with the relative position bias that NAT has. Gradients are compared with
those of the reference in float64 first; what is wrong gets no time. Otherwise as ``benchmarks.cuda``: inputs rotate,
candidates take turns, times are those of CUDA events, and a run that is repeated goes on where it was.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from benchmarks.cuda import carry_out, measure, name_of
from benchmarks.cuda_peers import PEERS
from benchmarks.report import RESULTS
from tvm_na.functional import na2d
from tvm_na.jit.build import explain, target_for
from tvm_na.measure.cuda import copies_for, rotating
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.reference import attention as reference
from tvm_na.reference.accuracy import relative_error

OURS, BIASED, FORWARD, BACKWARD = "tvm_na", "tvm_na, bias", "forward kernel", "backward kernel"
#: Largest relative error of a gradient, by dtype.
BUDGET = {"float16": 4e-3, "float32": 5e-6}
_BATCH = 128
_CHECKED = 2  # samples

#: Leaves, and the gradient of the output.
Set = tuple[Sequence[Tensor], Tensor]


def cases() -> list[tuple[int, NAProblem]]:
    """Batch sizes and problems."""
    stages = ((56, 2), (28, 4), (14, 8), (7, 16))
    return [
        (_BATCH, NAProblem.make((size, size), 7, heads, 32, dtype=dtype))
        for dtype, (size, heads) in itertools.product(BUDGET, stages)
    ]


def make_sets(problem: NAProblem, batch: int, count: int, device: str) -> list[Set]:
    """So many sets of query, key and value, and d_out."""
    shape = (batch, *problem.spatial, problem.heads, problem.head_dim)
    dtype = getattr(torch, problem.dtype)

    def draw() -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    return [([draw().requires_grad_() for _ in range(3)], draw()) for _ in range(count)]


def bytes_of(problem: NAProblem, batch: int) -> int:
    """Bytes of query, key, value, output and the gradients of the four."""
    elements = 8 * batch * problem.heads * problem.head_dim
    for size in problem.spatial:
        elements *= size
    return elements * getattr(torch, problem.dtype).itemsize


def gradients(call: Callable[..., Tensor], leaves: Sequence[Tensor], d_out: Tensor) -> tuple[Tensor, ...]:
    """The gradients of ``leaves``, forward and backward."""
    return torch.autograd.grad(call(*leaves), leaves, d_out)


def expected(problem: NAProblem, leaves: Sequence[Tensor], d_out: Tensor) -> tuple[Tensor, ...]:
    """The same by the reference in float64; leaves are query, key, value and maybe a bias."""
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    rpb = doubles[3] if len(doubles) > 3 else None
    out, _ = reference.neighborhood_attention(problem, *doubles[:3], scale=problem.head_dim**-0.5, rpb=rpb)
    return torch.autograd.grad(out, doubles, d_out.double())


def error_of(found: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest relative error of a gradient, of the first samples."""
    return max(relative_error(a[: len(b)], b) for a, b in zip(found, right, strict=True))


def candidates_of(
    problem: NAProblem, batch: int, device: str
) -> tuple[dict[str, Callable[[], object]], dict[str, float], dict[str, str]]:
    """What is timed, its relative errors, and why something cannot be."""
    torch.compiler.reset()  # of a function that is compiled for many shapes PyTorch refuses to compile more
    sets = make_sets(problem, batch, copies_for(bytes_of(problem, batch)), device)
    leaves, d_out = sets[0]
    few = [t[:_CHECKED] for t in leaves]
    right = expected(problem, few, d_out[:_CHECKED])

    def ours(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None = None) -> Tensor:
        out: Tensor = na2d(query, key, value, problem.kernel_size, rpb=rpb, backend="compiled")
        return out

    calls: dict[str, Callable[[], object]] = {OURS: rotating(partial(gradients, ours), sets)}
    errors, unavailable = {OURS: error_of(gradients(ours, leaves, d_out), right)}, {}
    shape = (problem.heads, *(2 * k - 1 for k in problem.kernel_size))
    rpb = torch.randn(shape, dtype=d_out.dtype, device=device).requires_grad_()
    calls[BIASED] = rotating(partial(gradients, ours), [([*tensors, rpb], d) for tensors, d in sets])
    few = [t.detach().requires_grad_() for t in (*few, rpb)]
    errors[BIASED] = error_of(gradients(ours, few, d_out[:_CHECKED]), expected(problem, few, d_out[:_CHECKED]))
    for peer in PEERS:
        try:
            call = peer.prepare(problem)
            theirs = [
                ([peer.layout(t.detach()).requires_grad_() for t in tensors], peer.layout(d)) for tensors, d in sets
            ]
            found = [peer.back(t, problem) for t in gradients(call, *theirs[0])]
            errors[peer.name] = error_of(found, right)
            calls[peer.name] = rotating(partial(gradients, call), theirs)
        except Exception as error:  # a compiler's failure has no type of its own; it is reported by name
            unavailable[peer.name] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return {**calls, **passes(problem, sets)}, errors, unavailable


def passes(problem: NAProblem, sets: Sequence[Set]) -> dict[str, Callable[[], object]]:
    """The operators of the two passes alone, with what autograd gives them: the forward pass keeps its log-sum-exp."""
    window = (problem.kernel_size, problem.stride, problem.dilation, problem.is_causal)
    forward, backward = torch.ops.tvm_na.na_forward_lse, torch.ops.tvm_na.na_backward
    scale = problem.head_dim**-0.5
    plain = [([t.detach() for t in leaves], d_out) for leaves, d_out in sets]
    known = [(*leaves, forward(*leaves, None, *window, scale)[1], d_out) for leaves, d_out in plain]
    return {
        FORWARD: rotating(lambda *t: forward(*t[:3], None, *window, scale), known),
        BACKWARD: rotating(lambda q, k, v, lse, d: backward(q, k, v, None, lse, d, None, *window, scale), known),
    }


def run_case(batch: int, problem: NAProblem, rounds: int) -> dict[str, Any]:
    """Check and measure one case; what JSON keeps of it."""
    calls, errors, unavailable = candidates_of(problem, batch, "cuda")
    seconds = measure(right_ones(calls, errors, problem.dtype), rounds)
    medians = {name: statistics.median(samples) for name, samples in seconds.items()}
    target = target_for("cuda", 0)
    schedules = {
        "backward": explain(BackwardProblem(problem), target),
        "forward": explain(NAProblem(**{**vars(problem), "return_lse": True}), target),
    }
    found = {"case": name_of(batch, problem), "bytes": bytes_of(problem, batch), "medians": medians, "errors": errors}
    return {**found, "unavailable": unavailable, "schedules": schedules, "samples": seconds}


def right_ones(
    calls: dict[str, Callable[[], object]], errors: dict[str, float], dtype: str
) -> dict[str, Callable[[], object]]:
    """The candidates with right gradients; the passes alone are as right as ours."""
    budget = BUDGET[dtype]
    return {name: call for name, call in calls.items() if errors.get(name, errors[OURS]) <= budget}


def table_of(found: list[dict[str, Any]]) -> Table:
    """Medians in microseconds, and how many times ours the best peer takes."""
    table = Table(title="2D neighborhood attention, k 7, head_dim 32, forward and backward: microseconds")
    table.box = SIMPLE_HEAD
    names = [FORWARD, BACKWARD, OURS, BIASED, *(peer.name for peer in PEERS)]
    for column in ("case", *names, "backward / forward", "best peer / ours"):
        table.add_column(column, justify="left" if column == "case" else "right", no_wrap=True)
    for case in found:
        medians = case["medians"]
        cells = [f"{medians[name] * 1e6:.1f}" if name in medians else "-" for name in names]
        peers = [medians[peer.name] for peer in PEERS if peer.name in medians]
        ours = medians.get(OURS)
        of_forward = f"{medians[BACKWARD] / medians[FORWARD]:.2f}x" if ours else "refused"
        over = f"{min(peers) / ours:.2f}x" if ours and peers else "-"
        table.add_row(case["case"], *cells, of_forward, over)
    return table


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Samples of every candidate.")] = 21,
    output: Annotated[Path, typer.Option(help="JSON file to write, and to go on from.")] = RESULTS
    / "cuda_training.json",
) -> None:
    """Compare training with the compiled operator, flex_attention, SDPA with a dense bias and NATTEN on a GPU."""
    carry_out("cuda_training", cases(), run_case, table_of, rounds, output)


if __name__ == "__main__":
    typer.run(main)
