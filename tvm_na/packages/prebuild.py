"""Packages: every legal point of the search spaces of some problems, compiled ahead of any measurement.

A point is scheduled, lowered and compiled in one go, by a worker, which also tells what else its parameters could have
been. So the points of a sketch are found by walking: from the default to those that differ from it first in one
parameter, and from each of these to those that differ from it in one after that. That holds too where the options of a
parameter depend on those before it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Literal, TypeAlias

from tvm_na import fingerprint, settings
from tvm_na.compilers import cxx
from tvm_na.cuda import toolchain
from tvm_na.measure import worker_pool as workers
from tvm_na.packages.contents import PackagedKernel, RefusedPoint
from tvm_na.packages.package import MANIFEST, Package
from tvm_na.packages.worker import Wanted, build_point, describe
from tvm_na.problems.registry import Problem
from tvm_na.records.files import writing
from tvm_na.schedules import spaces_for
from tvm_na.targets.target import NATarget, host_machine
from tvm_na.tune.builder import REJECTIONS, check_room
from tvm_na.tune.logs import WORKERS_LOG
from tvm_na.tune.metaschedule import skip_tensor_intrinsics
from tvm_na.tune.state import INTERRUPTED, interruptible

#: Every legal point, or of every formulation and sketch the default one.
Which: TypeAlias = Literal["all", "defaults"]
#: Builds after which a worker is replaced: TVM's compiler leaks.
_USES = 200
_TIMEOUT = 300.0  # seconds of one kernel
_WRITTEN_EVERY = 10.0  # seconds


@dataclass
class PrebuildState:
    """Where a build stands.

    Attributes:
        problems: How many have been described.
        built: Kernels in the package.
        refused: Points in the package of which there can be no kernel, by reason.
        failed: What else could not be built, by reason; the same command tries it again.
        messages: What went wrong with those.
        points: How many points there will be, as far as is known.
        started: When it began, on the clock of ``time.monotonic``.
        ending: Why it ended; "" while it runs.
    """

    problems: int = 0
    built: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)
    points: int = 0
    started: float = field(default_factory=time.monotonic)
    ending: str = ""

    @property
    def done(self) -> int:
        """Points of which it is known what became."""
        return self.built + self.refused.total() + self.failed.total()

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started

    def interrupted(self) -> None:
        """Let Ctrl-C end it."""
        self.ending = INTERRUPTED

    def stopped(self) -> bool:
        """Whether to end."""
        return bool(self.ending)


def prebuild(
    problems: Sequence[Problem],
    target: NATarget,
    folder: Path,
    *,
    jobs: int = 0,
    which: Which = "all",
    observer: Callable[[PrebuildState], None] | None = None,
) -> tuple[Package, PrebuildState]:
    """Build points of problems into a package; one that is there is continued.

    What is in it, or was refused, is not built again. Ctrl-C (in the main thread) ends it in good order, and loses no
    kernel that was finished.

    Args:
        problems: What for; further ones are added to what is there.
        target: What for: a GPU's, which need not be here.
        folder: The package.
        jobs: Kernels compiled at once; 0 for one per core.
        which: See :data:`Which`.
        observer: Called with the state after every kernel.

    Raises:
        ValueError: names the argument, what was required and what came.
        RuntimeError: a compiler is missing, or the folder cannot be written.
    """
    problems, folder = list(dict.fromkeys(problems)), Path(folder).absolute()
    _check(problems, target, which)
    try:
        with ExitStack() as stack:
            stack.enter_context(writing(folder))
            build = _Build(_opened(folder, target), which, observer or (lambda _: None))
            stack.enter_context(interruptible(build.state.interrupted))
            pool = workers.Pool(jobs or settings.available_cores(), _USES, folder / WORKERS_LOG, skip_tensor_intrinsics)
            stack.callback(pool.close)
            stack.callback(build.keep)
            build.run(pool, problems)
    except OSError as error:
        wanted = f"package: required room and the right to write in {folder}"
        raise RuntimeError(f"{wanted}, got {error}; what was built is kept, the same command continues") from error
    return build.package, build.state


def _check(problems: Sequence[Problem], target: NATarget, which: str) -> None:
    if target.kind != "cuda":
        raise ValueError(f"target: required a GPU's to build a package for, such as cuda-sm_90, got {target.name}")
    if which not in ("all", "defaults"):
        raise ValueError(f"which: required all or defaults, got {which!r}")
    if not problems:
        raise ValueError("problems: required one or more, got none")
    for problem in problems:
        if not spaces_for(problem, target):
            raise ValueError(f"problems: required those with a compiled kernel on {target.name}, got {problem}")
    toolchain.find_compiler()
    cxx.command()


def _opened(folder: Path, target: NATarget) -> Package:
    """The package that is there, or an empty one; ValueError if it was begun for something else, or by another."""
    machine, versions = host_machine(), fingerprint.kernel_versions(target)
    new = Package(folder, target, (), (), (), machine, versions, fingerprint.context_digest(target))
    if not (folder / MANIFEST).exists():
        new.write()
        return new
    found = Package.open(folder)
    for what in ("target", "machine", "versions", "context"):
        wanted, got = getattr(new, what), getattr(found, what)
        if wanted != got:
            raise ValueError(f"package: required one that was begun with the same {what}, got {folder} with {got}")
    return found


class _Build:
    """A package that grows."""

    def __init__(self, package: Package, which: Which, observe: Callable[[PrebuildState], None]) -> None:
        self.package, self.state = package, PrebuildState()
        self._which, self._observe = which, observe
        self._workloads = {(w.problem, w.formulation): w for w in package.workloads}
        self._kernels, self._refused = list(package.kernels), list(package.refused)
        self._written = time.monotonic()
        self._expanded: set[Wanted] = set()
        #: What the parameters of a sketch begin with in points that are there, or are going to be.
        self._begun: set[Wanted] = set()

    def run(self, pool: workers.Pool, problems: Sequence[Problem]) -> None:
        """Build all that is wanted of ``problems``, in waves."""
        self._describe(pool, problems)
        wanted = set(problems)
        points: list[PackagedKernel | RefusedPoint] = [*self._kernels, *self._refused]
        there = [point for point in points if point.problem in wanted]
        for point in there:
            self._count(point)
        following = [each for point in there for each in self._neighbours(point)]
        workloads = [w for w in self._workloads.values() if w.problem in wanted]
        roots = self._new([Wanted(w, sketch) for w in workloads for sketch in w.sketches])
        self.state.points += len(roots) + (len(there) if self._which == "defaults" else 0)
        wave = [*roots, *self._new(following)]
        while wave and not self.state.stopped():
            wave = self._build(pool, wave)
        self.state.ending = self.state.ending or "all points are built"
        self._observe(self.state)

    def _describe(self, pool: workers.Pool, problems: Sequence[Problem]) -> None:
        known = {problem for problem, _ in self._workloads}
        new = [problem for problem in problems if problem not in known]
        self.state.problems = len(problems) - len(new)

        def done(index: int, outcome: workers.Outcome) -> None:
            if outcome.failure == "stopped":
                return
            if outcome.failure is not None:
                check_room(self.package.folder)
                what = f"{new[index]} could not be described ({outcome.message})"
                raise RuntimeError(f"package: {what}; see {self.package.folder / WORKERS_LOG}")
            self._workloads |= {(w.problem, w.formulation): w for w in outcome.value}
            self.state.problems += 1
            self._observe(self.state)

        calls = [(problem, self.package.target) for problem in new]
        pool.run(describe, calls, _TIMEOUT, done, self.state.stopped)

    def _build(self, pool: workers.Pool, wave: Sequence[Wanted]) -> list[Wanted]:
        """Build points; those that are to be built then."""
        following: list[Wanted] = []

        def done(index: int, outcome: workers.Outcome) -> None:
            if outcome.failure == "stopped":
                return
            if outcome.failure is not None:
                self._failed(f"build {outcome.failure}", f"{wave[index]}: {outcome.message}")
            else:
                self._keep_point(outcome.value)
                following.extend(self._neighbours(outcome.value))
            if time.monotonic() > self._written + _WRITTEN_EVERY:
                self.keep()
            self._observe(self.state)

        calls = [(wanted, self.package.target, self.package.folder) for wanted in wave]
        pool.run(build_point, calls, _TIMEOUT, done, self.state.stopped)
        return self._new(following)

    def _new(self, found: Sequence[Wanted]) -> list[Wanted]:
        """Those that no point that is there, or comes before, begins with."""
        new = [each for each in dict.fromkeys(found) if each not in self._begun]
        self._begun.update(new)
        return new

    def _keep_point(self, point: PackagedKernel | RefusedPoint) -> None:
        if isinstance(point, PackagedKernel):
            self._kernels.append(point)
        elif point.failure in REJECTIONS:
            self._refused.append(point)
        else:
            self._failed(point.failure, f"{point.problem}, {point.point}: {point.reason}")
        self._count(point)

    def _failed(self, failure: str, message: str) -> None:
        """Note what may be the fault of this machine, and is tried again by the same command."""
        check_room(self.package.folder)
        self.state.failed[failure] += 1
        self.state.messages.append(message)

    def _count(self, point: PackagedKernel | RefusedPoint) -> None:
        """Count a point, and what it begins with."""
        if isinstance(point, PackagedKernel):
            self.state.built += 1
        elif point.failure in REJECTIONS:
            self.state.refused[point.failure] += 1
        root = self._begins(point, 0)
        if self._which == "all" and root not in self._expanded:
            self._expanded.add(root)
            self.state.points += prod(map(len, point.options)) - (root in self._begun)
        self._begun |= {self._begins(point, count) for count in range(len(point.point.parameters) + 1)}

    def _begins(self, point: PackagedKernel | RefusedPoint, count: int) -> Wanted:
        """With what a point begins: so many of its parameters."""
        workload = self._workloads[point.problem, point.point.formulation]
        return Wanted(workload, point.point.sketch, tuple(point.point.parameters.values())[:count])

    def _neighbours(self, point: PackagedKernel | RefusedPoint) -> Iterator[Wanted]:
        """Points that differ from one in a parameter, and take their defaults after that."""
        if self._which == "all":
            for number, options in enumerate(point.options):
                begins = self._begins(point, number)
                yield from (replace(begins, begins=(*begins.begins, value)) for value in options)

    def keep(self) -> None:
        """Write the manifest."""
        kernels, refused = tuple(self._kernels), tuple(self._refused)
        workloads = tuple(self._workloads.values())
        self.package = replace(self.package, kernels=kernels, refused=refused, workloads=workloads)
        self.package.write()
        self._written = time.monotonic()
