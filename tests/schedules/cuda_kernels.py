"""Kernels of CUDA schedules, run in the emulation and compared with the reference."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.conftest import TOLERANCE
from tests.cuda_emulator.emulate import Counts, Emulated
from tests.cuda_emulator.errors import EmulationError
from tests.helpers import random_inputs, random_problem, reference64, relative_error, share
from tvm_na.cuda.late import written
from tvm_na.cuda.library import generated
from tvm_na.cuda.limits import Sizes, UnlaunchableError, check_sizes
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.registry import Problem
from tvm_na.schedules import SearchSpace, spaces_for
from tvm_na.schedules.base import Plan, Scheduled
from tvm_na.targets.target import parse_target

TARGET = parse_target("cuda-sm_80")
DTYPES = ("float32", "float16", "bfloat16", "float64")
#: How many random points of each space are tried.
POINTS = share(5)
GATHER, BAND, FLASH, STRIP = "cuda-gather", "cuda-band", "cuda-flash", "cuda-strip"
FLASH_BACKWARD = "cuda-flash-backward"


def space_of(problem: Problem, name: str | None = None) -> SearchSpace:
    """The space of that name, which must serve the problem; the last one without a name: that for every problem."""
    spaces = spaces_for(problem, TARGET)
    return spaces[-1] if name is None else next(space for space in spaces if space.name == name)


@functools.lru_cache(maxsize=1)
def formulations(problem: Problem, space: str | None = None) -> list[Any]:
    """The PrimFuncs of a problem in a space."""
    return space_of(problem, space).formulations(problem, TARGET)


def scheduled(
    problem: Problem,
    formulation: int = 0,
    plan: Plan = Plan(),  # noqa: B008
    space: str | None = None,
) -> Scheduled:
    """A schedule of one of a problem's formulations in a space."""
    found = space_of(problem, space).apply(formulations(problem, space)[formulation], TARGET, plan)
    assert found is not None
    return found


@dataclass(frozen=True)
class Launch:
    """A device function: its name, its blocks as text such as ``batch * 28``, threads of a block along x, y and z."""

    name: str
    grid: str
    block: tuple[int, int, int]


@dataclass(frozen=True)
class CudaKernel:
    """The generated source of one schedule, with one device function or several.

    Attributes:
        problem: What it computes.
        source: CUDA C++.
        launches: What is launched, in order.
        sizes: Threads and shared memory of the largest block.
    """

    problem: Any
    source: str
    launches: tuple[Launch, ...]
    sizes: Sizes

    def with_source(self, source: str) -> CudaKernel:
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

    def launch(self, arguments: dict[str, Any], batch: int, seed: int = 0, late_copies: bool = True) -> list[Counts]:
        """Run it in the emulation on arguments by name; what each device function did."""
        emulated = Emulated(self.source)
        assert len(emulated.kernels) == len(self.launches)
        counts = []
        for launch in self.launches:
            parameters = emulated.kernels[launch.name].parameters
            given = [{**arguments, "batch": batch}[parameter.name.removesuffix("_ptr")] for parameter in parameters]
            blocks = math.prod(batch if factor == "batch" else int(factor) for factor in launch.grid.split(" * "))
            shared = self.sizes.dynamic_shared
            counts.append(emulated.launch(launch.name, (blocks, 1, 1), launch.block, given, shared, seed, late_copies))
        return counts


def kernel_of(problem: Problem, schedule: Scheduled) -> CudaKernel:
    """The source that TVM generates for a schedule, and how it is launched."""
    module = schedule.schedule.mod
    source, sizes = generated(module, TARGET)
    nests: list[dict[str, str]] = []
    for text, axis in re.findall(r"thread_binding\(([^,]+), thread=\"([\w.]+)\"\)", written(module).script()):
        if axis == "blockIdx.x":
            nests.append({})
        assert nests[-1].setdefault(axis, text) == text, f"{axis} has {nests[-1][axis]} and {text} threads"
    launches = []
    for name, nest in zip(Emulated(source).kernels, nests, strict=True):
        block = (int(nest.get("threadIdx.x", "1")), int(nest.get("threadIdx.y", "1")), 1)
        launches.append(Launch(name, nest["blockIdx.x"], block))
    assert max(math.prod(launch.block) for launch in launches) == sizes.threads
    return CudaKernel(problem, source, tuple(launches), sizes)


def drawn_problem(seed: int, sizes: dict[int, tuple[int, int]]) -> NAProblem:
    """A small problem of any options and dtype, and of any rank, whose ``sizes`` are given."""
    rng = random.Random(seed)
    rank = rng.choice([1, 2, 2, 2, 3])
    dim = rng.choice([1, 5, 16, 20, 32, 48, 64, 128])
    dim_v = rng.choice([dim, dim, dim, 24])
    return random_problem(rng, rank=rank, sizes=sizes[rank], head_dim=dim, head_dim_v=dim_v, dtype=rng.choice(DTYPES))


def fitting_point(problem: Problem, formulation: int, seed: int) -> CudaKernel:
    """The default point for even seeds; for odd ones the first that is drawn and that a GPU can launch."""
    for attempt in range(20):
        plan = Plan(sample=bool(seed % 2), seed=seed * 100 + attempt + 1)
        kernel = kernel_of(problem, scheduled(problem, formulation, plan))
        if kernel.fits:
            return kernel
    raise AssertionError(f"no point of 20 that a GPU can launch: {problem}")


def damage_is_noticed(errors: Callable[[int], float], budget: float) -> bool:
    """Whether a damaged kernel fails, or has wrong numbers, in one order of its threads (a seed) or another."""
    for seed in range(4):
        try:
            if not errors(seed) <= budget:
                return True
        except EmulationError:
            return True
    return False


def run(
    kernel: CudaKernel, batch: int = 1, seed: int = 0, scale: float | None = None, late_copies: bool = True
) -> tuple[float, float]:
    """The relative errors of an attention's output and log-sum-exp (0 without one), outputs NaN before."""
    problem = kernel.problem
    inputs = random_inputs(problem, batch, seed=seed)
    scale = problem.head_dim**-0.5 if scale is None else scale
    query, key, value, rpb = inputs
    accum = getattr(torch, problem.accum_dtype)
    out = torch.full((*query.shape[:-1], problem.head_dim_v), math.nan, dtype=query.dtype)
    lse = torch.full(query.shape[:-1], math.nan, dtype=accum)
    arguments = {"query": query, "key": key, "value": value, "scale": torch.tensor([scale], dtype=accum)}
    kernel.launch({**arguments, "rpb": rpb, "out": out, "lse": lse}, batch, seed, late_copies)
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
