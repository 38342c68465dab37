"""What the kernels that are timed would take by the static model: found where the folder is made, told beside times."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.device import Cuda
from benchmarks.gpu.plan import Plan
from tvm_na.cuda.static.bounds import estimate_all
from tvm_na.cuda.static.facts import Facts
from tvm_na.problems.registry import Problem
from tvm_na.targets.gpus import gpu_of
from tvm_na.targets.target import NATarget

if TYPE_CHECKING:
    from benchmarks.gpu.folder import RunFolder

#: In the folder.
FILE = "estimates.json"


def wanted(plan: Plan) -> list[tuple[Problem, int]]:
    """The problems whose default kernels are timed, each with its batch."""
    many = [(p, 1 if p.reference_elements(1) > Cuda.gathered else Cuda.batch) for p in plan.timed]
    return [*many, *((problem, 1) for problem in plan.searched)]


def write(folder: RunFolder, target: NATarget, say: Callable[[str], None]) -> None:
    """Put what is known of these kernels into a folder (seconds for each; imports TVM).

    A kernel whose code is not understood has no estimate, and is told by name.
    """
    from tvm_na.jit.estimates import facts_for

    found = []
    for problem, batch in wanted(folder.plan):
        try:
            functions = facts_for(problem, target, batch, records="off")
        except RuntimeError as error:
            say(f"no estimate of {problem}: {error}")
            continue
        found.append({"problem": problem.to_json(), "batch": batch, "functions": [f.to_dict() for f in functions]})
    (folder.path / FILE).write_text(json.dumps(found) + "\n", encoding="utf-8")


def estimated(folder: RunFolder, problem: Problem, batch: int, device: str) -> dict[str, Any] | None:
    """What a problem's default kernel would take on a device, estimated before; None if nothing is known.

    Args:
        folder: What was prepared.
        problem: What the kernel computes.
        batch: Samples of a call.
        device: As PyTorch calls it.
    """
    file = folder.path / FILE
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    for one in known:
        if (one["problem"], one["batch"]) == (problem.to_json(), batch):
            try:
                gpu = gpu_of(folder.package.target, device)
            except ValueError:  # no rates are known of it
                return None
            return estimate_all([Facts.of_dict(facts) for facts in one["functions"]], gpu).to_dict()
    return None
