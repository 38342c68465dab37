"""Compiling candidates of the tuner, several at once, in processes that stay.

For a GPU they are looked at as well: one that cannot be launched, or that spills badly, is not worth a measurement.
"""

from __future__ import annotations

import itertools
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_na.measure import worker_pool as workers
from tvm_na.problems.registry import Problem
from tvm_na.schedules.base import Point
from tvm_na.targets.target import NATarget
from tvm_na.tune.metaschedule import skip_tensor_intrinsics

if TYPE_CHECKING:
    from tvm_na.cuda.library import CudaLibrary

#: Builds after which a worker is replaced: TVM's compiler leaks.
_USES = 200
_ROOM = 2**20  # bytes; a library takes a tenth
#: Bytes that a thread stores to and loads from memory since registers are short, above which a kernel is not measured.
MOST_SPILLED = 1024
#: What candidates for a GPU are rejected for.
REJECTIONS = ("too many threads", "too much shared memory", "too many registers", "spills")
#: The same by what a kernel asks too much of.
TOO_MUCH = dict(zip(("threads", "shared memory", "registers", "spills"), REJECTIONS, strict=True))


@dataclass(frozen=True)
class Source:
    """What is to be compiled: a scheduled IRModule, as TVM's JSON.

    Where that is None, a problem with a symbolic batch, and the point at which it is scheduled.
    """

    module: str | None
    problem: Problem | None = None
    point: Point | None = None


def source_of(module: Any) -> Source:
    """A scheduled IRModule, compiled as it is, with its batch."""
    import tvm.ir

    return Source(tvm.ir.save_json(module))


@dataclass(frozen=True)
class Built:
    """What became of one candidate: its kernel, or what went wrong.

    Attributes:
        failure: "build", "build timeout", "build crash", "stopped" or one of :data:`REJECTIONS`; None if it was built.
    """

    file: Path | None
    failure: str | None = None
    message: str = ""


def compile_source(source: Source, target: NATarget, file: str) -> tuple[str, str] | None:
    """Compile (in a worker); what it failed at and what went wrong, or None."""
    from tvm_na.cuda.limits import UnlaunchableError

    try:
        module = _module_of(source, target)
        if target.kind == "cuda":
            from tvm_na.jit.library import write_cuda_library

            write_cuda_library(compile_for_gpu(module, target), Path(file))
            return None
        from tvm_na.jit.build import compiled

        compiled(module, target)(Path(file))
    except UnlaunchableError as error:
        return TOO_MUCH[error.what], str(error)
    except Exception:
        return "build", traceback.format_exc()
    return None


def _module_of(source: Source, target: NATarget) -> Any:
    import tvm.ir

    if source.module is not None:
        import tvm_na.te.common.dots  # noqa: F401, whose operator a module may have

        return tvm.ir.load_json(source.module)
    from tvm_na.records.replay import at_point

    assert source.problem is not None and source.point is not None
    return at_point(source.point, source.problem, target)


def compile_for_gpu(module: Any, target: NATarget, ptx: bool = True) -> CudaLibrary:
    """Compile a scheduled IRModule for a GPU, with ``ptx`` for newer ones too.

    Raises:
        UnlaunchableError: it cannot be launched, or spills badly.
    """
    from tvm_na.cuda.library import compile_library
    from tvm_na.cuda.limits import UnlaunchableError

    library = compile_library(module, target, ptx)
    spilled = library.resources.spill_bytes
    if spilled > MOST_SPILLED:
        raise UnlaunchableError("spills", f"at most {MOST_SPILLED} bytes of a thread", f"{spilled}")
    return library


def check_room(folder: Path) -> None:
    """OSError if ``folder`` has no room for a kernel: that some could not be built then says nothing of them."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(_ROOM))
        file.flush()


class Builder:
    """Worker processes that compile as :mod:`tvm_na.jit.build` does, into ``folder``."""

    def __init__(self, jobs: int, target: NATarget, folder: Path, log: Path, timeout: float = 60.0) -> None:
        """Start ``jobs`` processes, which print to ``log``; ``timeout`` is in seconds for one candidate."""
        self.target, self.folder, self.timeout = target, folder, timeout
        self._names = itertools.count()
        self._pool = workers.Pool(jobs, _USES, log, skip_tensor_intrinsics)

    def build(
        self, sources: Sequence[Source], suffix: str = ".so", stopped: workers.Stopped = lambda: False
    ) -> list[Built]:
        """Compile what ``sources`` say; what is not finished when ``stopped()`` turns true is given up.

        Raises:
            OSError: there is no room for kernels.
        """
        files = [self.folder / f"kernel{next(self._names)}{suffix}" for _ in sources]
        calls = [(source, self.target, str(file)) for source, file in zip(sources, files, strict=True)]
        found: dict[int, Built] = {}

        def done(index: int, outcome: workers.Outcome) -> None:
            if outcome.failure == "crash" or outcome.value is not None:
                check_room(self.folder)
            if outcome.failure is not None:
                failure = outcome.failure if outcome.failure == "stopped" else f"build {outcome.failure}"
                found[index] = Built(None, failure, outcome.message)
            elif outcome.value is not None:
                found[index] = Built(None, *outcome.value)
            else:
                found[index] = Built(files[index])

        self._pool.run(compile_source, calls, self.timeout, done, stopped)
        return [found[index] for index in range(len(sources))]

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._pool.close()
