"""What happens in a worker process of the run."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.device import Device
from benchmarks.gpu.folder import RunFolder
from tvm_na.measure.worker_pool import Last
from tvm_na.reference.case import WrongNumbers


@dataclass(frozen=True)
class Place:
    """Where a step's function runs.

    Attributes:
        named: The class of the device, ``module:name``.
        device: The GPU.
        folder: What was prepared.
        results: The folder whose files are packed.
    """

    named: str
    device: Device
    folder: RunFolder
    results: Path


_here: list[Place] = []


def here() -> Place:
    """Where this process runs."""
    return _here[-1]


def prepare(device: str, folder: Path, results: Path) -> None:
    """Make this process use a device, the class ``module:name``."""
    module, _, name = device.partition(":")
    place = Place(device, getattr(importlib.import_module(module), name)(), RunFolder(folder), results)
    os.environ["TVM_NA_CACHE_DIR"] = str(results.parent / "cache")
    os.environ["TVM_NA_RECORDS_DIR"] = str(results / "records")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # others would be started for each process
    place.device.start()
    _here.append(place)


def about() -> dict[str, Any]:
    """The machine: device, driver, versions."""
    return here().device.about()


def call(function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any] | Last:
    """What became of an item, as :class:`benchmarks.gpu.results.Results` keeps it.

    A process that has lost its GPU over it says so as its last.
    """
    try:
        return {"value": function(*arguments)}
    except WrongNumbers as error:
        return {"wrong": str(error)}
    except Exception:
        found = {"failure": "error", "message": traceback.format_exc()}
        print(found["message"], file=sys.stderr, flush=True)
        return found if here().device.works() else Last({**found, "failure": "crash"})
