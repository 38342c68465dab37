"""Every environment variable that tvm_na reads.

They are read anew at each use; a call that was made before in the process keeps the kernel it got.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

RECORDS_MODES = ("all", "user", "shipped", "off")


def num_threads() -> int:
    """Threads of a CPU kernel; ValueError if TVM_NA_NUM_THREADS is no positive integer.

    Unset, it is PyTorch's number (all cores, unless ``torch.set_num_threads`` or a DataLoader's worker says
    otherwise): kernels run on PyTorch's threads.
    """
    text = os.environ.get("TVM_NA_NUM_THREADS")
    if text is None:
        torch = sys.modules.get("torch")
        return available_cores() if torch is None else torch.get_num_threads()
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"TVM_NA_NUM_THREADS: required a positive integer, got {text!r}")
    return int(text)


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_dir() -> Path:
    """The folder of compiled kernels (it may not exist yet)."""
    text = os.environ.get("TVM_NA_CACHE_DIR")
    if text:
        return Path(text).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("tvm_na", appauthor=False)


def target_name() -> str:
    """The name of the target that kernels are built for."""
    return os.environ.get("TVM_NA_TARGET", "native")


def records_mode() -> str:
    """Which tuning records count: all, user, shipped or off; ValueError for anything else in TVM_NA_RECORDS."""
    return check_records_mode("TVM_NA_RECORDS", os.environ.get("TVM_NA_RECORDS", "all"))


def check_records_mode(argument: str, mode: str) -> str:
    """``mode``, which must be one of :data:`RECORDS_MODES`; ValueError otherwise."""
    if mode not in RECORDS_MODES:
        raise ValueError(f"{argument}: required one of {', '.join(RECORDS_MODES)}, got {mode!r}")
    return mode


def records_dir() -> Path:
    """The folder of the user's tuning records, in which each target has one (it may not exist yet)."""
    text = os.environ.get("TVM_NA_RECORDS_DIR")
    if text:
        return Path(text).expanduser()
    import platformdirs

    return platformdirs.user_data_path("tvm_na", appauthor=False) / "records"


def describe() -> list[tuple[str, str, str]]:
    """(name, value in force, meaning) of each variable."""
    variables: dict[str, tuple[object, str]] = {
        "TVM_NA_NUM_THREADS": (num_threads(), "threads of a CPU kernel (default: PyTorch's number, all cores)"),
        "TVM_NA_CACHE_DIR": (cache_dir(), "folder of compiled kernels (default: the user's cache folder)"),
        "TVM_NA_TARGET": (
            target_name(),
            "target of kernels for CPUs, or of those for GPUs (default: what this machine has)",
        ),
        "TVM_NA_RECORDS": (records_mode(), "tuning records that count: all, user, shipped or off (default: all)"),
        "TVM_NA_RECORDS_DIR": (records_dir(), "folder of the user's tuning records (default: the user's data folder)"),
    }
    return [(name, str(value), meaning) for name, (value, meaning) in variables.items()]
