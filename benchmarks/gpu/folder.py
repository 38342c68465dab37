"""The folder that is prepared without a GPU, as the run reads it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from benchmarks.gpu.plan import PLANS, Plan
from tvm_na.packages.package import Package, PackagedKernel
from tvm_na.problems.registry import Problem

#: In the folder: a package of kernels, and what the run is.
KERNELS, ABOUT = "kernels", "run.json"


class RunFolder:
    """A prepared folder; reading it imports neither TVM nor PyTorch's CUDA."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def describe(cls, path: Path, plan: str) -> RunFolder:
        """Say in a folder which plan it is for."""
        (path / ABOUT).write_text(json.dumps({"plan": plan}) + "\n", encoding="utf-8")
        return cls(path)

    @functools.cached_property
    def plan(self) -> Plan:
        """What is to be done."""
        return PLANS[json.loads((self.path / ABOUT).read_text(encoding="utf-8"))["plan"]]()

    @functools.cached_property
    def package(self) -> Package:
        """The kernels."""
        return Package.open(self.path / KERNELS)

    def kernels(self, problem: Problem) -> list[int]:
        """The numbers of a problem's kernels in the package."""
        return self._by_problem.get(problem, [])

    @functools.cached_property
    def _by_problem(self) -> dict[Problem, list[int]]:
        found: dict[Problem, list[int]] = {}
        for number, kernel in enumerate(self.package.kernels):
            found.setdefault(kernel.problem, []).append(number)
        return found

    def default(self, problem: Problem) -> int:
        """The number of the kernel that is built without records.

        Raises:
            LookupError: there is none.
        """
        for number in self.kernels(problem):
            if self.package.kernels[number].default:
                return number
        raise LookupError(f"package: required the default kernel of {problem}, got none")

    def kernel(self, number: int) -> PackagedKernel:
        """A kernel by its number."""
        return self.package.kernels[number]

    def name(self, number: int) -> str:
        """A kernel in words: its problem, and what its point is; its number makes it unique."""
        kernel = self.kernel(number)
        values = ", ".join(f"{name} {value}" for name, value in kernel.point.parameters.items())
        return (
            f"{number}: {kernel.problem}; {kernel.space}, {kernel.point.formulation}, {kernel.point.sketch}: {values}"
        )
