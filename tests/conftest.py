"""What every test starts from: the kernels on disk, the seeds, and how far a result may lie from the oracle."""

from __future__ import annotations

import multiprocessing.process
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tvm_na import settings

#: The largest :func:`tests.helpers.relative_error` of an operator's result, by dtype name, against the
#: reference in float64 on the same (already rounded) inputs. float16 and bfloat16 round each output once, to
#: 2^-11 and 2^-8, and have room for another rounding; float32 and float64 add up the order of their sums; tf32 rounds
#: weights and values to 2^-11, in inputs that the reference has in full.
TOLERANCE = {"float32": 2e-6, "float64": 1e-13, "float16": 2e-3, "bfloat16": 1.5e-2, "tf32": 1e-3}

#: The same for gradients, which add up more numbers.
GRADIENT_TOLERANCE = {"float32": 5e-6, "float64": 1e-13}

#: Kernels of all workers and of the processes that tests start, found by their content; ``make clean`` removes them.
CACHE = Path(__file__).parents[1] / "build" / "test-kernels"

#: Rooms with files that take tens of seconds.
_SLOW = (
    "schedules",
    "deploy",
    "tune",
    "packages",
    "measure",
    "cli",
    "examples",
    "ops",
    "te",
    "jit",
    "serve",
    "compat",
    "fuzz",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="skip a test once it begins to compile or starts a process")


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("TVM_NA_CACHE_DIR", str(CACHE))  # workers of xdist inherit these
    # Threads of OpenMP that have nothing to do would keep other workers from the cores: half of some tests' CPU time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _forbid_what_takes_seconds() -> None:
    """Skip tests where they compile a kernel, which is not in the cache, or start a process, such as a compiler.

    A kernel for GPUs, which would be emulated, counts from where TVM generates its source.
    """
    import tvm

    def refuse(*_: Any, **__: Any) -> Any:
        pytest.skip("--quick: it compiles, or starts a process")

    tvm.compile = tvm.tirx.build = refuse
    subprocess.Popen.__init__ = refuse  # type: ignore[method-assign]
    multiprocessing.process.BaseProcess.start = refuse  # type: ignore[method-assign]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two per core: tests wait for processes that they start, for disks and for time to pass."""
    return 2 * settings.available_cores()


def _is_cheap(item: pytest.Item) -> bool:
    return item.path.relative_to(Path(__file__).parent).parts[0] not in _SLOW


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Expensive files come first, so that none runs alone at the end; what needs a GPU is skipped without one."""
    items.sort(key=_is_cheap)
    if config.getoption("quick"):  # from now on: what collects and what starts workers may do it
        _forbid_what_takes_seconds()
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason=f"{item.name} needs a GPU, PyTorch sees none"))


@pytest.fixture(autouse=True, scope="session")
def _no_tuning_records(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels have default schedules unless a test says otherwise, whatever its user or this checkout has tuned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVM_NA_RECORDS_DIR", str(tmp_path_factory.mktemp("no-records")))
        patch.setenv("TVM_NA_RECORDS", "user")
        yield


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """An image of noise."""
    pytest.importorskip("PIL.Image").effect_noise((80, 60), 60).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers, alone or among others."""
    random.seed(0)
    torch.manual_seed(0)
