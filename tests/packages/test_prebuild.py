"""Building packages: every point of a space once, whatever interrupts it, and what is known of those that cannot be."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.packages.made_up import (
    FORMULATION,
    SMALL,
    TARGET,
    InProcess,
    PretendedCompiler,
    building_here,
    small_package,
)
from tvm_na.measure.worker_pool import Outcome
from tvm_na.packages import prebuild as module
from tvm_na.packages.package import KernelResources, Package, PackagedKernel, PackagedWorkload, RefusedPoint
from tvm_na.packages.prebuild import PrebuildState, prebuild
from tvm_na.packages.worker import Wanted
from tvm_na.problems.attention import NAProblem
from tvm_na.records.replay import at_point, kernel_name
from tvm_na.schedules.base import Point
from tvm_na.targets.target import parse_target
from tvm_na.tune.tasks import formulations_of

PROBLEM = NAProblem.make((3, 3), 3, 1, 16, dtype="float16")
OTHER = NAProblem.make((4, 4), 3, 1, 16, dtype="float16")


# --- the walk, through a space that there is not


class Tree:
    """A space whose parameters have options that depend on those before: 10 points, three of them too large.

    Attributes:
        built: The values of each point that was built, in their order.
        fails: What becomes of a point instead, by its values.
    """

    def __init__(self) -> None:
        self.built: list[tuple[int, ...]] = []
        self.fails: Callable[[tuple[int, ...]], str | None] = lambda values: None

    def describe(self, problem: Any, target: Any) -> list[PackagedWorkload]:
        return [PackagedWorkload(problem, "tree", FORMULATION, ("sketch",), True, "1")]

    def options(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """Of the next parameter, the default first; none if there is no other."""
        return {(): (2, 1, 4), (1,): (3, 5), (2,): (3,), (4,): (0, 1, 2, 3)}.get(
            values, (6, 7) if values[1:] == (3,) else ()
        )

    def build_point(self, wanted: Wanted, target: Any, folder: Path) -> PackagedKernel | RefusedPoint:
        values, options = (), []
        while found := self.options(values):
            values += (wanted.begins[len(values)] if len(values) < len(wanted.begins) else found[0],)
            options.append(found)
        self.built.append(values)
        point = Point(FORMULATION, wanted.sketch, dict(zip("abc", values, strict=False)))
        failure = self.fails(values) or ("too many threads" if values[0] == 4 and values[1] > 1 else None)
        if failure is not None:
            return RefusedPoint(wanted.workload.problem, "tree", point, failure, "since", tuple(options))
        file, digest = f"kernels/{''.join(map(str, values))}.so.xz", "0" * 64
        about = (wanted.default, digest, KernelResources(1, 0, 32, 0, 1), tuple(options), "0" * 16)
        return PackagedKernel(file, digest, wanted.workload.problem, "tree", point, *about)

    def leaves(self, values: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
        """The values of all points."""
        options = self.options(values)
        return [leaf for option in options for leaf in self.leaves((*values, option))] if options else [values]


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    found = Tree()
    monkeypatch.setattr(module, "describe", found.describe)
    monkeypatch.setattr(module, "build_point", found.build_point)
    with building_here(PretendedCompiler()):
        yield found


def values_of(points: Any) -> list[tuple[int, ...]]:
    return [tuple(point.point.parameters.values()) for point in points]


def test_every_point_is_built_once_though_options_depend_on_each_other(tree: Tree, tmp_path: Path) -> None:
    package, state = prebuild([PROBLEM], TARGET, tmp_path)
    assert sorted(tree.built) == sorted(tree.leaves()) and len(tree.leaves()) == 10
    assert sorted(values_of(package.kernels) + values_of(package.refused)) == sorted(tree.leaves())
    assert (state.built, state.refused, state.ending) == (7, Counter({"too many threads": 3}), "all points are built")
    assert [k.default for k in package.kernels] == [True] + [False] * 6 and values_of(package.kernels)[0] == (2, 3, 6)
    assert Package.open(tmp_path) == package
    tree.built.clear()
    assert prebuild([PROBLEM], TARGET, tmp_path)[0] == package
    assert tree.built == []


def test_defaults_alone_and_then_the_others(tree: Tree, tmp_path: Path) -> None:
    package, state = prebuild([PROBLEM, OTHER], TARGET, tmp_path, which="defaults")
    assert tree.built == [(2, 3, 6)] * 2 and (state.points, state.done) == (2, 2)
    assert [k.problem for k in package.kernels if k.default] == [PROBLEM, OTHER]
    package, _ = prebuild([OTHER], TARGET, tmp_path)
    assert Counter(k.problem for k in package.kernels) == {PROBLEM: 1, OTHER: 7}
    assert len(tree.built) == 1 + len(tree.leaves())
    _, state = prebuild([PROBLEM, OTHER], TARGET, tmp_path, which="defaults")
    assert (state.points, state.done) == (11, 11)  # what is there is counted


def test_what_was_interrupted_is_continued(tree: Tree, tmp_path: Path) -> None:
    def interrupt(state: PrebuildState) -> None:
        if state.done == 4:
            state.interrupted()

    package, state = prebuild([PROBLEM], TARGET, tmp_path, observer=interrupt)
    assert (len(tree.built), len(package.kernels), state.ending) == (4, 4, "interrupted")
    assert Package.open(tmp_path) == package
    prebuild([PROBLEM], TARGET, tmp_path)
    assert sorted(tree.built) == sorted(tree.leaves())


@pytest.mark.parametrize("crashes", [False, True])
def test_what_may_be_the_fault_of_this_machine_is_tried_again(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crashes: bool
) -> None:
    def run(self: InProcess, function: Any, calls: Any, timeout: float, done: Any, stopped: Any) -> None:
        for number, call in enumerate(calls):
            made = function(*call)
            crashed = crashes and isinstance(made, RefusedPoint) and made.failure == "build"
            done(number, Outcome(None, "crash", "SIGSEGV") if crashed else Outcome(made))

    with monkeypatch.context() as patch:
        patch.setattr(InProcess, "run", run)
        tree.fails = lambda values: "build" if values == (1, 3, 6) else None
        package, state = prebuild([PROBLEM], TARGET, tmp_path)
    assert state.failed == {"build crash" if crashes else "build": 1}
    assert ("SIGSEGV" if crashes else "since") in state.messages[0]
    assert (1, 3, 6) not in values_of((*package.kernels, *package.refused))
    tree.fails = lambda values: None
    package, state = prebuild([PROBLEM], TARGET, tmp_path)
    assert sorted(values_of((*package.kernels, *package.refused))) == sorted(tree.leaves()) and not state.failed
    assert Counter(tree.built)[1, 3, 6] == 2


def test_a_package_of_something_else_is_not_continued(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prebuild([PROBLEM], TARGET, tmp_path)
    with pytest.raises(ValueError, match=r"^package: .* with the same target, got .*sm_90"):
        prebuild([PROBLEM], parse_target("cuda-sm_80"), tmp_path)
    monkeypatch.setattr("tvm_na.fingerprint.context_digest", lambda target: "another")
    with pytest.raises(ValueError, match=r"^package: .* with the same context, got "):
        prebuild([PROBLEM], TARGET, tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"target": parse_target("llvm-x86-avx2")}, "target: required a GPU's .* got llvm-x86-avx2"),
        ({"which": "some"}, "which: required all or defaults, got 'some'"),
        ({"problems": []}, "problems: required one or more, got none"),
        (
            {"problems": [PROBLEM.with_dtype("tf32")], "target": parse_target("cuda-sm_75")},
            "problems: required those with a compiled kernel on",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    given = {"problems": [PROBLEM], "target": TARGET, "folder": tmp_path / "package", **change}
    with building_here(PretendedCompiler()), pytest.raises(ValueError, match=f"^{says}"):
        prebuild(**given)
    assert not (tmp_path / "package").exists()


def test_a_disk_without_room_ends_it_with_a_sentence(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    tree.fails = lambda values: "build" if values == (1, 3, 6) else None
    monkeypatch.setattr(module, "check_room", full)
    with pytest.raises(RuntimeError, match="package: required room .* No space left on device; what was built is kept"):
        prebuild([PROBLEM], TARGET, tmp_path)
    assert Package.open(tmp_path).kernels


# --- a space that there is


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return small_package(tmp_path_factory)


def test_points_are_those_of_the_space(package: Package) -> None:
    formulations = formulations_of(SMALL, TARGET)
    assert [(w.formulation, w.sketches, w.first) for w in package.workloads] == [
        (f.text, tuple(f.spaces), number == 0) for number, f in enumerate(formulations)
    ]
    wanted = [
        (f.text, sketch, values)
        for f in formulations
        for sketch, scheduled in f.spaces.items()
        for values in itertools.product(*(parameter.options for parameter in scheduled.parameters))
    ]
    points = [each.point for each in (*package.kernels, *package.refused)]
    assert sorted((p.formulation, p.sketch, tuple(p.parameters.values())) for p in points) == sorted(wanted)
    default, scheduled = package.default_of(SMALL), formulations[0].default
    assert default is not None and default.point == Point(formulations[0].text, scheduled.sketch, scheduled.values)


def test_libraries_are_those_that_were_built(package: Package, tmp_path: Path) -> None:
    assert len({kernel.file for kernel in package.kernels}) == len({kernel.source for kernel in package.kernels})
    for kernel in package.kernels:
        data = package.library(kernel, tmp_path).read_bytes()
        assert bytes.fromhex(kernel.source) * 64 in data  # what stands for its machine code
        assert (kernel.resources.bytes, kernel.resources.registers) == (len(data), 40)
        assert 32 <= kernel.resources.threads <= 1024 and kernel.resources.shared_bytes > 0


def test_points_that_no_gpu_can_launch_are_refused_with_the_reason(package: Package) -> None:
    assert {refused.failure: refused.reason for refused in package.refused} == {
        "spills": "spills: required at most 1024 bytes of a thread, got 4096",
        "too many registers": "registers: required at most 65536 of a block, got 5000 in each of 32 threads",
    }


def test_names_of_kernels_are_those_of_records(package: Package) -> None:
    assert len(package.kernels) == 3
    for kernel in package.kernels:
        assert kernel.name == kernel_name(at_point(kernel.point, SMALL, TARGET))


def test_what_is_there_is_not_built_again(package: Package) -> None:
    compiler = PretendedCompiler()
    with building_here(compiler):
        assert prebuild([SMALL], TARGET, package.folder)[0] == package
    assert compiler.compiled == []
