"""CUDA architectures that kernels are built for, and which of them a device or one of TVM's tags means."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Bytes of shared memory that every GPU gives a block without being asked.
STATIC_SHARED_BYTES = 48 * 1024

_KIB = 1024


@dataclass(frozen=True)
class CudaArch:
    """One architecture.

    Attributes:
        name: As NVIDIA's compilers call it, such as ``sm_90``.
        max_shared_bytes: Shared memory that a block may have if the kernel asks for it.
    """

    name: str
    max_shared_bytes: int

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability, such as (9, 0)."""
        return capability_of(self.name)


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". CUDA 13 builds for none older.
ARCHS = (
    CudaArch("sm_75", 64 * _KIB),
    CudaArch("sm_80", 163 * _KIB),
    CudaArch("sm_86", 99 * _KIB),
    CudaArch("sm_89", 99 * _KIB),
    CudaArch("sm_90", 227 * _KIB),
    CudaArch("sm_100", 227 * _KIB),
    CudaArch("sm_120", 99 * _KIB),
)


def capability_of(name: str) -> tuple[int, int]:
    """The compute capability of ``sm_90``, ``sm_90a`` and the like; ValueError for another name."""
    found = re.fullmatch(r"sm_(\d+)(\d)[af]?", name)
    if found is None:
        raise ValueError(f"arch: required sm_ and a compute capability, such as sm_90, got {name!r}")
    return int(found[1]), int(found[2])


def arch_for(capability: tuple[int, int]) -> CudaArch:
    """The newest architecture whose kernels run on a device of this compute capability.

    Machine code runs on devices of the same major number and a minor one not less; PTX, which every kernel carries
    as well, on all newer devices.

    Raises:
        ValueError: if the device is older than all of them.
    """
    older = [arch for arch in ARCHS if arch.capability <= capability]
    if not older:
        oldest = ".".join(map(str, ARCHS[0].capability))
        got = ".".join(map(str, capability))
        raise ValueError(f"capability: required a GPU of compute capability {oldest} or newer, got {got}")
    return older[-1]


def runs_on(arch: CudaArch, capability: tuple[int, int]) -> bool:
    """Whether kernels for ``arch`` are meant for a device of this compute capability.

    Those of another major number run too, from their PTX, but only where there is nothing nearer are they meant.
    """
    if arch.capability > capability:
        return False
    return arch.capability[0] == capability[0] or arch == arch_for(capability)


def arch_of_tag(tag: str) -> CudaArch:
    """The architecture of a GPU by TVM's name for it, such as ``nvidia/geforce-rtx-4090`` (imports TVM).

    Raises:
        ValueError: if TVM has no such tag, or it is no CUDA GPU or one too old.
    """
    import tvm

    spec = (tvm.target.list_tags() or {}).get(tag)
    if spec is None or spec.kind.name != "cuda":
        raise ValueError(f"target: required one of TVM's tags for CUDA GPUs (tvm.target.list_tags()), got {tag!r}")
    return arch_for(capability_of(str(spec.attrs["arch"])))


def devices() -> list[tuple[int, int]]:
    """The compute capabilities of the CUDA devices that PyTorch sees, in PyTorch's order (imports PyTorch)."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
