"""Every formulation and sketch of a problem, launched and compared: on a GPU, or by whoever pretends to be one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.gpu.plan import OPTIONS
from tests.conftest import TOLERANCE
from tests.schedules.cuda_backward_kernels import BUDGET
from tvm_na import settings
from tvm_na.jit import runtime
from tvm_na.jit.build import compiled
from tvm_na.jit.scratch import with_scratch
from tvm_na.problems.attention import TF32
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.registry import Problem
from tvm_na.reference.case import WrongNumbers
from tvm_na.reference.cases import make_case
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Plan, Scheduled
from tvm_na.targets.target import NATarget
from tvm_na.te import ENTRY

#: Of every call.
BATCH = 3  # no power of two, as strides are
#: Small maps, so that a sanitizer is done with them in seconds: those of two axes with windows of their own.
ATTENTION = {
    name.replace(" ", "_"): OPTIONS[name] for name in ("nat", "dilated", "causal", "shared keys", "two passes")
}
#: What float32 and float64 have is compared where calls are.
FORWARD = {
    f"{name}-{dtype}": dataclasses.replace(problem, dtype=dtype)
    for name, problem in ATTENTION.items()
    for dtype in ("float16", "bfloat16", TF32)
}
BACKWARD = {
    f"{name}-{dtype}": BackwardProblem(dataclasses.replace(problem, dtype=dtype))
    for name, problem in ATTENTION.items()
    if name != "two_passes"
    for dtype in ("float16", "bfloat16")
}

#: From a problem and its points to functions of inputs and outputs, in the same order.
Kernels = Callable[[Problem, Sequence[Scheduled]], Iterable[Callable[..., None]]]


def points_of(problem: Problem, target: NATarget) -> dict[str, Scheduled]:
    """The default point of each formulation and sketch, of all spaces, by what it is."""
    found = {}
    for space in spaces_for(problem, target):
        for number, func in enumerate(space.formulations(problem, target)):
            for sketch in space.sketches(func, target):
                point = space.apply(func, target, Plan(sketch))
                assert point is not None
                found[f"{space.name}, formulation {number}, {sketch}"] = point
    return found


def built(target: NATarget, folder: Path) -> Kernels:
    """Kernels that are compiled, several at once, and loaded."""

    def kernels(problem: Problem, points: Sequence[Scheduled]) -> Iterator[Callable[..., None]]:
        def build(number: int) -> Path:
            file = folder / f"kernel{number}.so"
            compiled(points[number].schedule.mod, target)(file)
            return file

        with ThreadPoolExecutor(settings.available_cores()) as pool:
            files = list(pool.map(build, range(len(points))))
        for file in files:
            yield with_scratch(runtime.load(file, ENTRY, "cuda"), problem)

    return kernels


def wrong_points(problem: Problem, target: NATarget, kernels: Kernels, device: str) -> dict[str, str]:
    """What is wrong with the numbers of which points; outputs are NaN before."""
    points = points_of(problem, target)
    budget = BUDGET[problem.dtype] if isinstance(problem, BackwardProblem) else TOLERANCE[problem.dtype]
    case, wrong = make_case(problem, BATCH, device), {}
    for name, kernel in zip(points, kernels(problem, list(points.values())), strict=True):
        outputs: list[Tensor] = case.outputs()
        kernel(*case.inputs, *outputs)
        try:
            case.check(outputs, budget)
        except WrongNumbers as error:
            wrong[name] = str(error)
    return wrong


def by_name(problem: Problem, tensors: Sequence[Any]) -> dict[str, Any]:
    """All tensors of a call by the names of a kernel's parameters."""
    arguments = (*problem.arguments(), *problem.scratch())
    return {argument.name: tensor for argument, tensor in zip(arguments, tensors, strict=True)}
