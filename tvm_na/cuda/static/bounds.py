"""Times that parts of a GPU need for what a kernel does, each if it were alone. Estimates: nothing has run.

A kernel cannot be faster than the largest of them. How much longer it takes is a guess, the same as that of search
spaces that choose defaults (``tvm_na/targets/gpus.py``): a quarter of the others, and more where few warps are there to
hide each other's waiting. Launching, and a last round of blocks that is not full, are counted only as far as the
busiest multiprocessor has more blocks than the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm_na.cuda.static.facts import Facts
from tvm_na.targets.gpus import SCHEDULERS, WARP, Gpu, together, waits

#: What each bound is of, in the order in which they are told.
BOUNDS = ("issue", "tensor", "float", "special", "shared", "L2", "memory")


@dataclass(frozen=True)
class Estimate:
    """What a kernel would take on a GPU, estimated.

    Attributes:
        gpu: Its name.
        bounds: Seconds by what needs them; see :data:`BOUNDS`.
        seconds: Of the kernel.
    """

    gpu: str
    bounds: dict[str, float]
    seconds: float

    @property
    def largest(self) -> str:
        """Of the bounds."""
        return max(self.bounds, key=self.bounds.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {"gpu": self.gpu, "seconds": self.seconds, "largest": self.largest, "bounds": self.bounds}


def estimate(facts: Facts, gpu: Gpu) -> Estimate:
    """What a device function takes.

    Raises:
        ValueError: it was compiled for another architecture, or no multiprocessor can have a block of it.
    """
    if facts.arch != gpu.arch:
        raise ValueError(f"gpu: required one of {facts.arch}, got {gpu.name} ({gpu.arch})")
    if not facts.at_once:
        raise ValueError(f"facts: required a kernel of which a multiprocessor can have a block, got {facts.name}")
    sm, warps = gpu.multiprocessor, -(-facts.blocks // gpu.multiprocessors) * facts.warps
    floats = facts.float32 / sm.float32 + facts.float64 / sm.float64
    cycles = {
        "issue": warps * facts.executed / SCHEDULERS,
        "tensor": warps * facts.products * gpu.product,
        "float": warps * WARP * floats,
        "special": warps * WARP * facts.special / gpu.special,
        "shared": warps * facts.wavefronts,
        "L2": facts.from_cache / (gpu.multiprocessors * gpu.cache_bytes),
    }
    bounds = {name: count / gpu.clock for name, count in cycles.items()} | {"memory": facts.tensors / gpu.memory}
    at_once = min(facts.at_once, -(-facts.blocks // gpu.multiprocessors)) * facts.warps
    return Estimate(gpu.name, bounds, together(list(bounds.values())) * waits(at_once))


def estimate_all(functions: Sequence[Facts], gpu: Gpu) -> Estimate:
    """What device functions take one after the other."""
    each = [estimate(facts, gpu) for facts in functions]
    bounds = {name: sum(one.bounds[name] for one in each) for name in BOUNDS}
    return Estimate(gpu.name, bounds, sum(one.seconds for one in each))
