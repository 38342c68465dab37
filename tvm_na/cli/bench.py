"""``tvm-na bench``: the compiled backend against the reference, for an operator or a model; an artifact alone."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tvm_na.cli import options
from tvm_na.cli.common import build, console, own_size, reports_errors, say, warn

if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(help="Time the compiled backend against the reference, or an artifact.", no_args_is_help=True)


def _compare(
    title: str, candidates: Mapping[str, Callable[[], Tensor]], rounds: int, error: float, budget: float
) -> None:
    """Time ``compiled`` and ``reference`` and print a table; Exit(1) without a speedup if ``error`` is too large."""
    from rich.table import Table

    from tvm_na import settings
    from tvm_na.measure.timing import format_speedup, format_time, measure, speedup

    out = console()
    with out.status("measuring"):
        timings = measure(candidates, rounds=rounds)
    table = Table("backend", "median", "spread", "fastest", "slowest", title=title)
    for name, t in timings.items():
        table.add_row(name, *(format_time(seconds) for seconds in (t.median, t.spread, t.minimum, t.maximum)))
    out.print(table)
    out.print(f"{rounds} samples, {settings.num_threads()} threads; spread is the interquartile range")
    out.print(f"relative error {error:.1e}, budget {budget:.0e}")
    ratio = speedup(timings["compiled"], timings["reference"], error, budget)
    if ratio is None:
        out.print(f"wrong numbers: no speedup is given for an error of {error:.1e} > {budget:.0e}", style="bold red")
        raise typer.Exit(1)
    out.print(f"speedup {format_speedup(ratio)}", style="bold green")


@app.command("op")
@reports_errors
def bench_op(
    size: options.Size = (56, 56),
    heads: options.Heads = 2,
    head_dim: options.HeadDim = 32,
    kernel_size: options.KernelSize = 7,
    dilation: options.Dilation = 1,
    stride: options.Stride = 1,
    causal: options.Causal = False,
    rpb: options.Bias = False,
    dtype: Annotated[Literal["float32", "float64"], typer.Option(help="Data type of all tensors.")] = "float32",
    batch: options.BatchSize = 1,
    rounds: options.Rounds = 15,
) -> None:
    """Time one attention operator; refuses a speedup when the numbers are wrong."""
    import torch

    from tvm_na.functional import na2d
    from tvm_na.jit.build import explain
    from tvm_na.problems.attention import NAProblem
    from tvm_na.reference.accuracy import ERROR_BUDGET, relative_error

    problem = NAProblem.make(
        size, kernel_size, heads, head_dim, stride=stride, dilation=dilation, is_causal=causal, dtype=dtype, bias=rpb
    )
    torch.manual_seed(0)
    shape = (batch, *problem.spatial, problem.heads, problem.head_dim)
    query, key, value = (torch.randn(shape, dtype=getattr(torch, problem.dtype)) for _ in range(3))
    bias = torch.randn(problem.bias_shape, dtype=query.dtype) if problem.bias else None

    def attend(backend: str) -> Tensor:
        return na2d(query, key, value, *problem.window, rpb=bias, backend=backend)

    build([problem])
    say(f"kernel: {explain(problem)}")
    with torch.inference_mode():
        exact_bias = None if bias is None else bias.double()
        doubles = partial(na2d, query.double(), key.double(), value.double())
        exact = doubles(*problem.window, rpb=exact_bias, backend="reference")
        error = relative_error(attend("compiled"), exact)
        candidates = {backend: partial(attend, backend) for backend in ("compiled", "reference")}
        _compare(f"{problem}, batch {batch}", candidates, rounds, error, ERROR_BUDGET[problem.dtype])


@app.command("model")
@reports_errors
def bench_model(
    name: options.ModelName,
    input_size: options.InputSize = None,
    batch: options.BatchSize = 1,
    rounds: options.Rounds = 9,
) -> None:
    """Time a model with random weights; refuses a speedup when the logits are wrong."""
    import torch

    from tvm_na.models import create_model, problems_of
    from tvm_na.reference.accuracy import LOGITS_BUDGET, relative_error

    size = input_size or own_size(name)
    torch.manual_seed(0)
    compiled = create_model(name, backend="compiled").eval()
    reference = copy.deepcopy(compiled)
    reference.set_backend("reference")
    warn("random weights: logits and latency are compared, not what the model sees")
    x = torch.randn(batch, 3, size, size)
    build(problems_of(compiled, size))
    with torch.inference_mode():
        error = relative_error(compiled(x), reference(x))
        candidates = {"compiled": partial(compiled, x), "reference": partial(reference, x)}
        title = f"{name}, {size}x{size}, batch {batch}, float32"
        _compare(title, candidates, rounds, error, LOGITS_BUDGET)


@app.command("artifact")
@reports_errors
def bench_artifact(
    path: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder.")],
    batch: Annotated[int | None, typer.Option(min=1, help="Batch size; the artifact's own, or 1.")] = None,
    rounds: options.Rounds = 9,
) -> None:
    """Time how an artifact is verified, loaded and called with noise."""
    import torch
    from rich.table import Table

    from tvm_na.deploy.artifact import made_of
    from tvm_na.deploy.manifest import read_manifest, verify
    from tvm_na.measure.timing import format_time, measure

    moments = [time.perf_counter()]
    folder = path.absolute()
    manifest = read_manifest(folder)
    verify(folder, manifest)
    moments.append(time.perf_counter())
    artifact = made_of(folder, manifest)
    moments.append(time.perf_counter())
    torch.manual_seed(0)
    sizes = [batch or manifest.batch or 1 if n is None or i == 0 else n for i, n in enumerate(manifest.input.shape)]
    images = torch.randn(sizes, dtype=getattr(torch, manifest.input.dtype))
    artifact(images)
    moments.append(time.perf_counter())
    timing = measure({"artifact": lambda: artifact(images)}, rounds=rounds)["artifact"]
    table = Table("what", "time", title=f"{path.name}, batch {len(images)}")
    for name, start, end in zip(("verify", "load", "first call"), moments[:-1], moments[1:], strict=True):
        table.add_row(name, format_time(end - start))
    table.add_row("call, median", format_time(timing.median))
    table.add_row("spread", format_time(timing.spread))
    console().print(table)
    console().print(f"{rounds} samples, {torch.get_num_threads()} threads; spread is the interquartile range")
