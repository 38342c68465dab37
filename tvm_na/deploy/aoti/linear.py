"""Whose kernels compute the linear layers of an artifact: ours, or the library's that AOTInductor calls for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from tvm_na.deploy.kernels import with_schedule
from tvm_na.deploy.request import Request
from tvm_na.jit import build, runtime
from tvm_na.measure.linear import LIBRARY, OURS, Layer, by_onednn, compare_linear
from tvm_na.measure.timing import Timing, format_time, interleaved_ratio
from tvm_na.problems.base import HALVES
from tvm_na.problems.dense import DenseProblem
from tvm_na.records.select import Selection, select
from tvm_na.reference.dense_case import packed
from tvm_na.te import ENTRY
from tvm_na.te.dense.product import DenseTile, tile_of


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
        if problem.kernel_size != (1,):
            decisions[problem] = Decision(True, "not measured; a convolution of halves")
        elif request.autotune:
            request.report(f"measuring the linear layer {problem}")
            decisions[problem] = _faster(times(problem, request))
        elif problem.weight_dtype is not None:
            reason = f"not measured; the library has no kernel for {problem.weight_dtype} weights"
            decisions[problem] = Decision(True, reason)
        elif problem.dtype in HALVES:
            decisions[problem] = Decision(True, f"not measured; the library has no {problem.dtype} on many CPUs")
        else:
            tuned = select(problem, request.target, mode=request.records).kind == "record"
            decisions[problem] = Decision(tuned, f"not measured; {'a' if tuned else 'no'} tuning record of it")
    return decisions


def _faster(found: Mapping[str, Timing]) -> Decision:
    ours, library = found[OURS], found[LIBRARY]
    reason = f"ours {format_time(ours.median)}, the library's {format_time(library.median)}"
    return Decision(interleaved_ratio(ours, library) < 1, reason)


def times(problem: DenseProblem, request: Request) -> dict[str, Timing]:
    """What our kernel and the library's take here for the batch of an artifact; for one that takes any, for one sample.

    Raises:
        NotImplementedError, RuntimeError: as :func:`tvm_na.jit.build.kernel_for`.
    """
    batch = min(request.batch or 1, problem.largest_batch(request.target.kind))
    return compare_linear(problem, functools.partial(_launched, request), by_onednn, batch)


def _launched(request: Request, layer: Layer) -> Callable[[], Tensor]:
    """A call of our kernel for the artifact's target and records, with weights of any values."""
    problem, x = layer.problem, layer.x

    def built(selection: Selection) -> tuple[build.Kernel, DenseTile]:
        module, _ = build.scheduled_module(problem, request.target, selection)
        return build.kernel_with(selection, problem, request.target), tile_of(module[ENTRY])

    kernel, tile = with_schedule(problem, request.target, request.records, built)
    weight = packed(layer.weight[:, None], problem, tile)
    given = [t for t in (x, weight, layer.weight_scale, layer.bias, layer.residual) if t is not None]

    def call() -> Tensor:
        out = x.new_empty((len(x), *problem.out_spatial, problem.out_channels))
        runtime.use_threads(problem.useful_flops * len(x))
        kernel.function(*given, out)
        return out

    return call
