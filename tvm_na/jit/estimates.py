"""What the kernels of problems would take on a GPU, which need not be here, by the static model; kept on disk."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_na import fingerprint, owned, settings
from tvm_na.cuda import inspection, toolchain
from tvm_na.jit.build import scheduled_module, with_a_schedule
from tvm_na.problems.registry import Problem
from tvm_na.records.files import MALFORMED
from tvm_na.records.rejections import InapplicableError
from tvm_na.records.select import Selection
from tvm_na.targets.target import NATarget

if TYPE_CHECKING:
    from tvm_na.cuda.static.facts import Facts

FOLDER = "static"


def facts_for(problem: Problem, target: NATarget, batch: int, records: str | None = None) -> list[Facts]:
    """The device functions of the kernel of ``problem``, in the order in which they are launched: from disk, or found
    now (seconds).

    Args:
        problem: What it computes.
        target: A GPU's, which need not be here.
        batch: Samples of a call.
        records: As for :func:`tvm_na.jit.build.kernel_for`.

    Raises:
        ValueError: the target is no GPU's, or there are no samples.
        NotImplementedError, RuntimeError: as :func:`tvm_na.jit.build.kernel_for`; or the code is not understood.
    """
    if target.kind != "cuda":
        raise ValueError(f"target: required a GPU's, such as cuda-sm_90, got {target.name}")
    if batch < 1:
        raise ValueError(f"batch: required 1 or more, got {batch}")
    return with_a_schedule(problem, target, records, lambda selection: _facts(selection, problem, target, batch))


def _facts(selection: Selection, problem: Problem, target: NATarget, batch: int) -> list[Facts]:
    from tvm_na.cuda.static.facts import facts_of

    request = fingerprint.request_digest(problem, target, selection.key)
    name = fingerprint.digest_of(request, batch, toolchain.description(), inspection.language(), _model_digest())
    file = settings.cache_dir() / FOLDER / f"{name}.json"
    if (known := _read(file)) is not None:
        return known
    try:
        found = facts_of(scheduled_module(problem, target, selection)[0], target, problem, batch)
    except Exception as error:  # TVM's errors have no class in common
        if selection.record is None or isinstance(error, InapplicableError):
            raise
        raise InapplicableError(f"TVM cannot compile it: {type(error).__name__}: {error}") from error
    _write(file, found)
    return found


@functools.lru_cache(maxsize=1)
def _model_digest() -> str:
    """A digest of the model's own code."""
    folder = Path(toolchain.__file__).parent / "static"
    return fingerprint.digest_of(*(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py"))))


def _read(file: Path) -> list[Facts] | None:
    """What was found before; None if nothing, or something else is there: then it is found anew."""
    from tvm_na.cuda.static.facts import Facts

    try:
        return [Facts.of_dict(one) for one in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, *MALFORMED):
        return None


def _write(file: Path, found: list[Facts]) -> None:
    """Keep facts, where there is room for them."""
    try:
        for folder in (file.parent.parent, file.parent):
            owned.make(folder)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".tmp-", delete=False, encoding="utf-8") as out:
            json.dump([one.to_dict() for one in found], out)
        os.replace(out.name, file)
    except OSError as error:
        raise RuntimeError(
            f"kernel cache: required a folder that can be written to, with space (TVM_NA_CACHE_DIR), got {error}"
        ) from error
