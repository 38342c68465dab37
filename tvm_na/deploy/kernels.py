"""The schedule of an artifact's kernel, in whichever format."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tvm_na.jit import build
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.dense import DenseProblem
from tvm_na.records.select import Selection
from tvm_na.targets.target import NATarget

R = TypeVar("R")


def with_schedule(
    problem: NAProblem | DenseProblem, target: NATarget, records: str | None, use: Callable[[Selection], R]
) -> R:
    """What ``use`` makes of the best schedule that applies to a problem.

    Raises:
        NotImplementedError: the problem has no kernel on the target.
    """
    if not build.is_supported(problem, target):
        raise NotImplementedError(f"no kernel for {problem}: {problem.unsupported(target.kind)}")
    return build.with_a_schedule(problem, target, records, use)


def require_a_sample(largest_batch: int, kernel: object) -> None:
    """ValueError if a kernel cannot compute a single sample."""
    if largest_batch == 0:
        raise ValueError(f"model: required fewer than 2^31 elements per sample, got {kernel}")
