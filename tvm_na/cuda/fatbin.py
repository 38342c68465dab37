"""What a kernel's device code consists of: machine code (cubin), PTX, or a fatbin that holds several of them."""

from __future__ import annotations

import functools
import struct
import tempfile
from pathlib import Path
from typing import NamedTuple

from tvm_na.compilers.run import run
from tvm_na.cuda.toolkit import tool

_MAGIC = 0xBA55ED50
_HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of all entries
_ENTRY = struct.Struct("<HHIQIIHHI")  # kind, version, bytes of this header, bytes of the rest, 5 more, architecture
_KINDS = {1: "ptx", 2: "cubin"}
_ELF = b"\x7fELF"


class Part(NamedTuple):
    """One version of the code.

    Attributes:
        kind: ``cubin`` or ``ptx`` (or "kind 16" and the like for others).
        arch: Such as ``sm_90``; "" where only the code itself knows.
    """

    kind: str
    arch: str


def parts_of(image: bytes) -> list[Part]:
    """What an image holds that the CUDA driver takes: a fatbin, a cubin or PTX.

    Raises:
        ValueError: it is none of these, or torn.
    """
    if image.startswith(_ELF):
        return [Part("cubin", "")]
    if image.lstrip()[:2] == b"//":  # PTX begins with a comment about the compiler
        return [Part("ptx", "")]
    if len(image) < _HEADER.size or _HEADER.unpack_from(image)[0] != _MAGIC:
        raise ValueError(f"image: required a fatbin, a cubin or PTX, got {len(image)} bytes of something else")
    _, _, at, size = _HEADER.unpack_from(image)
    end, found = at + size, []
    if end > len(image):
        raise ValueError(f"image: required a fatbin of {end} bytes, got {len(image)}")
    while at + _ENTRY.size <= end:
        kind, _, header, rest, *_, arch = _ENTRY.unpack_from(image, at)
        found.append(Part(_KINDS.get(kind, f"kind {kind}"), f"sm_{arch}"))
        at += header + rest
    return found


def require_cubin(image: bytes, arch: str) -> None:
    """RuntimeError unless ``image`` holds machine code for ``arch``: PTX alone would be compiled in every process."""
    parts = parts_of(image)
    if not any(part.kind == "cubin" and part.arch in ("", arch) for part in parts):
        got = ", ".join(f"{part.kind} {part.arch}" for part in parts) or "nothing"
        raise RuntimeError(f"the CUDA compiler: required machine code for {arch}, got {got}")


@functools.lru_cache(maxsize=1)
def _joiner() -> str | None:
    """What makes a fatbin of parts: ``nvfatbin`` of cuda-bindings, the path of CUDA's ``fatbinary``, or nothing."""
    try:
        from cuda.bindings import nvfatbin

        nvfatbin.version()
    except (ImportError, RuntimeError):  # no such module, or not the library behind it
        return tool("fatbinary")
    return "nvfatbin"


def join(cubin: bytes, ptx: bytes, arch: str) -> bytes | None:
    """A fatbin of both, whose PTX lets newer devices run it too; None where nothing is there to make one with."""
    joiner = _joiner()
    if joiner is None:
        return None
    number = arch.removeprefix("sm_")
    return _by_library(cubin, ptx, number) if joiner == "nvfatbin" else _by_tool(joiner, cubin, ptx, number)


def _by_library(cubin: bytes, ptx: bytes, number: str) -> bytes:
    from cuda.bindings import nvfatbin

    handle = nvfatbin.create([], 0)
    try:
        nvfatbin.add_cubin(handle, cubin, len(cubin), number, "kernel")
        nvfatbin.add_ptx(handle, ptx, len(ptx), number, "kernel", "")
        image = bytearray(nvfatbin.size(handle))
        nvfatbin.get(handle, image)
    finally:
        nvfatbin.destroy(handle)
    return bytes(image)


def _by_tool(fatbinary: str, cubin: bytes, ptx: bytes, number: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="tvm_na-") as name:
        folder = Path(name)
        (folder / "kernel.cubin").write_bytes(cubin)
        (folder / "kernel.ptx").write_bytes(ptx)
        parts = [
            f"--image3=kind=elf,sm={number},file={folder / 'kernel.cubin'}",
            f"--image3=kind=ptx,sm={number},file={folder / 'kernel.ptx'}",
        ]
        command = [fatbinary, "-64", f"--create={folder / 'kernel.fatbin'}", *parts]
        run(command, folder / "kernel.fatbin", "fatbinary")
        return (folder / "kernel.fatbin").read_bytes()
