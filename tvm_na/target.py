"""Targets: the machine a kernel is made for, known without importing TVM.

A CPU is named by its architecture and the level of its vector instructions, not by its model, so that a
kernel or a tuning record serves every CPU that has the same registers.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NATarget:
    """One target.

    Attributes:
        name: Also the name of its folder of tuning records.
        kind: TVM's target kind.
        triple: LLVM's target triple ("" for the machine's own).
        cpu: LLVM's CPU name.
        features: LLVM features on top of ``cpu``.
        vector_bytes: Bytes of a vector register.
        vector_registers: Number of them.
    """

    name: str
    kind: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    vector_bytes: int
    vector_registers: int

    def tvm_target(self, threads: int | None = None) -> Any:
        """The target as TVM takes it (imports TVM), with ``threads`` for its number of cores (default: all)."""
        import tvm

        cores = (os.cpu_count() or 1) if threads is None else threads
        spec: dict[str, Any] = {"kind": self.kind, "mcpu": self.cpu, "num-cores": cores}
        if self.triple:
            spec["mtriple"] = self.triple
        if self.features:
            spec["mattr"] = list(self.features)
        return tvm.target.Target(spec)


# Vectors as long as the registers, also where LLVM would by default prefer halves.
_TARGETS = {
    target.name: target
    for target in (
        NATarget("llvm-x86-avx512", "llvm", "x86_64-unknown-linux-gnu", "x86-64-v4", ("-prefer-256-bit",), 64, 32),
        NATarget("llvm-x86-avx2", "llvm", "x86_64-unknown-linux-gnu", "x86-64-v3", (), 32, 16),
        NATarget("llvm-x86-sse4", "llvm", "x86_64-unknown-linux-gnu", "x86-64-v2", (), 16, 16),
        NATarget("llvm-aarch64-neon", "llvm", "aarch64-unknown-linux-gnu", "generic", ("+neon",), 16, 32),
    )
}

# What /proc/cpuinfo calls the features of the x86-64 levels (psABI).
_X86_LEVELS = (
    ("llvm-x86-avx512", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("llvm-x86-avx2", {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}),
    ("llvm-x86-sse4", {"sse4_2", "popcnt", "ssse3", "cx16"}),
)


def name_of_spec(spec: Mapping[str, Any]) -> str | None:
    """The name of the target that TVM writes as the JSON object ``spec``; None if it is none of the known ones."""
    for target in _TARGETS.values():
        features = tuple(spec.get("mattr") or ())
        if (spec.get("kind"), spec.get("mcpu"), features) == (target.kind, target.cpu, target.features):
            return target.name
    return None


def list_targets() -> list[str]:
    """The names :func:`parse_target` knows."""
    return list(_TARGETS)


def parse_target(name: str) -> NATarget:
    """The target called ``name``, or this machine's for ``native``; ValueError for an unknown name."""
    if name == "native":
        return detect_target()
    if name not in _TARGETS:
        raise ValueError(f"target: required native or one of {', '.join(_TARGETS)}, got {name!r}")
    return _TARGETS[name]


def _cpuinfo(field: str) -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
    except FileNotFoundError:  # not Linux
        return ""


@functools.lru_cache(maxsize=1)
def detect_target() -> NATarget:
    """The target of the CPU this process runs on; RuntimeError where none of the known ones fits."""
    machine, system = platform.machine().lower(), platform.system()
    if machine in ("aarch64", "arm64") and system == "Linux":
        return _TARGETS["llvm-aarch64-neon"]
    if machine in ("x86_64", "amd64"):
        flags = set(_cpuinfo("flags").split())
        for name, needed in _X86_LEVELS:
            if needed <= flags:
                return _TARGETS[name]
    raise RuntimeError(f"target: required an x86-64-v2 or AArch64 CPU under Linux, got {machine} under {system}")


def check_runs_here(target: NATarget) -> None:
    """ValueError if this CPU lacks instructions that kernels for ``target`` use."""
    native = detect_target()
    levels = [name for name, _ in _X86_LEVELS]
    usable = levels[levels.index(native.name) :] if native.name in levels else [native.name]
    if target.name not in usable:
        raise ValueError(f"target: required one that this CPU can run ({', '.join(usable)}), got {target.name}")


def cpu_name() -> str:
    """The CPU's model name, for display."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()
