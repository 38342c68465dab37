"""Kernels for this machine's CPU, compiled on all cores."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tvm_na import settings
from tvm_na.jit import build
from tvm_na.problems.registry import Problem
from tvm_na.targets.target import detect_target


def compile_all(modules: Iterable[Any]) -> list[Any]:
    """Kernels of scheduled modules."""
    import tvm

    target = detect_target().tvm_target()
    with ThreadPoolExecutor(settings.available_cores()) as pool:
        return list(pool.map(lambda module: tvm.compile(module, target=target)["main"], modules))


def build_all(problems: Iterable[Problem]) -> None:
    """Put the kernels that these problems need on disk."""
    with ThreadPoolExecutor(settings.available_cores()) as pool:
        list(pool.map(lambda problem: build.compile_for(problem, detect_target()), problems))
