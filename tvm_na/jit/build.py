"""From a problem and a target to a kernel: formulation, schedule, compiler, cache."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tvm_na import fingerprint, settings
from tvm_na.jit import cache, runtime
from tvm_na.jit.remembered import Remembered
from tvm_na.problems.registry import Problem
from tvm_na.process import forking
from tvm_na.records.rejections import InapplicableError
from tvm_na.records.select import Selection, reject, select
from tvm_na.targets.target import NATarget, check_runs_here, detect_cuda_target, detect_target, parse_target
from tvm_na.te import ENTRY

if TYPE_CHECKING:
    from tvm_na.schedules import SearchSpace

R = TypeVar("R")

_log = logging.getLogger(__name__)

#: Requests whose kernels stay loaded in a process, and as many that were wanted before them.
MOST_KERNELS = 512

_kernels: Remembered[str, Kernel] = Remembered(MOST_KERNELS)
_building = forking.Lock("building a kernel")
_importing = forking.Lock("importing TVM")
# Targets for which it was told that a kernel was built without a record.
_told: set[str] = set()


@dataclass(frozen=True)
class Kernel:
    """A compiled problem.

    Attributes:
        problem: What it computes.
        target: What it was built for.
        schedule: The schedule it was built with.
        file: The shared library.
        function: ``function(query, key, value, scale[, rpb], out[, lse])``, for other problems what their formulations
            say, on contiguous tensors, all on the CPU or on one GPU, whose storage starts at a multiple of 64 bytes;
            shapes as in ``te/common/operands.py``. On a GPU it is launched on PyTorch's current stream, and that GPU is
            the current one of CUDA's runtime afterwards.
    """

    problem: Problem
    target: NATarget
    schedule: Selection
    file: Path
    function: Callable[..., None]


def current_target() -> NATarget:
    """The target that kernels are built for: TVM_NA_TARGET, or this machine."""
    return parse_target(settings.target_name())


def target_for(kind: str, index: int | None = None) -> NATarget:
    """The target of kernels for a device of PyTorch's: what TVM_NA_TARGET says of such devices, or what it is.

    Args:
        kind: ``cpu`` or ``cuda``.
        index: Which CUDA device.

    Raises:
        ValueError: there is no such device, or it cannot run what TVM_NA_TARGET names.
    """
    named = settings.target_name()
    for_gpus = named.startswith(("cuda", "nvidia/"))
    if kind == "cpu":
        return detect_target() if for_gpus else parse_target(named)
    if not for_gpus or named == "cuda":
        return detect_cuda_target(index)
    target = parse_target(named)
    check_runs_here(target, index)
    return target


def is_supported(problem: Problem, target: NATarget | None = None) -> bool:
    """Whether a kernel can be built for ``problem``."""
    from tvm_na.schedules import spaces_for

    return bool(spaces_for(problem, target or current_target()))


def _selected(problem: Problem, target: NATarget, records: str | None) -> Selection:
    cache.check_owner()  # before indexes of records are read
    return select(problem, target, mode=records)


def is_cached(problem: Problem, target: NATarget | None = None, records: str | None = None) -> bool:
    """Whether the kernel of ``problem`` is on disk."""
    target = target or current_target()
    selection = _selected(problem, target, records)
    return cache.lookup(fingerprint.request_digest(problem, target, selection.key)) is not None


def kernel_for(problem: Problem, target: NATarget | None = None, records: str | None = None) -> Kernel:
    """The kernel of ``problem``: from this process, from disk, or compiled now (seconds).

    Args:
        problem: What it is to compute.
        target: What it is to run on; None for :func:`current_target`.
        records: Which tuning records count: ``all``, ``user``, ``shipped`` or ``off``; None for TVM_NA_RECORDS.

    Raises:
        ValueError: if this machine cannot run kernels for the target.
        NotImplementedError: if no search space serves the problem on the target.
        RuntimeError: if there is no C++ compiler to link with, for a GPU no CUDA compiler, or the cache cannot be
            written.
    """
    target = target or current_target()
    return with_a_schedule(problem, target, records, lambda selection: kernel_with(selection, problem, target))


def compile_for(problem: Problem, target: NATarget, records: str | None = None) -> Path:
    """The shared library with the kernel of ``problem``, from disk or compiled now, for any target.

    It is not loaded, so the target may be a GPU that is not here. In the cache of a machine that has it (with the same
    versions of all that :func:`tvm_na.fingerprint.kernel_versions` names) it is found at the first call.

    Args:
        problem: What it is to compute.
        target: What it is to run on.
        records: As for :func:`kernel_for`.

    Raises:
        NotImplementedError, RuntimeError: as :func:`kernel_for`.
    """
    return with_a_schedule(problem, target, records, lambda selection: _file(selection, problem, target))


def with_a_schedule(problem: Problem, target: NATarget, records: str | None, use: Callable[[Selection], R]) -> R:
    """What ``use`` makes of the best schedule that applies.

    It raises InapplicableError for one that does not; that one is skipped from then on, and the next best is tried.
    """
    while True:
        selection = _selected(problem, target, records)
        try:
            return use(selection)
        except InapplicableError as error:
            reject(selection, problem, target, error)  # so that this ends, with the default at the latest


def _file(selection: Selection, problem: Problem, target: NATarget) -> Path:
    request = fingerprint.request_digest(problem, target, selection.key)
    return cache.lookup(request) or _build(request, problem, target, selection)


def kernel_with(selection: Selection, problem: Problem, target: NATarget) -> Kernel:
    """The kernel of ``problem`` with this schedule.

    Raises:
        InapplicableError: if the schedule's record does not apply.
        Others: as :func:`kernel_for`.
    """
    request = fingerprint.request_digest(problem, target, selection.key)
    kernel = _kernels.get(request)
    if kernel is None:
        with _building:
            try:
                return _kernels[request]
            except KeyError:
                check_runs_here(target)
            file = cache.lookup(request) or _build(request, problem, target, selection)
            kernel = Kernel(problem, target, selection, file, runtime.load(file, ENTRY, target.kind))
            _kernels[request] = kernel
    return kernel


def _space(problem: Problem, target: NATarget, selection: Selection | None = None) -> SearchSpace:
    """That of the selected record's formulation, else the preferred one."""
    from tvm_na.schedules import spaces_for  # not needed where a kernel is found

    spaces = spaces_for(problem, target)
    if not spaces:
        raise NotImplementedError(f"no kernel for {problem} on {target.name}: {problem.unsupported(target.kind)}")
    record = selection.record if selection is not None else None
    return next((space for space in spaces if record is not None and space.has(record.formulation)), spaces[0])


def explain(problem: Problem, target: NATarget | None = None, records: str | None = None) -> str:
    """Which schedule a problem gets on a target, and why."""
    target = target or current_target()
    _space(problem, target)  # an unsupported problem fails
    selection = _selected(problem, target, records)
    space = _space(problem, target, selection)
    where = "kernel on disk" if is_cached(problem, target, records) else "kernel not built yet"
    return "; ".join([f"{space.name}, {selection}", where, *selection.skipped])


def scheduled_module(problem: Problem, target: NATarget, selection: Selection | None = None) -> tuple[Any, SearchSpace]:
    """The scheduled IRModule of ``problem`` and the space that serves it (imports TVM).

    Without ``selection`` it has the default schedule.

    Raises:
        InapplicableError: if the selected record does not apply.
    """
    from tvm_na.schedules.base import Plan

    with _importing:  # by one thread: two that import parts of TVM meet in its circles of imports, half-way
        import tvm  # noqa: F401
    space = _space(problem, target, selection)
    if selection is not None and selection.record is not None:
        return _module_by_record(selection, problem, target), space
    scheduled = space.apply(space.formulations(problem, target)[0], target, Plan())
    if scheduled is None:
        raise AssertionError(f"the space {space.name} serves {problem}, but refused its own formulation")
    return scheduled.schedule.mod, space


def _module_by_record(selection: Selection, problem: Problem, target: NATarget) -> Any:
    from tvm_na.records.replay import replayed, transferred

    record = None if selection.record is None else selection.record.load()
    if record is None:
        raise InapplicableError("it is there no more", lasting=False)
    return (replayed if selection.kind == "record" else transferred)(record, problem, target)


def compiled(module: Any, target: NATarget) -> Callable[[Path], None]:
    """A function that writes the shared library of a scheduled module to a path, compiled now (imports TVM).

    Raises:
        Exception: TVM's own, which have no class in common; RuntimeError for a GPU, see
            :func:`tvm_na.cuda.library.compile_library`.
    """
    from tvm_na.jit.library import write_cuda_library, write_library

    if target.kind == "cuda":
        from tvm_na.cuda.library import compile_library

        return functools.partial(write_cuda_library, compile_library(module, target))
    import tvm

    executable = tvm.compile(module, target=target.tvm_target())
    if target.is_wasm:
        from tvm_na.wasm.link import link

        return lambda file: write_library(executable.mod, file, functools.partial(link, [ENTRY], False))
    return lambda file: write_library(executable.mod, file)


def _compiled(module: Any, target: NATarget, selection: Selection) -> Callable[[Path], None]:
    try:
        return compiled(module, target)
    except Exception as error:  # TVM's errors have no class in common
        if selection.record is None:
            raise
        raise InapplicableError(f"TVM cannot compile it: {type(error).__name__}: {error}") from error


def _tell_of_tuning(problem: Problem, target: NATarget, selection: Selection) -> None:
    """Say once per process and target that tuning would help."""
    if selection.kind == "default" and target.name not in _told:
        _told.add(target.name)
        _log.info(
            "%s is built for %s with its %s; tvm-na tune searches for faster ones, tvm-na info --model MODEL tells for "
            "which problems of a model",
            *(problem, target.name, selection),
        )


def _build(request: str, problem: Problem, target: NATarget, selection: Selection) -> Path:
    from tvm_na.compilers import cxx

    _space(problem, target)  # an unsupported problem fails before TVM is imported
    if target.is_wasm:  # so does a machine that cannot link
        from tvm_na.wasm import link

        link.require()
    else:
        cxx.command()
    compiler = ""
    if target.kind == "cuda":
        from tvm_na.cuda import toolchain

        toolchain.find_compiler()  # or cannot compile
        compiler = toolchain.description()

    def compile_() -> tuple[str, Callable[[Path], None]]:
        module, _ = scheduled_module(problem, target, selection)
        name = fingerprint.digest_of(module.script(), repr(target), fingerprint.kernel_versions(target), compiler)
        return name, _compiled(module, target, selection)

    _tell_of_tuning(problem, target, selection)
    description = {"problem": str(problem), "target": target.name, "schedule": str(selection)}
    return cache.get_or_build(request, description, compile_)
