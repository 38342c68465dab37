"""What was measured of a package, as compact tuning records, written without TVM; and its kernels in the kernel cache,
so that nothing is built where they are used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from tvm_na import fingerprint
from tvm_na.jit import cache
from tvm_na.packages.package import RUNTIME, Package, PackagedKernel
from tvm_na.records.checks import checked_seconds
from tvm_na.records.compact import write_compact
from tvm_na.records.read import compact_records_in
from tvm_na.records.record import Machine, Record
from tvm_na.records.write import TuningDatabase, now
from tvm_na.targets import cuda_arch
from tvm_na.targets.target import host_machine

#: A kernel, and the seconds of every repeat.
Times: TypeAlias = tuple[PackagedKernel, Sequence[float]]


def check_usable(package: Package) -> None:
    """Check that a package's kernels run here, and that they and their records are found by this tvm_na.

    Raises:
        ValueError: it was built for another machine, by another tvm_na, or with other versions of TVM than those at
            hand; or these are not known.
    """
    if package.machine != host_machine():
        raise ValueError(f"package: required one for {host_machine()} machines, got one for {package.machine}")
    arch, found = cuda_arch.capability_of(package.target.arch), cuda_arch.devices()
    if found and not any(seen[0] == arch[0] and seen >= arch for seen in found):
        got = ", ".join(".".join(map(str, seen)) for seen in found)
        wanted = f"compute capability {arch[0]}.{arch[1]} to {arch[0]}.9"
        raise ValueError(f"package: required a GPU of {wanted}, for machine code of {package.target.name}, got {got}")
    try:
        here = fingerprint.context_digest(package.target)
        versions = _in_words(fingerprint.versions())
    except metadata.PackageNotFoundError as error:
        here, versions = "", f"{error}"
    if package.context != here:
        raise ValueError(
            "package: required one that was built with the versions, expressions and schedules at hand "
            f"({versions}), got {package.folder} with its own ({_in_words(package.versions)}), which it brings along: "
            f"PYTHONPATH={package.folder}/{RUNTIME}"
        )


def _in_words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def write_records(
    package: Package, output: Path, batch: int, times: Sequence[Times], about: Mapping[str, Any] | None = None
) -> None:
    """Add times to a folder of records; those that it has of the same schedules and this batch give way to them.

    A record of a single time gives way to any others of its problem: it was the best guess when time was up.

    Args:
        package: Of which the kernels are.
        output: The folder, which need not exist.
        batch: Samples of a call.
        times: What was measured.
        about: What ``meta.json`` is to say of the session in which that was: the GPU, its driver. None if it says so
            already.

    Raises:
        ValueError: the folder is of another target, or another process writes to it; a time is not positive.
    """
    with TuningDatabase(output, package.target) as database:
        if about is not None:
            database.begin_session(**about)
        machine = replace(database.machine, versions=tuple(package.versions.items()))
        new = [_record(package, kernel, run_secs, batch, machine) for kernel, run_secs in times]
        write_compact(
            output, _kept([*compact_records_in(output), *new], {kernel.problem for kernel, _ in times}, batch)
        )
        if about is not None:
            database.end_session(measured=len(times))


def _record(
    package: Package, kernel: PackagedKernel, run_secs: Sequence[float], batch: int, machine: Machine
) -> Record:
    """The record of a kernel; ValueError where a time is not positive."""
    versions = dict(package.versions)
    return Record(
        problem=kernel.problem,
        formulation=kernel.point.formulation,
        workload=package.workload_of(kernel).hash,
        target=package.target.name,
        threads=1,
        run_secs=checked_seconds(run_secs),
        file=Path(),
        line=0,
        sketch=kernel.point.sketch,
        parameters=tuple(kernel.point.parameters.items()),
        kernel=kernel.name,
        tvm=tuple(version for name, version in versions.items() if name == "apache-tvm"),
        date=now(),
        batch=batch,
        machine=machine,
    )


def _kept(records: Sequence[Record], problems: Iterable[object], batch: int) -> list[Record]:
    """The records but those that others came for later."""
    renewed = {number: r for number, r in enumerate(records) if r.problem in problems and r.batch == batch}
    last = {record.digest: number for number, record in renewed.items()}
    sure = {record.problem for record in renewed.values() if len(record.run_secs) > 1}
    gone = {
        number
        for number, record in renewed.items()
        if number != last[record.digest] or (record.problem in sure and len(record.run_secs) == 1)
    }
    return [record for number, record in enumerate(records) if number not in gone]


def digest_of(package: Package, kernel: PackagedKernel) -> str:
    """What names the record of a kernel, as :attr:`tvm_na.records.record.Record.digest`."""
    return _record(package, kernel, (1.0,), 1, Machine()).digest


def install(package: Package, kernels: Iterable[PackagedKernel]) -> list[Path]:
    """Put kernels into the kernel cache, where calls find them that would build the same; their files there.

    A kernel is found where its record counts; the default kernel of a problem also where no record does. Those that are
    there already stay. **Kernels are code**: whoever made the package must be trusted.

    Raises:
        ValueError: the package is not usable here, see :func:`check_usable`, or a library is damaged.
        RuntimeError: the cache cannot be written, or somebody else may write to it.
    """
    check_usable(package)
    found = []
    for kernel in kernels:
        keys = [f"record:{digest_of(package, kernel)}", *(["default"] if kernel.default else [])]
        found += [_installed(package, kernel, key) for key in keys]
    return found


def _installed(package: Package, kernel: PackagedKernel, key: str) -> Path:
    request = fingerprint.request_digest(kernel.problem, package.target, key)

    def write(file: Path) -> None:
        package.library(kernel, file.parent).replace(file)

    described = {"problem": str(kernel.problem), "target": package.target.name, "schedule": f"of a package ({key})"}
    return cache.get_or_build(request, described, lambda: (kernel.source[:32], write))
