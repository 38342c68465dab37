"""The operator on an NVIDIA GPU at NAT-Tiny's four stages: ``python -m benchmarks.cuda [--output FILE]``.

Batch 128 and 1, float16 and float32. Numbers are checked first; what is wrong gets no time. Inputs rotate through more
memory than the last cache holds. Candidates take turns; times are those of CUDA events around some calls, before which
the GPU is kept busy, so that it waits for no launch. The bound is
the time that a copy needs which reads and writes as much memory as query, key, value and output take. A run that is
repeated goes on where it was: cases that are in the output file are not measured again.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.cuda_peers import PEERS
from benchmarks.gpu_machine import gpu_machine
from benchmarks.report import RESULTS
from tvm_na.functional import na2d
from tvm_na.jit.build import explain, target_for
from tvm_na.measure.cuda import copies_for, rotating
from tvm_na.measure.timing import CudaClock
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference
from tvm_na.reference.accuracy import ERROR_BUDGET, relative_error

OURS, COPY = "tvm_na", "copy"
DTYPES = ("float16", "float32")
_SAMPLE_SECONDS = 2e-3

Inputs = tuple[Tensor, Tensor, Tensor]


def cases(dtypes: Sequence[str] = DTYPES) -> list[tuple[int, NAProblem]]:
    """Batch sizes and problems."""
    stages = ((56, 2), (28, 4), (14, 8), (7, 16))
    return [
        (batch, NAProblem.make((size, size), 7, heads, 32, dtype=dtype))
        for dtype, batch, (size, heads) in itertools.product(dtypes, (128, 1), stages)
    ]


def bytes_of(problem: NAProblem, batch: int) -> int:
    """Bytes of query, key, value and output."""
    elements = batch * problem.heads * (3 * problem.head_dim + problem.head_dim_v)
    for size in problem.spatial:
        elements *= size
    return elements * getattr(torch, problem.dtype).itemsize


def make_inputs(problem: NAProblem, batch: int, count: int) -> list[Inputs]:
    """So many sets of query, key and value on the GPU."""
    shape = (batch, *problem.spatial, problem.heads, problem.head_dim)
    dtype = getattr(torch, problem.dtype)
    return [
        (
            torch.randn(shape, dtype=dtype, device="cuda"),
            torch.randn(shape, dtype=dtype, device="cuda"),
            torch.randn(shape, dtype=dtype, device="cuda"),
        )
        for _ in range(count)
    ]


def candidates_of(
    problem: NAProblem, batch: int
) -> tuple[dict[str, Callable[[], object]], dict[str, float], dict[str, str]]:
    """What is timed, its relative errors, and why something cannot be."""
    torch.compiler.reset()  # of a function that is compiled for many shapes PyTorch refuses to compile more
    sets = make_inputs(problem, batch, copies_for(bytes_of(problem, batch)))
    few = tuple(t[:1].double() for t in sets[0])
    expected, _ = reference.neighborhood_attention(problem, *few, scale=problem.head_dim**-0.5)

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = na2d(query, key, value, problem.kernel_size, backend="compiled")
        return out

    errors = {OURS: relative_error(ours(*sets[0])[:1], expected)}
    calls, unavailable = {OURS: rotating(ours, sets)}, {}
    for peer in PEERS:
        try:
            call = peer.prepare(problem)
            theirs = [tuple(map(peer.layout, inputs)) for inputs in sets]
            errors[peer.name] = relative_error(peer.back(call(*theirs[0]), problem)[:1], expected)
            calls[peer.name] = rotating(call, theirs)
        except Exception as error:  # a compiler's failure has no type of its own; it is reported by name
            unavailable[peer.name] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    # As many bytes read as written, as many in all as the operator must move.
    halves = [
        (torch.empty(2 * q.numel(), dtype=q.dtype, device="cuda"), torch.cat([q.flatten(), k.flatten()]))
        for q, k, _ in sets
    ]
    calls[COPY] = rotating(lambda to, source: to.copy_(source), halves)
    return calls, errors, unavailable


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds per call of every sample, in turns."""
    watch, counts = CudaClock(), {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        counts[name] = max(1, min(2000, int(_SAMPLE_SECONDS / max(watch.seconds(call, 5), 1e-7))))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            seconds[name].append(watch.seconds(call, counts[name]))
    return seconds


def run_case(batch: int, problem: NAProblem, rounds: int) -> dict[str, Any]:
    """Check and measure one case; what JSON keeps of it."""
    with torch.inference_mode():
        calls, errors, unavailable = candidates_of(problem, batch)
        right = {n: c for n, c in calls.items() if n == COPY or errors[n] <= ERROR_BUDGET[problem.dtype]}
        seconds = measure(right, rounds)
    medians = {name: statistics.median(samples) for name, samples in seconds.items()}
    found = {"case": name_of(batch, problem), "bytes": bytes_of(problem, batch), "medians": medians, "errors": errors}
    return {
        **found,
        "unavailable": unavailable,
        "schedule": explain(problem, target_for("cuda", 0)),
        "samples": seconds,
    }


def name_of(batch: int, problem: NAProblem) -> str:
    """A case in words."""
    return f"{problem.dtype}, batch {batch}, {problem.spatial[0]}x{problem.spatial[1]}, {problem.heads} heads"


def table_of(found: list[dict[str, Any]]) -> Table:
    """Medians in microseconds, and what ours is in terms of the bound and of the best peer."""
    table = Table(title="2D neighborhood attention, k 7, head_dim 32: microseconds", box=SIMPLE_HEAD)
    names = [OURS, *(peer.name for peer in PEERS), COPY]
    for column in ("case", *names, "ours / copy", "best peer / ours"):
        table.add_column(column, justify="left" if column == "case" else "right", no_wrap=True)
    for case in found:
        medians = case["medians"]
        cells = [f"{medians[name] * 1e6:.1f}" if name in medians else "-" for name in names]
        peers = [medians[peer.name] for peer in PEERS if peer.name in medians]
        ours = medians.get(OURS)
        bound = f"{ours / medians[COPY]:.2f}x" if ours else "refused"
        over = f"{min(peers) / ours:.2f}x" if ours and peers else "-"
        table.add_row(case["case"], *cells, bound, over)
    return table


def carry_out(
    name: str,
    cases: list[tuple[int, NAProblem]],
    run_case: Callable[[int, NAProblem, int], dict[str, Any]],
    table_of: Callable[[list[dict[str, Any]]], Table],
    rounds: int,
    output: Path,
) -> None:
    """Run the cases that are not in ``output`` yet, write each as it ends, and show all; exit 2 without a GPU."""
    console = Console(width=200)
    if not torch.cuda.is_available():
        console.print("required a CUDA device, got none", style="red")
        raise typer.Exit(2)
    found: list[dict[str, Any]] = json.loads(output.read_text(encoding="utf-8"))["cases"] if output.is_file() else []
    done = {case["case"] for case in found}
    for batch, problem in cases:
        if name_of(batch, problem) in done:
            continue
        with console.status(name_of(batch, problem)):
            found.append(run_case(batch, problem, rounds))
        output.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": gpu_machine(), "benchmark": name, "rounds": rounds, "cases": found}
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(table_of(found))
    for case in found:
        for peer, reason in case["unavailable"].items():
            console.print(f"  unavailable: {case['case']}: {peer}: {reason}", style="dim", markup=False)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Samples of every candidate.")] = 21,
    output: Annotated[Path, typer.Option(help="JSON file to write, and to go on from.")] = RESULTS / "cuda.json",
    dtype: Annotated[Literal["float16", "float32"] | None, typer.Option(help="Only this data type.")] = None,
) -> None:
    """Compare the compiled operator with flex_attention, SDPA with a dense bias and NATTEN on a GPU."""
    carry_out("cuda", cases([dtype] if dtype else DTYPES), run_case, table_of, rounds, output)


if __name__ == "__main__":
    typer.run(main)
