"""Packages whose libraries were never compiled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tvm_na.problems.registry import Problem
from tvm_na.schedules.base import Point
from tvm_na.targets.target import parse_target
from tvm_na.tune.package import KernelResources, Package, PackagedKernel, PackagedWorkload, RefusedPoint, pack

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
        about = f"records/w{number}.json.xz"
        pack(folder / about, json.dumps({"of": str(problem)}).encode())
        workloads.append(PackagedWorkload(problem, "space", FORMULATION, ("sketch",), True, f"{number}", about))
        for size in SIZES:
            point, options = Point(FORMULATION, "sketch", {"size": size}), (SIZES,)
            if size == SIZES[-1]:
                refused.append(RefusedPoint(problem, "space", point, "spills", "spills: required less", options))
                continue
            data = library_of(problem, size)
            file, trace = (
                f"{room}/{number}{size}.{kind}.xz" for room, kind in (("kernels", "so"), ("records", "json"))
            )
            pack(folder / file, data)
            pack(folder / trace, json.dumps([problem.to_json(), size]).encode())
            sha256, resources = hashlib.sha256(data).hexdigest(), KernelResources(64, 0, 128, 4096, len(data))
            about = (sha256, problem, "space", point, size == 1, sha256, resources, options, trace)
            kernels.append(PackagedKernel(file, *about))
    package = Package(folder, TARGET, *map(tuple, (kernels, refused, workloads)), "x86-64", {"tvm": "0"}, "context")
    package.write()
    return package
