"""What GPUs can do in a second: the rates that estimates are made with, of search spaces and of the static model alike.

Data sheets have multiprocessors, clocks, tensor cores, and memory. What a multiprocessor gets from the second cache,
and when, no data sheet says: these numbers are assumed, and marked so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tvm_na.targets.target import NATarget

_KIB = 1024
WARP = 32
#: Of a multiprocessor, on every architecture that kernels are built for.
SCHEDULERS, REGISTERS = 4, 65536
#: Registers come to a warp in units of so many.
REGISTERS_AT_ONCE = 256
#: Bytes that a cycle moves to or from shared memory: 32 banks of 4.
SHARED_BYTES_OF_CYCLE = 128
#: Of what is not the largest bound, so much is not hidden behind it; and so many warps hide each other's latencies.
#: Assumed.
PARTLY_HIDDEN, HIDING = 0.25, 8


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks on a multiprocessor share.

    Attributes:
        warps: At most.
        blocks: At most.
        shared_bytes: Of all blocks, with ``reserved`` for each.
        reserved: Shared memory of a block that the system takes.
        float32: Multiply-adds of a cycle.
        float64: The same.
    """

    warps: int
    blocks: int
    shared_bytes: int
    reserved: int
    float32: int
    float64: int


# CUDA C++ Programming Guide: "Technical Specifications per Compute Capability" and "Arithmetic Instructions".
MULTIPROCESSORS = {
    "sm_75": Multiprocessor(32, 16, 64 * _KIB, 0, 64, 2),
    "sm_80": Multiprocessor(64, 32, 164 * _KIB, _KIB, 64, 32),
    "sm_86": Multiprocessor(48, 16, 100 * _KIB, _KIB, 128, 2),
    "sm_89": Multiprocessor(48, 24, 100 * _KIB, _KIB, 128, 2),
    "sm_90": Multiprocessor(64, 32, 228 * _KIB, _KIB, 128, 64),
    "sm_100": Multiprocessor(64, 32, 228 * _KIB, _KIB, 128, 64),
    "sm_120": Multiprocessor(48, 24, 100 * _KIB, _KIB, 128, 2),
}


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: As people call it.
        arch: Such as ``sm_90``.
        multiprocessors: How many.
        clock: Hz, under load.
        product: Cycles of a multiprocessor for a product of 16 x 8 x 16 numbers of 16 bits (``mma.sync``).
        special: Exponentials, reciprocals and the like of a cycle and multiprocessor.
        cache_bytes: From the second cache, of a cycle and multiprocessor. Assumed.
        latency: Cycles until they come. Assumed.
        memory: Bytes of a second.
    """

    name: str
    arch: str
    multiprocessors: int
    clock: float
    product: float
    special: int
    cache_bytes: float
    latency: int
    memory: float

    @property
    def multiprocessor(self) -> Multiprocessor:
        """What blocks share."""
        return MULTIPROCESSORS[self.arch]


# A100 and H100: NVIDIA's white papers of both architectures; H200: its data sheet. ``mma.sync`` reaches 62 % of what
# an H100's tensor cores do: "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", arXiv 2402.13499.
GPUS = (
    Gpu("A100", "sm_80", 108, 1.41e9, 2.0, 16, 24, 800, 2.039e12),
    Gpu("H100", "sm_90", 132, 1.83e9, 1.6, 16, 24, 800, 3.35e12),
    Gpu("H200", "sm_90", 132, 1.83e9, 1.6, 16, 24, 800, 4.8e12),
)


def gpu_of(target: NATarget, name: str | None = None) -> Gpu:
    """The GPU of that name, or the first of the target's architecture, that rates are known of.

    Args:
        target: A GPU's.
        name: Such as ``H200``; PyTorch's names, such as ``NVIDIA H200``, do as well.

    Raises:
        ValueError: there is none, or it has another architecture.
    """
    there = [gpu for gpu in GPUS if gpu.arch == target.arch]
    found = [gpu for gpu in there if name is None or gpu.name.lower() in re.split(r"[ -]", name.lower())]
    if not found:
        known = ", ".join(f"{gpu.name} ({gpu.arch})" for gpu in GPUS)
        raise ValueError(f"gpu: required one of {known}, of the target's architecture, got {name or target.name}")
    return found[0]


def like(target: NATarget) -> Gpu:
    """A GPU to choose sizes by: the first of the target's architecture, an A100 where none is in the table."""
    return next((gpu for gpu in GPUS if gpu.arch == target.arch), GPUS[0])


def blocks_at_once(arch: str, warps: int, registers: int, shared_bytes: int) -> int:
    """Blocks on a multiprocessor, by the registers of a thread, warps and shared memory of a block; 0 if none fits."""
    sm = MULTIPROCESSORS[arch]
    of_warp = max(1, -(-registers * WARP // REGISTERS_AT_ONCE)) * REGISTERS_AT_ONCE
    by_registers = REGISTERS // SCHEDULERS // of_warp * SCHEDULERS // warps
    by_shared = sm.shared_bytes // (shared_bytes + sm.reserved) if shared_bytes + sm.reserved else sm.blocks
    return min(by_registers, by_shared, sm.warps // warps, sm.blocks)


def together(needs: Sequence[float]) -> float:
    """What takes ``needs`` at once, each on a part of the machine of its own."""
    return max(needs) + PARTLY_HIDDEN * (sum(needs) - max(needs))


def waits(warps: int) -> float:
    """How many times as long it takes where so few warps are on a multiprocessor."""
    return 1 + max(0, HIDING - warps) / (2 * HIDING)
