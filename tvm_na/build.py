"""From a problem and a target to a kernel: formulation, schedule, compiler, cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_na import cache, openmp, runtime, settings
from tvm_na.problem import NAProblem
from tvm_na.target import NATarget, check_runs_here, parse_target
from tvm_na.te import ENTRY

if TYPE_CHECKING:
    from tvm_na.schedules import SearchSpace

_kernels: dict[str, Kernel] = {}
_building = threading.Lock()


@dataclass(frozen=True)
class Kernel:
    """A compiled problem.

    Attributes:
        problem: What it computes.
        target: What it was built for.
        file: The shared library.
        function: ``function(query, key, value, scale[, rpb], out[, lse])`` on contiguous CPU tensors whose
            storage starts at a multiple of 64 bytes; shapes as in :mod:`tvm_na.te.operands`.
    """

    problem: NAProblem
    target: NATarget
    file: Path
    function: Callable[..., None]


def current_target() -> NATarget:
    """The target that kernels are built for: TVM_NA_TARGET, or this machine."""
    return parse_target(settings.target_name())


def is_supported(problem: NAProblem, target: NATarget | None = None) -> bool:
    """Whether a kernel can be built for ``problem``."""
    from tvm_na.schedules import spaces_for

    return bool(spaces_for(problem, target or current_target()))


def is_cached(problem: NAProblem, target: NATarget | None = None) -> bool:
    """Whether the kernel of ``problem`` is on disk."""
    return cache.lookup(cache.request_digest(problem, target or current_target())) is not None


def kernel_for(problem: NAProblem, target: NATarget | None = None) -> Kernel:
    """The kernel of ``problem``: from this process, from disk, or compiled now (seconds).

    Raises:
        ValueError: if this CPU cannot run kernels for the target.
        NotImplementedError: if no search space serves the problem on the target.
        RuntimeError: if there is no C++ compiler to link with, or the cache cannot be written.
    """
    target = target or current_target()
    request = cache.request_digest(problem, target)
    kernel = _kernels.get(request)
    if kernel is None:
        with _building:
            kernel = _kernels.get(request)
            if kernel is None:
                check_runs_here(target)
                file = cache.lookup(request) or _build(request, problem, target)
                kernel = Kernel(problem, target, file, runtime.load(file, ENTRY))
                _kernels[request] = kernel
    return kernel


def prepare(
    problems: Iterable[NAProblem],
    target: NATarget | None = None,
    done: Callable[[NAProblem], None] | None = None,
) -> None:
    """Build or load the kernels of ``problems``; ``done`` is called after each (for a progress bar)."""
    for problem in problems:
        kernel_for(problem, target)
        if done is not None:
            done(problem)


def _space(problem: NAProblem, target: NATarget) -> SearchSpace:
    from tvm_na.schedules import spaces_for  # not needed where a kernel is found

    spaces = spaces_for(problem, target)
    if not spaces:
        raise NotImplementedError(f"no kernel for {problem} on {target.name}: {unsupported(problem, target)}")
    return spaces[0]


def unsupported(problem: NAProblem, target: NATarget) -> str:
    """What of ``problem`` has no compiled kernel on ``target``, in words."""
    if problem.rank != 2:
        return f"compiled kernels have 2 spatial axes, the problem has {problem.rank}"
    return f"compiled kernels are float32 and float64, the problem is {problem.dtype}"


def explain(problem: NAProblem, target: NATarget | None = None) -> str:
    """Which schedule a problem gets on a target, and why."""
    target = target or current_target()
    space = _space(problem, target)
    where = "kernel on disk" if is_cached(problem, target) else "kernel not built yet"
    return f"{space.name}, default decisions (there are no tuning records yet); {where}"


def scheduled_module(problem: NAProblem, target: NATarget) -> tuple[Any, SearchSpace]:
    """The scheduled IRModule of ``problem`` and the space it came from (imports TVM)."""
    from tvm_na.schedules.base import Plan

    space = _space(problem, target)
    scheduled = space.apply(space.formulations(problem, target)[0], target, Plan())
    if scheduled is None:
        raise AssertionError(f"the space {space.name} serves {problem}, but refused its own formulation")
    return scheduled.schedule.mod, space


def _build(request: str, problem: NAProblem, target: NATarget) -> Path:
    _space(problem, target)  # an unsupported problem fails before TVM is imported
    openmp.cxx_compiler()  # so does a machine that cannot link

    def compile_() -> tuple[str, Callable[[Path], None]]:
        import tvm

        module, _ = scheduled_module(problem, target)
        name = cache.digest_of(module.script(), repr(target), cache.versions())
        executable = tvm.compile(module, target=target.tvm_target())
        return name, lambda file: executable.export_library(str(file))

    description = {"problem": str(problem), "target": target.name, "schedule": "default"}
    return cache.get_or_build(request, description, compile_)
