"""What a package says of each kernel, of each point that was refused and of each formulation; as rows of JSON too.

A row names its formulation by its number in the manifest. Rows are data that may be damaged: whatever is wrong raises
one of :data:`tvm_na.records.files.MALFORMED`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from tvm_na.problems.registry import Problem, problem_from_json
from tvm_na.records.checks import text as _text
from tvm_na.schedules.base import Point

#: Names of files in a package: those of a manifest from elsewhere lead nowhere else.
_FILE = re.compile(r"kernels/[0-9a-z]+\.so\.xz", re.ASCII)
_DIGEST, _NAME = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{16}")

#: All values that each parameter of a point could have, in their order.
Options: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class PackagedWorkload:
    """A formulation of a problem.

    Attributes:
        space: The name of its search space.
        formulation: Canonical JSON.
        sketches: The names of its sketches, the default first.
        first: Whether it is the formulation that is built without records.
        hash: The structural hash of its IRModule with a batch of 1, decimal.
    """

    problem: Problem
    space: str
    formulation: str
    sketches: tuple[str, ...]
    first: bool
    hash: str

    def to_row(self) -> dict[str, Any]:
        """It as JSON."""
        return {**vars(self), "problem": self.problem.to_json(), "sketches": list(self.sketches)}

    @classmethod
    def of_row(cls, row: Any) -> PackagedWorkload:
        """What :meth:`to_row` wrote."""
        text = {name: _text(row[name]) for name in ("space", "formulation", "hash")}
        if not text["hash"].isdecimal():
            raise ValueError(f"hash: required decimal digits, got {text['hash']!r}")
        sketches = tuple(map(_text, row["sketches"]))
        return cls(problem_from_json(row["problem"]), sketches=sketches, first=_flag(row["first"]), **text)


@dataclass(frozen=True)
class KernelResources:
    """What a kernel takes; of several device functions, the most.

    Attributes:
        registers: Of 32 bits, per thread.
        spill_bytes: What a thread stores to and loads from memory since registers are short.
        threads: Of a block.
        shared_bytes: Shared memory of a block.
        bytes: Of the library.
    """

    registers: int
    spill_bytes: int
    threads: int
    shared_bytes: int
    bytes: int


@dataclass(frozen=True)
class PackagedKernel:
    """A kernel of a package.

    Attributes:
        file: Its library, compressed, relative to the folder. Points with the same code have the same.
        sha256: Of the library, uncompressed.
        problem: What it computes.
        space: The name of the search space.
        point: Which point of it.
        default: Whether it is what is built without records.
        source: SHA-256 of the CUDA C++ that it was compiled from.
        resources: What it takes.
        options: Of the point's parameters.
        name: What records call it (:func:`tvm_na.records.replay.kernel_name`).
    """

    file: str
    sha256: str
    problem: Problem
    space: str
    point: Point
    default: bool
    source: str
    resources: KernelResources
    options: Options = ()
    name: str = ""

    def to_row(self, workload: int) -> dict[str, Any]:
        """It as JSON; ``workload`` is the number of its formulation."""
        names = ("file", "sha256", "default", "source", "name")
        about = {name: getattr(self, name) for name in names}
        return {**_point_row(workload, self.point, self.options), **about, "resources": asdict(self.resources)}

    @classmethod
    def of_row(cls, row: Any, workloads: Sequence[PackagedWorkload]) -> PackagedKernel:
        """What :meth:`to_row` wrote."""
        workload, point, options = _point_of(row, workloads)
        for name, pattern in (("sha256", _DIGEST), ("source", _DIGEST), ("name", _NAME)):
            if not pattern.fullmatch(row[name]):
                raise ValueError(f"{name}: required hexadecimal digits, got {row[name]!r}")
        resources = KernelResources(**{name: _count(value) for name, value in row["resources"].items()})
        about = (_flag(row["default"]), row["source"], resources, options, row["name"])
        return cls(_check_file(row["file"]), row["sha256"], workload.problem, workload.space, point, *about)


@dataclass(frozen=True)
class RefusedPoint:
    """A point of which no kernel was made.

    Attributes:
        point: Which; where it could not be scheduled, with the parameters that were set by then.
        failure: What it failed at, as the tuner's trials have it.
        reason: Why, in words.
        options: Of the point's parameters.
    """

    problem: Problem
    space: str
    point: Point
    failure: str
    reason: str
    options: Options = ()

    def to_row(self, workload: int) -> dict[str, Any]:
        """It as JSON; ``workload`` is the number of its formulation."""
        about = {"failure": self.failure, "reason": self.reason}
        return {**_point_row(workload, self.point, self.options), **about}

    @classmethod
    def of_row(cls, row: Any, workloads: Sequence[PackagedWorkload]) -> RefusedPoint:
        """What :meth:`to_row` wrote."""
        workload, point, options = _point_of(row, workloads)
        failure, reason = _text(row["failure"]), _text(row["reason"])
        return cls(workload.problem, workload.space, point, failure, reason, options)


def _point_row(workload: int, point: Point, options: Options) -> dict[str, Any]:
    values: Mapping[str, int] = point.parameters
    parameters = [[*pair, list(each)] for pair, each in zip(values.items(), options, strict=True)]
    return {"workload": workload, "sketch": point.sketch, "parameters": parameters}


def _point_of(row: Any, workloads: Sequence[PackagedWorkload]) -> tuple[PackagedWorkload, Point, Options]:
    workload = workloads[_count(row["workload"])]
    values = {_text(name): _count(value) for name, value, _ in row["parameters"]}
    options = tuple(tuple(map(_count, each)) for _, _, each in row["parameters"])
    if len(values) != len(options):
        raise ValueError(f"parameters: required each once, got {row['parameters']}")
    return workload, Point(workload.formulation, _text(row["sketch"]), values), options


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"required true or false, got {value!r}")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"required an integer from 0 to 2^31 - 1, got {value!r}")
    return value


def _check_file(name: Any) -> str:
    if not _FILE.fullmatch(_text(name)):
        raise ValueError(f"file: required one in kernels/, got {name!r}")
    return str(name)
