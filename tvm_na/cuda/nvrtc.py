"""Compiling CUDA C++ in this process, with NVRTC through the package cuda-bindings."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What TVM's code includes, and the packages that have it where there is no toolkit.
_HEADERS = {
    "cuda_fp16.h": "nvidia-cuda-runtime",
    "cuda/std/cstdint": "nvidia-cuda-cccl",
    "nv/target": "nvidia-cuda-cccl",
    "crt/host_defines.h": "nvidia-cuda-crt",
}


@functools.lru_cache(maxsize=1)
def _version() -> str | Exception:
    try:
        from cuda.bindings import nvrtc

        error, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as missing:  # the package, or the library that it loads
        return missing
    return f"{major}.{minor}" if int(error) == 0 else RuntimeError(f"nvrtcVersion: {error}")


def version() -> str:
    """The version of NVRTC, such as ``13.0``; RuntimeError where it is not installed."""
    found = _version()
    if isinstance(found, Exception):
        raise RuntimeError(f"required NVRTC (the packages cuda-bindings and nvidia-cuda-nvrtc), got: {found}")
    return found


def include_dirs(homes: Sequence[Path]) -> tuple[str, ...]:
    """The folders of CUDA's headers below ``homes``.

    Raises:
        RuntimeError: names the headers that are in none of them, and the packages that have them.
    """
    folders = [home / "include" for home in homes] + [home / "include" / "cccl" for home in homes]
    used = [folder for folder in folders if any((folder / header).is_file() for header in _HEADERS)]
    missing = {h: p for h, p in _HEADERS.items() if not any((folder / h).is_file() for folder in used)}
    if missing:
        packages = ", ".join(sorted(set(missing.values())))
        raise RuntimeError(f"required CUDA's headers for NVRTC, found no {', '.join(missing)} (packages {packages})")
    return tuple(map(str, dict.fromkeys(used)))


def compile(source: str, arch: str, flags: Sequence[str], include_dirs: Sequence[str]) -> tuple[bytes, bytes, str]:
    """Machine code (cubin), PTX, and what NVRTC said.

    Args:
        source: CUDA C++, as TVM writes it.
        arch: Such as ``sm_90``.
        flags: Further options.
        include_dirs: From :func:`include_dirs`.

    Raises:
        RuntimeError: with NVRTC's messages, if it fails.
    """
    from cuda.bindings import nvrtc

    def call(name: str, *args: Any) -> Any:
        error, *values = getattr(nvrtc, name)(*args)
        if int(error):
            raise RuntimeError(f"{name} failed: {error}")
        return values[0] if values else None

    def text(kind: str) -> bytes:
        data = bytearray(call(f"nvrtcGet{kind}Size", program))
        call(f"nvrtcGet{kind}", program, data)
        return bytes(data)

    options = [f"--gpu-architecture={arch}", *flags, "-default-device", "--device-int128"]
    options += [f"-I{folder}" for folder in include_dirs]
    program = call("nvrtcCreateProgram", source.encode(), b"kernel.cu", 0, None, None)
    try:
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if int(error):
            message = text("ProgramLog").decode(errors="replace").rstrip("\0")
            raise RuntimeError(f"NVRTC failed ({error}) with {' '.join(options)}\n{message}")
        return text("CUBIN"), text("PTX").rstrip(b"\0"), text("ProgramLog").decode(errors="replace").rstrip("\0")
    finally:
        nvrtc.nvrtcDestroyProgram(program)
