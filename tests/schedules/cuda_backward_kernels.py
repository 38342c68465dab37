"""Kernels of gradients on GPUs, run in the emulation and compared with autograd of the reference in float64."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.cuda_emulator.emulate import Emulated
from tests.helpers import random_inputs, reference64, relative_error
from tests.schedules.cuda_kernels import TARGET
from tvm_na.cuda.library import generated
from tvm_na.cuda.limits import Sizes, UnlaunchableError, check_sizes
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem, scratch_shapes
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Plan, Scheduled

#: The largest error, relative to the largest element of a gradient. Halves round each gradient once.
BUDGET = {"float64": 1e-12, "float32": 5e-6, "float16": 4e-3, "bfloat16": 3e-2}
NAMES = ("d_query", "d_key", "d_value", "d_rpb")


@functools.lru_cache(maxsize=1)
def formulations(problem: BackwardProblem) -> list[Any]:
    """The PrimFuncs of a problem."""
    (space,) = spaces_for(problem, TARGET)
    return space.formulations(problem, TARGET)


def scheduled(
    problem: BackwardProblem,
    formulation: int = 0,
    plan: Plan = Plan(),  # noqa: B008
) -> Scheduled:
    """A schedule of one of a problem's formulations."""
    (space,) = spaces_for(problem, TARGET)
    found = space.apply(formulations(problem)[formulation], TARGET, plan)
    assert found is not None
    return found


@dataclass(frozen=True)
class Launch:
    """A device function: its name, its blocks for each batch, the threads of a block along x, y and z."""

    name: str
    grid: str
    block: tuple[int, int, int]


@dataclass(frozen=True)
class BackwardKernels:
    """The generated source of one schedule.

    Attributes:
        problem: What it computes.
        source: CUDA C++.
        launches: What is launched, in order.
        sizes: Threads and shared memory of the largest block.
    """

    problem: BackwardProblem
    source: str
    launches: tuple[Launch, ...]
    sizes: Sizes

    def with_source(self, source: str) -> BackwardKernels:
        """The same with another source."""
        return dataclasses.replace(self, source=source)

    @property
    def fits(self) -> bool:
        """Whether a GPU can have such blocks."""
        try:
            check_sizes(self.sizes, TARGET)
        except UnlaunchableError:
            return False
        return True


def kernels_of(problem: BackwardProblem, schedule: Scheduled) -> BackwardKernels:
    """The source that TVM generates for a schedule, and how it is launched."""
    module = schedule.schedule.mod
    source, sizes = generated(module, TARGET)
    bound = re.findall(r"thread_binding\(([^,]+), thread=\"([\w.]+)\"\)", module.script())
    nests: list[dict[str, str]] = []
    for text, axis in bound:
        if axis == "blockIdx.x":
            nests.append({})
        assert axis not in nests[-1]
        nests[-1][axis] = text
    names = Emulated(source).kernels
    assert len(names) == len(nests)
    launches = []
    for name, nest in zip(names, nests, strict=True):
        block = (int(nest.get("threadIdx.x", "1")), int(nest.get("threadIdx.y", "1")), 1)
        launches.append(Launch(name, nest["blockIdx.x"], block))
    return BackwardKernels(problem, source, tuple(launches), sizes)


def random_gradients(problem: NAProblem, batch: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """d_out, and d_lse or None."""
    generator = torch.Generator().manual_seed(seed + 1)
    tokens = (batch, *problem.spatial, problem.heads)
    d_out = torch.randn(*tokens, problem.head_dim_v, generator=generator, dtype=torch.float64)
    d_lse = torch.randn(*tokens, generator=generator, dtype=torch.float64)
    d_out = d_out.to(getattr(torch, problem.dtype))
    return d_out, d_lse.to(getattr(torch, problem.accum_dtype)) if problem.return_lse else None


def run(
    kernels: BackwardKernels, inputs: Any, gradients: Any, scale: float, seed: int = 0, lse: Tensor | None = None
) -> dict[str, Tensor]:
    """The gradients by name in the emulation; they, and what kernels pass to each other, are NaN before."""
    problem = kernels.problem.forward
    query, key, value, rpb = inputs
    accum = getattr(torch, problem.accum_dtype)
    if lse is None:
        lse = reference64(problem, inputs, scale)[1].to(accum).contiguous()
    found = {n: torch.full_like(t, math.nan) for n, t in zip(NAMES, inputs, strict=True) if t is not None}
    shapes = scratch_shapes(kernels.problem, len(query))
    scratch = [torch.full(shape, math.nan, dtype=accum) for shape in shapes]
    arguments: dict[str, Any] = {"query": query, "key": key, "value": value, "rpb": rpb, "lse": lse}
    arguments |= {"scale": torch.tensor([scale], dtype=accum), "d_out": gradients[0], "d_lse": gradients[1]}
    arguments |= {"shift": scratch[0], "bias_sums": scratch[-1], "batch": len(query), **found}
    emulated = Emulated(kernels.source)
    for launch in kernels.launches:
        parameters = emulated.kernels[launch.name].parameters
        given = [arguments[parameter.name.removesuffix("_ptr")] for parameter in parameters]
        blocks = math.prod(len(query) if n == "batch" else int(n) for n in launch.grid.split(" * "))
        emulated.launch(launch.name, (blocks, 1, 1), launch.block, given, seed=seed)
    return found


def right(problem: NAProblem, inputs: Any, gradients: Any, scale: float) -> dict[str, Tensor]:
    """The gradients by name, by autograd of the reference in float64."""
    leaves = [t.double().requires_grad_() for t in inputs if t is not None]
    results = reference64(problem, (*leaves[:3], leaves[3] if problem.bias else None), scale)
    given = [t.double() for t in gradients if t is not None]
    return dict(zip(NAMES, torch.autograd.grad(results[: len(given)], leaves, given), strict=False))


def errors(kernels: BackwardKernels, batch: int = 1, seed: int = 0, scale: float | None = None) -> dict[str, float]:
    """The relative errors of the gradients of random inputs, by name."""
    problem = kernels.problem.forward
    inputs, gradients = random_inputs(problem, batch, seed), random_gradients(problem, batch, seed)
    scale = problem.head_dim**-0.5 if scale is None else scale
    found, wanted = run(kernels, inputs, gradients, scale, seed), right(problem, inputs, gradients, scale)
    assert found.keys() == wanted.keys()
    if math.prod(problem.kernel_size) > 1:
        return {name: relative_error(gradient, wanted[name]) for name, gradient in found.items()}
    # One key has the weight 1 whatever its score: gradients of scores are 0 or d_lse, and what is found beside that the
    # roundings of one product, in the bias of as many as there are queries.
    terms = {**dict.fromkeys(NAMES, 1), "d_rpb": batch * math.prod(problem.spatial)}
    found_errors = {}
    for name, gradient in found.items():
        difference, largest = (gradient.double() - wanted[name]).abs().max().item(), wanted[name].abs().max().item()
        found_errors[name] = difference / max(largest, terms[name])
    return found_errors


def assert_right(kernels: BackwardKernels, batch: int = 1, seed: int = 0, scale: float | None = None) -> None:
    """Compare the gradients of random inputs with the reference in float64."""
    found = errors(kernels, batch, seed, scale)
    assert all(error <= BUDGET[kernels.problem.dtype] for error in found.values()), (str(kernels.problem), found)
