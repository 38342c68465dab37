"""Targets: the machine a kernel is made for, known without importing TVM.

A CPU is named by its architecture and the level of its vector instructions, a GPU by its architecture, neither by its
model, so that a kernel or a tuning record serves every machine that has the same registers.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tvm_na.targets import cuda_arch


@dataclass(frozen=True)
class NATarget:
    """One target.

    Attributes:
        name: Also the name of its folder of tuning records.
        kind: TVM's target kind: ``llvm`` for CPUs, ``cuda`` for NVIDIA's GPUs.
        triple: LLVM's target triple ("" for the machine's own).
        cpu: LLVM's CPU name.
        features: LLVM features on top of ``cpu``.
        vector_bytes: Bytes of a vector register; on a GPU, of the widest load of a thread.
        vector_registers: Number of them; on a GPU, the registers of 32 bits that a thread can have.
        arch: The GPU's architecture, such as ``sm_90``.
        shared_bytes: Shared memory of a block on a GPU, as it comes.
        max_shared_bytes: Shared memory of a block, if the kernel asks for it.
        registers_per_block: Registers of 32 bits that the threads of a block can have together.
    """

    name: str
    kind: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    vector_bytes: int
    vector_registers: int
    arch: str = ""
    shared_bytes: int = 0
    max_shared_bytes: int = 0
    registers_per_block: int = 0

    @property
    def is_wasm(self) -> bool:
        """Whether it is WebAssembly, which runs in a host (a browser, node, wasmtime) and in no process of ours."""
        return self.triple.startswith("wasm32")

    @property
    def converts_float16(self) -> bool:
        """Whether there are instructions from float16 to float32 and back: F16C or NEON."""
        return self.kind != "llvm" or not (self.cpu == "x86-64-v2" or self.is_wasm)

    @property
    def dot(self) -> str:
        """The instruction for dot products of pairs of bfloat16, "" where there is none."""
        return next((dot for feature, dot in _DOTS.items() if feature in self.features), "")

    def to_dict(self) -> dict[str, Any]:
        """What is known of it: every attribute that its kind of target has."""
        fields = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {field.name: value for field, value in fields if value != field.default}

    def tvm_target(self, threads: int | None = None) -> Any:
        """The target as TVM takes it (imports TVM), with ``threads`` for its number of cores (default: all).

        A GPU's has no number of cores, and for the code that launches kernels any CPU with this machine's instruction
        set: a kernel is the same wherever it is built.
        """
        import tvm

        if self.kind == "cuda":
            of_gpu = {
                "kind": self.kind,
                "arch": self.arch,
                "max_shared_memory_per_block": self.max_shared_bytes,
                "max_threads_per_block": 1024,
                "registers_per_block": self.registers_per_block,
                "thread_warp_size": 32,
            }
            return tvm.target.Target(of_gpu, host=tvm.target.Target(_HOSTS[host_machine()]))
        cores = (os.cpu_count() or 1) if threads is None else threads
        spec: dict[str, Any] = {"kind": self.kind, "mcpu": self.cpu, "num-cores": cores}
        if self.triple:
            spec["mtriple"] = self.triple
        if self.features:
            spec["mattr"] = list(self.features)
        if self.is_wasm:  # of itself TVM would warn that it assumes so
            spec["vector-width"] = 8 * self.vector_bytes
        return tvm.target.Target(spec)


def _cuda_target(arch: cuda_arch.CudaArch) -> NATarget:
    shared = (cuda_arch.STATIC_SHARED_BYTES, arch.max_shared_bytes)
    return NATarget(f"cuda-{arch.name}", "cuda", "", "", (), 16, 255, arch.name, *shared, registers_per_block=65536)


# By the LLVM feature that has them. (Tiles of amx-bf16 are more than an instruction: see docs/design/cpu.md.)
_DOTS = {"+avx512bf16": "vdpbf16ps", "+bf16": "bfdot"}


def _x86(level: str, cpu: str, features: tuple[str, ...], vector_bytes: int, vector_registers: int) -> NATarget:
    triple = "x86_64-unknown-linux-gnu"
    return NATarget(f"llvm-x86-{level}", "llvm", triple, cpu, features, vector_bytes, vector_registers)


def _neon(level: str, *features: str) -> NATarget:
    return NATarget(f"llvm-aarch64-{level}", "llvm", "aarch64-unknown-linux-gnu", "generic", features, 16, 32)


def _wasm(level: str, *features: str) -> NATarget:
    # Hosts have 16 registers on x86-64 and 32 on AArch64. Atomics: the same code serves one thread and several.
    every = ("+simd128", "+bulk-memory", "+atomics", *features)
    return NATarget(f"llvm-wasm32{level}", "llvm", "wasm32-unknown-unknown-wasm", "generic", every, 16, 16)


# Vectors as long as the registers, also where LLVM would by default prefer halves.
_WHOLE = "-prefer-256-bit"

_TARGETS = {
    target.name: target
    for target in (
        _x86("amx-bf16", "x86-64-v4", (_WHOLE, "+avx512bf16", "+amx-tile", "+amx-bf16"), 64, 32),
        _x86("avx512-bf16", "x86-64-v4", (_WHOLE, "+avx512bf16"), 64, 32),
        _x86("avx512", "x86-64-v4", (_WHOLE,), 64, 32),
        _x86("avx2", "x86-64-v3", (), 32, 16),
        _x86("sse4", "x86-64-v2", (), 16, 16),
        _neon("neon-bf16", "+neon", "+bf16"),
        _neon("neon", "+neon"),
        _wasm(""),
        _wasm("-relaxed", "+relaxed-simd"),
        *map(_cuda_target, cuda_arch.ARCHS),
    )
}

# Plain ones, of any age: what launches a kernel needs no vectors.
_HOSTS = {
    "x86-64": {"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu", "mcpu": "x86-64"},
    "aarch64": {"kind": "llvm", "mtriple": "aarch64-unknown-linux-gnu", "mcpu": "generic"},
}
_MACHINES = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "aarch64", "arm64": "aarch64"}

# What /proc/cpuinfo calls the features that a level has and those below it have not, the highest first: of x86-64 the
# levels of its psABI, and what has products of bfloat16.
_LEVELS: dict[str, dict[str, set[str]]] = {
    "x86-64": {
        "llvm-x86-amx-bf16": {"amx_tile", "amx_bf16"},
        "llvm-x86-avx512-bf16": {"avx512_bf16"},
        "llvm-x86-avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
        "llvm-x86-avx2": {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"},
        "llvm-x86-sse4": {"sse4_2", "popcnt", "ssse3", "cx16"},
    },
    "aarch64": {"llvm-aarch64-neon-bf16": {"bf16"}, "llvm-aarch64-neon": {"asimd"}},
}


def name_of_spec(spec: Mapping[str, Any]) -> str | None:
    """The name of the target that TVM writes as the JSON object ``spec``; None if it is none of the known ones."""
    if spec.get("kind") == "cuda":
        name = f"cuda-{spec.get('arch')}"
        return name if name in _TARGETS else None
    for target in _TARGETS.values():
        features = tuple(spec.get("mattr") or ())
        if (spec.get("kind"), spec.get("mcpu"), features) == (target.kind, target.cpu, target.features):
            return target.name
    return None


def other_levels(target: NATarget) -> list[NATarget]:
    """The other levels of a CPU's instruction set; none of a GPU."""
    return [t for t in _TARGETS.values() if target.triple and t.triple == target.triple and t != target]


def alike(target: NATarget, uses_dots: bool) -> list[NATarget]:
    """The targets whose kernels of a problem are those of ``target``, which is the first.

    Levels that differ in products of bfloat16 alone have the same kernels of all problems that have no such products.

    Args:
        target: A target.
        uses_dots: Whether kernels of the problem depend on :attr:`NATarget.dot`.
    """

    def depends_on(t: NATarget) -> tuple[Any, ...]:
        return t.cpu, t.vector_bytes, t.vector_registers, t.dot if uses_dots else ""

    return [target, *(t for t in other_levels(target) if depends_on(t) == depends_on(target))]


def list_targets() -> list[str]:
    """The names :func:`parse_target` knows."""
    return list(_TARGETS)


def parse_target(name: str) -> NATarget:
    """The target called ``name``; ValueError for an unknown name.

    Beside those of :func:`list_targets`, ``native`` is this machine's CPU, ``cuda`` the current CUDA device, and
    ``nvidia/geforce-rtx-4090`` and the like are TVM's names for GPUs (which imports TVM).
    """
    if name == "native":
        return detect_target()
    if name == "cuda":
        return detect_cuda_target()
    if name.startswith("nvidia/"):
        return _TARGETS[f"cuda-{cuda_arch.arch_of_tag(name).name}"]
    if name not in _TARGETS:
        others = "cuda, one of TVM's names for NVIDIA's GPUs (nvidia/...)"
        raise ValueError(f"target: required native or one of {', '.join(_TARGETS)}, or {others}, got {name!r}")
    return _TARGETS[name]


def _cpuinfo(field: str) -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
    except FileNotFoundError:  # not Linux
        return ""


def _features_here() -> set[str]:
    return set((_cpuinfo("flags") or _cpuinfo("Features")).split())


@functools.lru_cache(maxsize=1)
def detect_target() -> NATarget:
    """The target of the CPU this process runs on; RuntimeError where none of the known ones fits."""
    machine, system = platform.machine().lower(), platform.system()
    present = _features_here()
    if machine in ("aarch64", "arm64") and system == "Linux":
        present.add("asimd")  # which each has, whatever an emulator's /proc/cpuinfo says
    for name in _LEVELS.get(_MACHINES.get(machine, ""), {}):
        if present.issuperset(cpu_features(_TARGETS[name])):
            return _TARGETS[name]
    raise RuntimeError(f"target: required an x86-64-v2 or AArch64 CPU under Linux, got {machine} under {system}")


def host_machine() -> str:
    """The instruction set of this machine, ``x86-64`` or ``aarch64``; RuntimeError where it is another."""
    machine = platform.machine().lower()
    if machine not in _MACHINES:
        raise RuntimeError(f"target: required an x86-64 or AArch64 machine, got {machine}")
    return _MACHINES[machine]


def detect_cuda_target(device_index: int | None = None) -> NATarget:
    """The target of a CUDA device (imports PyTorch, not TVM).

    A GPU newer than those known has the target of the newest one whose kernels it can run.

    Args:
        device_index: Which, in PyTorch's order; None for the current one.

    Raises:
        ValueError: there is no such device, or it is too old.
    """
    import torch

    found = cuda_arch.devices()
    if not found:
        raise ValueError("target: required a CUDA device for cuda, got none (PyTorch sees no GPU)")
    index = torch.cuda.current_device() if device_index is None else device_index
    if not 0 <= index < len(found):
        raise ValueError(f"device_index: required one of {len(found)} CUDA devices, got {index}")
    return _TARGETS[f"cuda-{cuda_arch.arch_for(found[index]).name}"]


def check_runs_here(target: NATarget, device_index: int | None = None) -> None:
    """ValueError if this machine cannot run kernels for ``target``.

    Args:
        target: What they are built for.
        device_index: The CUDA device that is to run them; None if any may. It plays no role for a CPU's kernels.
    """
    if target.kind == "cuda":
        _check_devices(target, device_index)
        return
    if target.is_wasm:
        wanted = "one that this CPU can run (WebAssembly runs in a host: tvm-na compile --format wasm)"
        raise ValueError(f"target: required {wanted}, got {target.name}")
    native = detect_target()
    levels = list(_levels_of(native))
    usable = levels[levels.index(native.name) :]
    if target.name not in usable:
        raise ValueError(f"target: required one that this CPU can run ({', '.join(usable)}), got {target.name}")


def cpu_features(target: NATarget) -> tuple[str, ...]:
    """What /proc/cpuinfo must list for a CPU to run code for a CPU's ``target``; nothing for a GPU's."""
    levels = _levels_of(target)
    names = list(levels)
    below = names[names.index(target.name) :] if names else []
    return tuple(sorted(set().union(*(levels[name] for name in below))))


def _levels_of(target: NATarget) -> dict[str, set[str]]:
    """The levels of a CPU's instruction set; none for a GPU."""
    return next((levels for levels in _LEVELS.values() if target.name in levels), {})


def missing_features(features: Iterable[str]) -> tuple[str, ...]:
    """Those of ``features`` (names of :func:`cpu_features`) that the CPU of this machine lacks."""
    present = _features_here()
    return tuple(feature for feature in features if feature not in present)


def _check_devices(target: NATarget, device_index: int | None) -> None:
    found = cuda_arch.devices()
    if device_index is not None:
        found = found[device_index : device_index + 1]
    if not found:
        raise ValueError(f"target: required one that this machine can run, got {target.name} and no such CUDA device")
    usable = {arch.name for arch in cuda_arch.ARCHS for capability in found if cuda_arch.runs_on(arch, capability)}
    if target.arch not in usable:
        names = ", ".join(name for name, other in _TARGETS.items() if other.arch in usable) or "none known"
        where = "the CUDA devices" if device_index is None else f"the device cuda:{device_index}"
        raise ValueError(f"target: required one that {where} can run ({names}), got {target.name}")


def cpu_name() -> str:
    """The CPU's model name, for display."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()
