"""A package: kernels of many points of search spaces, built before anything is measured, in one folder for one target.

It is used where neither TVM nor a compiler is: what records need that only TVM can say is in the manifest.
:mod:`tvm_na.packages.prebuild` makes one, :mod:`tvm_na.packages.measure` measures what is in it. Importing this imports
neither TVM nor PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tvm_na.packages.contents import KernelResources, Options, PackagedKernel, PackagedWorkload, RefusedPoint
from tvm_na.problems.registry import Problem
from tvm_na.records.files import MALFORMED, in_short, read_file, write_atomically
from tvm_na.schedules.base import Point
from tvm_na.targets.target import NATarget, parse_target

__all__ = [
    "KernelResources",
    "Options",
    "Package",
    "PackagedKernel",
    "PackagedWorkload",
    "Point",
    "RefusedPoint",
]

MANIFEST, KERNELS, RUNTIME = "manifest.json", "kernels", "runtime"
FORMAT = 2


@dataclass(frozen=True)
class Package:
    """A folder of kernels.

    Attributes:
        target: What they are built for. They are machine code alone: no other architecture can run them.
        kernels: In the order in which they were built.
        refused: Points of which there is no kernel.
        workloads: The formulations of all problems.
        machine: The instruction set of the code that launches them, ``x86-64`` or ``aarch64``.
        versions: Versions of what they were made with.
        context: :func:`tvm_na.fingerprint.context_digest` where they were made.
    """

    folder: Path
    target: NATarget
    kernels: tuple[PackagedKernel, ...]
    refused: tuple[RefusedPoint, ...]
    workloads: tuple[PackagedWorkload, ...]
    machine: str
    versions: Mapping[str, str] = field(repr=False)
    context: str = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> Package:
        """Read what is in a package; libraries are looked at when they are wanted.

        Raises:
            ValueError: it is none, or its manifest is damaged.
        """
        file = Path(folder) / MANIFEST
        try:
            given = json.loads(read_file(file))
            if given["format"] != FORMAT:
                raise ValueError(f"another format than {FORMAT}")
            about = (given["machine"], given["context"], *given["versions"].values())
            if not all(isinstance(text, str) for text in about):
                raise TypeError("machine, context, versions: required texts")
            workloads = tuple(map(PackagedWorkload.of_row, given["workloads"]))
            return cls(
                Path(folder),
                parse_target(given["target"]),
                tuple(PackagedKernel.of_row(row, workloads) for row in given["kernels"]),
                tuple(RefusedPoint.of_row(row, workloads) for row in given["refused"]),
                workloads,
                given["machine"],
                given["versions"],
                given["context"],
            )
        except (OSError, *MALFORMED) as damage:
            wanted = f"required a manifest.json of format {FORMAT}"
            raise ValueError(f"package: {wanted}, got {file}: {in_short(damage)}") from damage

    def write(self) -> None:
        """Write the manifest, which is never half written; OSError where that fails."""
        numbers = {workload: number for number, workload in enumerate(self.workloads)}
        manifest = {
            "format": FORMAT,
            "target": self.target.name,
            "machine": self.machine,
            "versions": dict(self.versions),
            "context": self.context,
            "workloads": [workload.to_row() for workload in self.workloads],
            "kernels": [kernel.to_row(numbers[self.workload_of(kernel)]) for kernel in self.kernels],
            "refused": [refused.to_row(numbers[self.workload_of(refused)]) for refused in self.refused],
        }
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, separators=(",", ":")).encode())

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """The problems, in the order in which they came."""
        return tuple(dict.fromkeys(workload.problem for workload in self.workloads))

    @cached_property
    def _by_formulation(self) -> dict[tuple[Problem, str], PackagedWorkload]:
        return {(workload.problem, workload.formulation): workload for workload in self.workloads}

    @cached_property
    def _defaults(self) -> dict[Problem, PackagedKernel]:
        return {kernel.problem: kernel for kernel in self.kernels if kernel.default}

    def workload_of(self, point: PackagedKernel | RefusedPoint) -> PackagedWorkload:
        """The formulation of a kernel."""
        return self._by_formulation[point.problem, point.point.formulation]

    def default_of(self, problem: Problem) -> PackagedKernel | None:
        """The kernel of a problem that is built without records; None if it was refused, or is not there yet."""
        return self._defaults.get(problem)

    def library(self, kernel: PackagedKernel, into: Path) -> Path:
        """Write the library of a kernel, uncompressed, into a folder; its file, which has a name of its own.

        One that is there is replaced, and stays as it was for whoever has loaded it.

        **What is written is code**: load it only where whoever made the package is trusted.

        Raises:
            ValueError: it is missing, or is not what was built.
            OSError: it cannot be written.
        """
        packed = self.folder / kernel.file
        data = _unpacked(packed, kernel.resources.bytes)
        if hashlib.sha256(data).hexdigest() != kernel.sha256:
            raise ValueError(f"package: required the library that was built, got another in {packed}")
        file = Path(into) / f"{kernel.sha256[:32]}.so"
        with tempfile.NamedTemporaryFile(dir=into, prefix=".tmp-", delete=False) as out:  # for its owner alone
            out.write(data)
        Path(out.name).replace(file)
        return file


def _unpacked(file: Path, most: int) -> bytes:
    """What a compressed file holds: at most so many bytes."""
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        data = unpacker.decompress(read_file(file), max_length=most + 1)
    except (OSError, EOFError, lzma.LZMAError) as damage:
        raise ValueError(f"package: required a file that can be unpacked, got {file}: {damage}") from damage
    if len(data) > most or not unpacker.eof:
        raise ValueError(f"package: required a whole file of at most {most} bytes unpacked, got {file}")
    return data


def pack(folder: Path, data: bytes) -> str:
    """Write the library of a kernel, compressed, at once; its name in the package, by what it holds.

    Points with the same code have the same file, whoever writes it.

    Args:
        folder: The package.
        data: What it holds.

    Raises:
        OSError: it cannot be written.
    """
    name = f"{KERNELS}/{hashlib.sha256(data).hexdigest()[:32]}.so.xz"
    (folder / KERNELS).mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder / KERNELS, prefix=".tmp-", delete=False) as out:
        out.write(lzma.compress(data))
        out.flush()
        os.fsync(out.fileno())
        os.fchmod(out.fileno(), 0o644)
    Path(out.name).replace(folder / name)
    return name
