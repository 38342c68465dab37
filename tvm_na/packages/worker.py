"""What a worker does for a package: it describes the formulations of a problem, and builds the kernel of one point."""

from __future__ import annotations

import hashlib
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_na.packages.contents import KernelResources, Options, PackagedKernel, PackagedWorkload, RefusedPoint
from tvm_na.packages.package import KERNELS, RECORDS, pack
from tvm_na.problems.registry import Problem
from tvm_na.records.write import line_of
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


def describe(problem: Problem, target: NATarget, folder: Path) -> list[PackagedWorkload]:
    """The formulations of a problem; what records say of them is in ``folder`` when this returns."""
    import tvm
    from tvm.s_tir.meta_schedule.database import Workload

    from tvm_na.records.write import structural_hash, target_and_arguments
    from tvm_na.tune.tasks import formulations_of

    found = []
    for number, formulation in enumerate(formulations_of(problem, target)):
        module = tvm.IRModule({"main": formulation.func})
        workload, key = Workload(module), structural_hash(module)
        spec, arguments = target_and_arguments(workload, target.tvm_target(1))
        about = {"workload": workload.as_json(), "target": spec, "arguments": arguments}
        file = pack(folder, RECORDS, "json", line_of(about))
        name, sketches = formulation.space.name, tuple(formulation.spaces)
        found.append(PackagedWorkload(problem, name, formulation.text, sketches, number == 0, key, file))
    return found


def build_point(wanted: Wanted, target: NATarget, folder: Path) -> PackagedKernel | RefusedPoint:
    """Build a point of a search space, its library and trace into ``folder``."""
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
    from tvm_na.records.replay import with_formulation
    from tvm_na.records.write import trace_as_json

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
        file=pack(folder, KERNELS, "so", data),
        sha256=hashlib.sha256(data).hexdigest(),
        problem=workload.problem,
        space=workload.space,
        point=point,
        default=wanted.default,
        source=hashlib.sha256(library.source.encode()).hexdigest(),
        resources=KernelResources(*used),
        options=options,
        trace=pack(folder, RECORDS, "json", line_of(trace_as_json(scheduled.schedule.trace))),
    )


def _library(library: Any) -> bytes:
    """What is in the file of a library."""
    from tvm_na.jit.library import write_cuda_library

    with tempfile.TemporaryDirectory(prefix="tvm_na-") as folder:
        write_cuda_library(library, Path(folder) / "kernel.so")
        return (Path(folder) / "kernel.so").read_bytes()
