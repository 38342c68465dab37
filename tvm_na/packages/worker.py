"""What a worker does for a package: it describes the formulations of a problem, and builds the kernel of one point."""

from __future__ import annotations

import hashlib
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_na.packages.contents import KernelResources, Options, PackagedKernel, PackagedWorkload, RefusedPoint
from tvm_na.packages.package import pack
from tvm_na.problems.registry import Problem
from tvm_na.schedules.base import Parameter, Plan, Point
from tvm_na.targets.target import NATarget
from tvm_na.tune.builder import TOO_MUCH, compile_for_gpu


@dataclass(frozen=True)
class Wanted:
    """A point that is to be built: the first parameters have the values ``begins``, the others their defaults."""

    workload: PackagedWorkload
    sketch: str
    begins: tuple[int, ...] = ()

    @property
    def default(self) -> bool:
        """Whether it is what is built without records."""
        return self.workload.first and self.sketch == self.workload.sketches[0] and not self.begins


def describe(problem: Problem, target: NATarget) -> list[PackagedWorkload]:
    """The formulations of a problem."""
    import tvm

    from tvm_na.records.write import structural_hash
    from tvm_na.tune.tasks import formulations_of

    found = []
    for number, formulation in enumerate(formulations_of(problem, target)):
        key, sketches = structural_hash(tvm.IRModule({"main": formulation.func})), tuple(formulation.spaces)
        found.append(PackagedWorkload(problem, formulation.space.name, formulation.text, sketches, number == 0, key))
    return found


def build_point(wanted: Wanted, target: NATarget, folder: Path) -> PackagedKernel | RefusedPoint:
    """Build a point of a search space, its library into ``folder``."""
    from tvm_na.cuda.limits import UnlaunchableError

    made: list[Parameter] = []
    try:
        return _built(wanted, target, folder, made)
    except UnlaunchableError as error:
        failure, reason = TOO_MUCH[error.what], str(error)
    except Exception:  # TVM's have no class in common
        failure, reason = "build", traceback.format_exc()
    point, options = _point(wanted, made)
    return RefusedPoint(wanted.workload.problem, wanted.workload.space, point, failure, reason, options)


def _point(wanted: Wanted, made: list[Parameter]) -> tuple[Point, Options]:
    values = {parameter.name: parameter.value for parameter in made}
    return Point(wanted.workload.formulation, wanted.sketch, values), tuple(p.options for p in made)


def _built(wanted: Wanted, target: NATarget, folder: Path, made: list[Parameter]) -> PackagedKernel:
    from tvm_na.records.replay import kernel_name, with_formulation

    workload = wanted.workload
    space, func = with_formulation(workload.formulation, workload.problem, target, None)
    scheduled = space.apply(func, target, Plan(wanted.sketch, begins=wanted.begins, told=made.append))
    assert scheduled is not None, f"the space {space.name} refused its own formulation"
    library = compile_for_gpu(scheduled.schedule.mod, target, ptx=False)
    data = _library(library)
    point, options = _point(wanted, made)
    shared = max(library.sizes.static_shared, library.resources.shared_bytes) + library.sizes.dynamic_shared
    used = (library.resources.registers, library.resources.spill_bytes, library.sizes.threads, shared, len(data))
    return PackagedKernel(
        file=pack(folder, data),
        sha256=hashlib.sha256(data).hexdigest(),
        problem=workload.problem,
        space=workload.space,
        point=point,
        default=wanted.default,
        source=hashlib.sha256(library.source.encode()).hexdigest(),
        resources=KernelResources(*used),
        options=options,
        name=kernel_name(scheduled.schedule.mod),
    )


def _library(library: Any) -> bytes:
    """What is in the file of a library."""
    from tvm_na.jit.library import write_cuda_library

    with tempfile.TemporaryDirectory(prefix="tvm_na-") as folder:
        write_cuda_library(library, Path(folder) / "kernel.so")
        return (Path(folder) / "kernel.so").read_bytes()
