"""Kernels of CUDA schedules, run in the emulation and compared with the reference."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from dataclasses import dataclass
from typing import Any

import torch

from tests.conftest import TOLERANCE
from tests.cuda_emulator.emulate import Emulated
from tests.helpers import random_inputs, reference64, relative_error, share
from tvm_na.cuda.library import generated
from tvm_na.cuda.limits import Sizes, UnlaunchableError, check_sizes
from tvm_na.problems.attention import NAProblem
from tvm_na.schedules import SearchSpace, spaces_for
from tvm_na.schedules.base import Plan, Scheduled
from tvm_na.targets.target import parse_target

TARGET = parse_target("cuda-sm_80")
#: How many random points of each space are tried.
POINTS = share(5)
GATHER, BAND = "cuda-gather", "cuda-band"


def scheduled(
    problem: NAProblem,
    formulation: int = 0,
    plan: Plan = Plan(),  # noqa: B008
    space: str = GATHER,
) -> Scheduled:
    """A schedule of one of a problem's formulations in a space."""
    found = space_of(problem, space).apply(formulations(problem, space)[formulation], TARGET, plan)
    assert found is not None
    return found


def space_of(problem: NAProblem, name: str) -> SearchSpace:
    """The space of that name, which must serve the problem."""
    (space,) = (space for space in spaces_for(problem, TARGET) if space.name == name)
    return space


@functools.lru_cache(maxsize=1)
def formulations(problem: NAProblem, space: str = GATHER) -> list[Any]:
    """The PrimFuncs of a problem in a space."""
    return space_of(problem, space).formulations(problem, TARGET)


@dataclass(frozen=True)
class CudaKernel:
    """The generated source of one schedule.

    Attributes:
        problem: What it computes.
        source: CUDA C++.
        grid: The blocks per sample.
        block: Threads of a block along x, y and z.
        sizes: Threads and shared memory of a block.
    """

    problem: NAProblem
    source: str
    grid: int
    block: tuple[int, int, int]
    sizes: Sizes

    def with_source(self, source: str) -> CudaKernel:
        """The same with another source."""
        return dataclasses.replace(self, source=source)

    @property
    def fits(self) -> bool:
        """Whether a GPU can have such a block."""
        try:
            check_sizes(self.sizes, TARGET)
        except UnlaunchableError:
            return False
        return True


def kernel_of(problem: NAProblem, schedule: Scheduled) -> CudaKernel:
    """The source that TVM generates for a schedule, and how it is launched."""
    module = schedule.schedule.mod
    source, sizes = generated(module, TARGET)
    extents = _extents(module)
    block = (extents.get("threadIdx.x", 1), extents.get("threadIdx.y", 1), extents.get("threadIdx.z", 1))
    assert math.prod(block) == sizes.threads
    return CudaKernel(problem, source, extents["blockIdx.x"], block, sizes)


def _extents(module: Any) -> dict[str, int]:
    """The extents of thread axes, of one sample, as TVMScript has them: such as ``batch * 28``; each but one."""
    bound = re.findall(r"thread_binding\(([^,]+), thread=\"([\w.]+)\"\)", module.script())
    found: dict[str, int] = {}
    for text, axis in bound:
        extent = math.prod(1 if factor == "batch" else int(factor) for factor in text.split(" * "))
        assert found.setdefault(axis, extent) == extent, f"{axis} has {found[axis]} and {extent} threads"
    return found


def run(
    kernel: CudaKernel, batch: int = 1, seed: int = 0, scale: float | None = None, late_copies: bool = True
) -> tuple[float, float]:
    """The relative errors of output and log-sum-exp (0 without one) in the emulation, outputs NaN before."""
    problem = kernel.problem
    inputs = random_inputs(problem, batch, seed=seed)
    scale = problem.head_dim**-0.5 if scale is None else scale
    query, key, value, rpb = inputs
    accum = getattr(torch, problem.accum_dtype)
    out = torch.full((*query.shape[:-1], problem.head_dim_v), math.nan, dtype=query.dtype)
    lse = torch.full(query.shape[:-1], math.nan, dtype=accum)
    arguments = {"query": query, "key": key, "value": value, "scale": torch.tensor([scale], dtype=accum)}
    arguments |= {"rpb": rpb, "out": out, "lse": lse, "batch": batch}
    emulated = Emulated(kernel.source)
    (name,) = emulated.kernels
    parameters = emulated.kernels[name].parameters
    given = [arguments[parameter.name.removesuffix("_ptr")] for parameter in parameters]
    grid, shared = (kernel.grid * batch, 1, 1), kernel.sizes.dynamic_shared
    emulated.launch(name, grid, kernel.block, given, shared_bytes=shared, seed=seed, late_copies=late_copies)
    ref_out, ref_lse = reference64(problem, inputs, scale)
    return relative_error(out, ref_out), relative_error(lse, ref_lse) if problem.return_lse else 0.0


def assert_right(kernel: CudaKernel, batch: int = 1, seed: int = 0) -> None:
    """Run a kernel, and compare its results with the reference in float64."""
    error, lse_error = run(kernel, batch, seed)
    assert error <= TOLERANCE[kernel.problem.dtype]
    assert lse_error <= TOLERANCE[kernel.problem.accum_dtype]


def assert_right_in_halves(kernel: CudaKernel, batch: int, seed: int, late_copies: bool = True) -> None:
    """Compare with the reference in float64; the log-sum-exp is one of weights in 16 bits, like the output's."""
    errors = run(kernel, batch, seed, late_copies=late_copies)
    assert max(errors) <= TOLERANCE[kernel.problem.dtype], errors
