"""Compiling candidates of the tuner, several at once, in processes that stay."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_na import workers
from tvm_na.metaschedule import skip_tensor_intrinsics
from tvm_na.target import NATarget

#: Builds after which a worker is replaced: TVM's compiler leaks.
_USES = 200


@dataclass(frozen=True)
class Built:
    """What became of one candidate.

    Attributes:
        file: The kernel; None if there is none.
        failure: "build", "build timeout", "build crash" or "stopped"; None if it was built.
        message: What went wrong.
    """

    file: Path | None
    failure: str | None = None
    message: str = ""


def compile_module(text: str, target: NATarget, file: str) -> str | None:
    """Compile the module in TVM's JSON ``text`` (in a worker); what went wrong, or None."""
    import tvm.ir

    from tvm_na.build import compiled

    try:
        compiled(tvm.ir.load_json(text), target)(Path(file))
    except Exception:
        return traceback.format_exc()
    return None


class Builder:
    """Worker processes that compile as :mod:`tvm_na.build` does, into ``folder``."""

    def __init__(self, jobs: int, target: NATarget, folder: Path, log: Path, timeout: float = 60.0) -> None:
        """Start ``jobs`` processes.

        Args:
            jobs: Candidates compiled at once.
            target: What for.
            folder: Where kernels go.
            log: The file for what the processes print.
            timeout: Seconds for one candidate.
        """
        self.target, self.folder, self.timeout = target, folder, timeout
        self._names = itertools.count()
        self._pool = workers.Pool(jobs, _USES, log, skip_tensor_intrinsics)

    def build(
        self, modules: Sequence[Any], suffix: str = ".so", stopped: Callable[[], bool] = lambda: False
    ) -> list[Built]:
        """Compile scheduled IRModules; what is not finished when ``stopped()`` turns true is given up."""
        import tvm.ir

        files = [self.folder / f"kernel{next(self._names)}{suffix}" for _ in modules]
        texts = [tvm.ir.save_json(module) for module in modules]
        calls = [(text, self.target, str(file)) for text, file in zip(texts, files, strict=True)]
        found: dict[int, Built] = {}

        def done(index: int, outcome: workers.Outcome) -> None:
            if outcome.failure is not None:
                failure = outcome.failure if outcome.failure == "stopped" else f"build {outcome.failure}"
                found[index] = Built(None, failure, outcome.message)
            elif outcome.value is not None:
                found[index] = Built(None, "build", outcome.value)
            else:
                found[index] = Built(files[index])

        self._pool.run(compile_module, calls, self.timeout, done, stopped)
        return [found[index] for index in range(len(modules))]

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._pool.close()
