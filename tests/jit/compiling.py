"""Kernels for this machine's CPU, compiled on all cores."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tvm_na import settings
from tvm_na.targets.target import detect_target


def compile_all(modules: Iterable[Any]) -> list[Any]:
    """Kernels of scheduled modules."""
    import tvm

    target = detect_target().tvm_target()
    with ThreadPoolExecutor(settings.available_cores()) as pool:
        return list(pool.map(lambda module: tvm.compile(module, target=target)["main"], modules))
