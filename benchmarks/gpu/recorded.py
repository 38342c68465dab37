"""What was measured as tuning records, and kernels in the cache, where calls of operators find them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.folder import RunFolder
from benchmarks.gpu.points import BEST
from benchmarks.gpu.results import Results
from benchmarks.gpu.steps import Item
from benchmarks.gpu.worker import here
from tvm_na.functional import Backend
from tvm_na.packages.records import check_usable, install, write_records
from tvm_na.records.read import records_in
from tvm_na.records.write import TuningDatabase


def items(folder: RunFolder, results: Results) -> list[Item]:
    """What was measured in turns, problem by problem."""
    return [
        Item(name, (found["batch"], [(one["kernel"], one["samples"]) for one in found["kernels"]]))
        for name, found in results.values(BEST).items()
    ]


def record(batch: int, times: Sequence[tuple[int, Sequence[float]]]) -> dict[str, Any]:
    """Write records of kernels of a problem.

    Raises:
        ValueError: the package is not for this machine, or another tvm_na than this one built it.
    """
    place = here()
    package = place.folder.package
    check_usable(package)
    output = place.results / "records" / package.target.name
    with TuningDatabase(output, package.target) as database:
        database.begin_session(threads=1, package=package.context, gpu=place.device.about()["device"])
        database.end_session(measured=len(times), ending="the best of the nine-minute run")
    write_records(package, output, batch, [(place.folder.kernel(number), seconds) for number, seconds in times])
    return {"records": len(times)}


def prepare_operators(best: Sequence[int] = ()) -> str:
    """Have operators find kernels for whatever they are called with in the run; which records count then.

    Of what is searched they find the ``best`` kernels, if all of it has records. Otherwise no records count: of a
    problem like one that has some a kernel would have to be built.
    """
    place = here()
    folder = place.results / "records" / place.folder.package.target.name
    known = {record.problem for record in records_in(folder)} if best and folder.is_dir() else set()
    os.environ["TVM_NA_RECORDS"] = mode = "user" if known.issuperset(place.folder.plan.searched) else "off"
    if place.device.backend is Backend.COMPILED:
        plan = place.folder.plan
        defaults = map(place.folder.default, dict.fromkeys((*plan.searched, *plan.timed, plan.launched)))
        install(place.folder.package, map(place.folder.kernel, dict.fromkeys((*best, *defaults))))
    return mode
