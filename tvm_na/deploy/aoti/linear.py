"""Whose kernels compute the linear layers of an artifact: ours, or the library's that AOTInductor calls for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tvm_na.deploy.kernels import with_schedule
from tvm_na.deploy.request import Request
from tvm_na.jit import build, runtime
from tvm_na.measure.timing import Timing, format_time, interleaved_ratio, measure
from tvm_na.problems.dense import DenseProblem
from tvm_na.records.select import Selection, select
from tvm_na.reference.case import draw
from tvm_na.te import ENTRY
from tvm_na.te.dense.product import DenseTile, pack_weight, tile_of

#: How both are timed, in turns.
ROUNDS, SAMPLE_TIME, WARMUP_TIME = 15, 0.004, 0.02  # seconds


@dataclass(frozen=True)
class Decision:
    """Whether a linear layer gets a kernel of ours, and why, in words."""

    ours: bool
    reason: str


def decide(problems: Iterable[DenseProblem], request: Request) -> dict[DenseProblem, Decision]:
    """Whose kernels compute linear layers in an artifact.

    Where alternatives are measured (``request.autotune``) it is the faster one's, elsewhere ours for those that were
    tuned.
    """
    decisions = {}
    for problem in problems:
        if request.autotune:
            request.report(f"measuring the linear layer {problem}")
            decisions[problem] = _faster(*times(problem, request))
        elif problem.weight_dtype is not None:
            reason = f"not measured; the library has no kernel for {problem.weight_dtype} weights"
            decisions[problem] = Decision(True, reason)
        else:
            tuned = select(problem, request.target, mode=request.records).kind == "record"
            decisions[problem] = Decision(tuned, f"not measured; {'a' if tuned else 'no'} tuning record of it")
    return decisions


def _faster(ours: Timing, library: Timing) -> Decision:
    reason = f"ours {format_time(ours.median)}, the library's {format_time(library.median)}"
    return Decision(interleaved_ratio(ours, library) < 1, reason)


def times(problem: DenseProblem, request: Request) -> tuple[Timing, Timing]:
    """What our kernel and the library's take here for the batch of an artifact; for one that takes any, for one sample.

    Raises:
        NotImplementedError, RuntimeError: as :func:`tvm_na.jit.build.kernel_for`.
    """
    batch = min(request.batch or 1, problem.largest_batch(request.target.kind))
    inputs = [a for a in problem.arguments() if a.role == "input"]
    drawn = dict(
        zip((a.name for a in inputs), draw(inputs, batch, "cpu", torch.Generator().manual_seed(0)), strict=True)
    )
    functions = {"ours": _ours(problem, request, drawn), "library": _library(problem.activation, **drawn)}
    timings = measure(functions, rounds=ROUNDS, sample_time=SAMPLE_TIME, warmup_time=WARMUP_TIME)
    return timings["ours"], timings["library"]


def _ours(problem: DenseProblem, request: Request, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    """A call of our kernel."""

    def built(selection: Selection) -> tuple[build.Kernel, DenseTile]:
        module, _ = build.scheduled_module(problem, request.target, selection)
        return build.kernel_with(selection, problem, request.target), tile_of(module[ENTRY])

    kernel, tile = with_schedule(problem, request.target, request.records, built)
    packed = torch.from_numpy(pack_weight(inputs["weight"].numpy(), problem, tile)).clone()  # aligned
    x, given = inputs["x"], list((inputs | {"weight": packed}).values())

    def call() -> Tensor:
        out = x.new_empty((len(x), *problem.out_spatial, problem.out_channels))
        runtime.use_threads(problem.useful_flops * len(x))
        kernel.function(*given, out)
        return out

    return call


def _library(
    activation: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> Callable[[], Tensor]:
    """A call of what Inductor calls where weights are constants; ``weight`` is ``[out, 1, in]``.

    Of int8 weights it makes float32 ones at every call: ATen's ``_weight_int8pack_mm`` is for bfloat16 (in float32 it
    took 40 times as long), and Inductor's patterns take that alone.
    """
    weight = weight.squeeze(1)
    rows, addend = x.flatten(0, -2), None if residual is None else residual.flatten(0, -2)
    if weight_scale is not None or not _is_packed(x.dtype):

        def plain() -> Tensor:
            wide = weight if weight_scale is None else weight.to(x.dtype) * weight_scale[:, None]
            out = F.linear(rows, wide, bias)
            out = F.gelu(out) if activation == "gelu" else out
            return out if addend is None else out + addend

        return plain
    onednn = torch.ops.mkldnn
    packed = onednn._reorder_linear_weight(weight, len(rows))
    algorithm = "none" if activation == "gelu" else ""

    def with_packed_weight() -> Tensor:
        if addend is not None and activation == "none":
            return onednn._linear_pointwise.binary(rows, addend, packed, bias, "add")
        out = onednn._linear_pointwise(rows, packed, bias, activation, [], algorithm)
        return out if addend is None else out + addend

    return with_packed_weight


def _is_packed(dtype: torch.dtype) -> bool:
    """Whether AOTInductor has oneDNN compute linear layers, with weights that it laid out ahead."""
    return dtype == torch.float32 and torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
