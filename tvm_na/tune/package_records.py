"""What was measured of a package, as tuning records: the same as the tuner's, written without TVM; and its kernels in
the kernel cache, so that nothing is built where they are used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

from tvm_na import fingerprint
from tvm_na.jit import cache
from tvm_na.records.files import writing
from tvm_na.records.maintain import meta_of, rewrite
from tvm_na.records.read import Record, as_canonical, records_in, schedule_digest
from tvm_na.records.write import TuningDatabase
from tvm_na.tune.package import RUNTIME, Package, PackagedKernel

#: A kernel, and the seconds of every repeat.
Times: TypeAlias = tuple[PackagedKernel, Sequence[float]]


def check_context(package: Package) -> None:
    """ValueError where another tvm_na than this one built a package: its records and kernels would not be found here.

    So it is where the versions of what it was built with are not known.
    """
    try:
        here = fingerprint.context_digest(package.target)
        versions = ", ".join(f"{name} {version}" for name, version in fingerprint.versions().items())
    except metadata.PackageNotFoundError as error:
        here, versions = "", f"{error}"
    if package.context != here:
        got = ", ".join(f"{name} {version}" for name, version in package.versions.items())
        raise ValueError(
            f"package: required one that the tvm_na at hand built ({versions}); {package.folder} was built with {got}, "
            f"which it brings along (PYTHONPATH={package.folder}/{RUNTIME})"
        )


def write_records(package: Package, output: Path, batch: int, times: Sequence[Times]) -> None:
    """Add times to a folder of records; those that it has of the same schedules and this batch give way to them.

    A record of a single time gives way to any others of its problem: it was the best guess when time was up.

    Raises:
        ValueError: the folder is of another target, or another process writes to it; a time is not positive.
    """
    with TuningDatabase(output, package.target) as database:
        for kernel, run_secs in times:
            workload = package.workload_of(kernel)
            about = package.record(workload.file)
            attrs = {"tvm_na.problem": kernel.problem.to_json(), "tvm_na.formulation": workload.formulation}
            database.know(workload.hash, about["workload"], attrs)
            described = (about["target"], about["arguments"], batch)
            database.add(workload.hash, kernel.problem, package.record(kernel.trace), run_secs, *described)
    with writing(output):
        records = records_in(output)
        kept = _kept(records, {kernel.problem for kernel, _ in times}, batch)
        if len(kept) < len(records):
            rewrite(output, kept, meta_of(output))


def _kept(records: Sequence[Record], problems: Iterable[object], batch: int) -> list[Record]:
    """The records but those that others came for later."""
    renewed = [r for r in records if r.problem in problems and r.batch == batch]
    last = {record.digest: record.line for record in renewed}
    sure = {record.problem for record in renewed if len(record.run_secs) > 1}
    gone = {
        record.line
        for record in renewed
        if record.line != last[record.digest] or (record.problem in sure and len(record.run_secs) == 1)
    }
    return [record for record in records if record.line not in gone]


def digest_of(package: Package, kernel: PackagedKernel) -> str:
    """What names the record of a kernel, as :attr:`tvm_na.records.read.Record.digest`."""
    trace = as_canonical(package.record(kernel.trace))
    return schedule_digest(package.workload_of(kernel).hash, trace, 1, package.target.name)


def install(package: Package, kernels: Iterable[PackagedKernel]) -> list[Path]:
    """Put kernels into the kernel cache, where calls find them that would build the same; their files there.

    A kernel is found where its record counts; the default kernel of a problem also where no record does. Those that are
    there already stay. **Kernels are code**: whoever made the package must be trusted.

    Raises:
        ValueError: another tvm_na built the package, or a library is damaged.
        RuntimeError: the cache cannot be written, or somebody else may write to it.
    """
    check_context(package)
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
