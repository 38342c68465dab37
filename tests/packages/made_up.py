"""Packages whose libraries were never compiled, and what builds one without processes and a compiler of CUDA."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tvm_na.cuda import toolchain
from tvm_na.measure.worker_pool import Outcome
from tvm_na.packages.package import KernelResources, Package, PackagedKernel, PackagedWorkload, RefusedPoint, pack
from tvm_na.packages.prebuild import prebuild
from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.problems.registry import Problem
from tvm_na.schedules.base import Point
from tvm_na.targets.target import parse_target

TARGET = parse_target("cuda-sm_90")
FORMULATION = '{"formulation":"made up"}'
SIZES = (1, 2, 4)


def library_of(problem: Problem, size: int) -> bytes:
    """What stands for a library."""
    return f"{problem} {size}".encode()


def made_up(folder: Path, *problems: Problem) -> Package:
    """A package with two kernels of each problem, of which the first is the default, and a refused point."""
    workloads, kernels, refused = [], [], []
    for number, problem in enumerate(problems):
        workloads.append(PackagedWorkload(problem, "space", FORMULATION, ("sketch",), True, f"{number}"))
        for size in SIZES:
            point, options = Point(FORMULATION, "sketch", {"size": size}), (SIZES,)
            if size == SIZES[-1]:
                refused.append(RefusedPoint(problem, "space", point, "spills", "spills: required less", options))
                continue
            data = library_of(problem, size)
            sha256, resources = hashlib.sha256(data).hexdigest(), KernelResources(64, 0, 128, 4096, len(data))
            about = (sha256, problem, "space", point, size == 1, sha256, resources, options, sha256[:16])
            kernels.append(PackagedKernel(pack(folder, data), *about))
    package = Package(folder, TARGET, *map(tuple, (kernels, refused, workloads)), "x86-64", {"tvm": "0"}, "context")
    package.write()
    return package


class InProcess:
    """Stands for a pool of worker processes: calls functions here, one after the other."""

    def __init__(self, *_: object) -> None:
        pass

    def run(
        self,
        function: Callable[..., Any],
        calls: Sequence[tuple[Any, ...]],
        timeout: float,
        done: Callable[[int, Outcome], None],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        for number, call in enumerate(calls):
            done(number, Outcome(None, "stopped") if stopped() else Outcome(function(*call)))

    def close(self) -> None:
        pass


class PretendedCompiler:
    """Stands for a compiler of CUDA: its machine code is a digest of the source.

    Attributes:
        compiled: Every source that it got.
        takes: Registers, and bytes that a thread spills, of the source with a number.
    """

    name, version, where = "nvcc", "0", "nowhere"

    def __init__(self, takes: Callable[[int], tuple[int, int]] = lambda number: (40, 0)) -> None:
        self.compiled: list[str] = []
        self.takes = takes

    def compile(self, source: str, arch: str, ptx: bool = True) -> tuple[bytes, str]:
        assert not ptx, "a package is for one architecture"
        registers, spilled = self.takes(len(self.compiled))
        self.compiled.append(source)
        names = re.findall(r"__global__ void (?:__launch_bounds__\(\d+\) )?(\w+)", source)
        stack = f"0 bytes stack frame, {spilled} bytes spill stores, 0 bytes spill loads"
        said = (f"Compiling entry function '{n}' for '{arch}'\n{stack}\nUsed {registers} registers\n" for n in names)
        return b"\x7fELF" + hashlib.sha256(source.encode()).digest() * 64, "".join(said)


@contextmanager
def building_here(compiler: PretendedCompiler) -> Iterator[None]:
    """Packages are built in this process, with this compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolchain, "find_compiler", lambda: compiler)
        patch.setattr("tvm_na.measure.worker_pool.Pool", InProcess)
        yield


#: A problem with five points.
SMALL = NAProblem.make((2, 2), 2, 1, 16, dtype=TF32)


def small_package(factory: pytest.TempPathFactory) -> Package:
    """All points of :data:`SMALL`, built once for all workers: the second spills, the third has too many registers."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small-package"
    with FileLock(folder.with_name("small-package.lock")):
        if not folder.exists():
            takes, begun = {1: (40, 4096), 2: (5000, 0)}, folder.with_name("small-package-begun")
            with building_here(PretendedCompiler(lambda number: takes.get(number, (40, 0)))):
                prebuild([SMALL], TARGET, begun)
            begun.replace(folder)
    return Package.open(folder)
