"""Digests of what a kernel depends on: versions, expressions, schedules, compilers. TVM is not imported."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import tvm_na
from tvm_na.problems.registry import Problem
from tvm_na.targets.target import NATarget, host_machine

_HERE = Path(__file__).parent


def digest_of(*parts: Any) -> str:
    """A hex digest of JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@functools.lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of what a kernel is compiled with and runs on."""
    return {
        "apache-tvm": metadata.version("apache-tvm"),
        "apache-tvm-ffi": metadata.version("apache-tvm-ffi"),
        "tvm_na": tvm_na.__version__,
    }


def kernel_versions(target: NATarget) -> dict[str, str]:
    """:func:`versions`, and for a GPU also our own passes, the compiler's flags, and the machine that is to launch it.

    Not which compiler of CUDA is there, nor which CPU: a kernel of another one is as right, so one that was built
    elsewhere is found where nothing is there to build with.
    """
    if target.is_wasm:
        return {**versions(), "runtime": digest_of((_HERE / "wasm" / "runtime.c").read_text(encoding="utf-8"))}
    if target.kind != "cuda":
        return versions()
    from tvm_na.cuda import toolchain

    flags = " ".join(toolchain.FLAGS)
    return {**versions(), "passes": _passes_digest(), "flags": flags, "machine": host_machine()}


@functools.lru_cache(maxsize=1)
def _passes_digest() -> str:
    """A digest of what we do to scheduled functions before and while CUDA is made of them, and of the rates that
    defaults are chosen by."""
    files = (
        "cuda/async_copies.py",
        "cuda/late.py",
        "cuda/lowering.py",
        "cuda/names.py",
        "cuda/workarounds.py",
        "targets/gpus.py",
    )
    return digest_of(*((_HERE / name).read_text(encoding="utf-8") for name in files))


@functools.lru_cache(maxsize=1)
def _source_digest() -> str:
    """A digest of the expressions and schedules, so that a change to one makes its kernels anew."""
    digest = hashlib.sha256()
    for package in ("tvm_na.te", "tvm_na.schedules"):
        spec = importlib.util.find_spec(package)  # found, not imported: that would cost a warm start 20 ms
        assert spec is not None and spec.submodule_search_locations is not None
        for file in sorted(Path(spec.submodule_search_locations[0]).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def context_digest(target: NATarget) -> str:
    """A digest of all that a kernel depends on beside its problem and the record it is made with."""
    return digest_of(target.to_dict(), kernel_versions(target), _source_digest())


def request_digest(problem: Problem, target: NATarget, schedule: str = "default") -> str:
    """The name of a request; ``schedule`` is the key of what :mod:`tvm_na.records.select` chose."""
    return digest_of(problem.to_json(), context_digest(target), schedule)
