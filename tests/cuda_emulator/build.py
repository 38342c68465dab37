"""The compiler, and the interface to what it makes: the machine, once, and a library for each source."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cuda_emulator.errors import (
    ArithmeticFault,
    Divergence,
    EmulationError,
    MisalignedAccess,
    OutOfBounds,
    UnsupportedCuda,
)
from tests.cuda_emulator.translate import FILE

_HERE = Path(__file__).parent
_HEADER = "cuda_cpu.h"
_MACHINE = ("machine.cpp", "collectives.cpp", "memory.cpp", "faults.cpp", "launch.cpp", "switch.cpp")
_FLAGS = ["-std=c++17", "-O2", "-fPIC", "-march=native", "-fno-strict-aliasing", "-fwrapv", "-fdiagnostics-color=never"]
# Kernels are compiled once and run once, on little data: compiling them is what takes time.
_CHECKS = ["-O0", "-fsanitize=alignment,bounds,integer-divide-by-zero", "-w", "-fmax-errors=5"]
#: The order is that of Fault in machine.h.
FAULTS: tuple[type[EmulationError] | None, ...] = (
    None,
    MisalignedAccess,
    OutOfBounds,
    Divergence,
    UnsupportedCuda,
    ArithmeticFault,
)
COUNTERS = ("mma", "ldmatrix", "shuffles", "votes", "warp_barriers", "barriers", "copies")


class Request(ctypes.Structure):
    """As in scheduler.h."""

    _fields_ = [
        ("kernel", ctypes.c_void_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("late_copies", ctypes.c_uint32),
        ("workers", ctypes.c_uint32),
        ("arguments", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("values", ctypes.POINTER(ctypes.c_void_p)),
        ("bytes", ctypes.POINTER(ctypes.c_int64)),
        ("writable", ctypes.POINTER(ctypes.c_uint8)),
    ]


class Outcome(ctypes.Structure):
    """As in scheduler.h."""

    _fields_ = [
        ("fault", ctypes.c_int32),
        ("line", ctypes.c_int32),
        ("counts", ctypes.c_int64 * len(COUNTERS)),
        ("message", ctypes.c_char * 1536),
    ]


class _DoesNotCompileError(RuntimeError):
    """The compiler's words."""


def compiler() -> str | None:
    """The C++ compiler, None if there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


@functools.cache
def _processor() -> str:
    """What code for this processor must not run on others for."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return platform.machine() + next((x for x in lines if x.startswith(("flags", "Features"))), platform.processor())


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join([_processor(), compiler() or "", *_FLAGS, *_CHECKS, *texts]).encode()).hexdigest()[
        :24
    ]


@functools.cache
def _headers() -> str:
    return "\0".join(path.read_text() for path in sorted(_HERE.glob("*.h")))


def default_folder() -> Path:
    """Where libraries go that have no other place: the user's own below the system's temporary folder."""
    folder = Path(tempfile.gettempdir()) / f"cuda-emulation-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    return folder


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=False)
    if done.returncode:
        raise _DoesNotCompileError(done.stderr)


@contextmanager
def _making(file: Path) -> Iterator[tuple[str, Path]]:
    """The compiler, and where to make ``file``, which appears complete or not at all, whoever else makes it."""
    cxx = compiler()
    if cxx is None:
        raise FileNotFoundError("the emulator needs a C++ compiler: g++, or the one that CXX names")
    own = file.with_name(f"{file.stem}-{uuid.uuid4().hex}")
    own.mkdir()
    try:
        yield cxx, own / file.name
        os.replace(own / file.name, file)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _compile(sources: list[Path], flags: list[str], link: list[str], library: Path) -> None:
    """``library`` of ``sources``."""
    with _making(library) as (cxx, made):
        objects = [str(made.with_name(f"{source.stem}.o")) for source in sources]
        for source, target in zip(sources, objects, strict=True):
            _run([cxx, *_FLAGS, *flags, "-I", str(_HERE), "-c", str(source), "-o", target])
        # Linked without the sanitizers' flags: the machine has the functions that they call.
        _run([cxx, "-shared", "-pthread", "-Wl,-Bsymbolic", *objects, *link, "-o", str(made)])


@functools.cache
def _precompiled(folder: Path) -> Path:
    """A folder with what kernels include, parsed once; a compiler that does not look for it takes the header."""
    header = folder / f"headers-{_digest([_headers()])}" / f"{_HEADER}.gch"
    if not header.exists():
        header.parent.mkdir(exist_ok=True)
        with _making(header) as (cxx, made):
            _run([cxx, *_FLAGS, *_CHECKS, "-x", "c++-header", str(_HERE / _HEADER), "-o", str(made)])
    return header.parent


@functools.cache
def machine(folder: Path) -> tuple[ctypes.CDLL, Path]:
    """The machine that runs kernels, and where it is."""
    sources = [_HERE / name for name in _MACHINE]
    library = folder / f"libmachine-{_digest([_headers(), *(path.read_text() for path in sources)])}.so"
    if not library.exists():
        _compile(sources, ["-O3", "-Wall", "-Wextra", "-pthread"], [], library)
    loaded = ctypes.CDLL(str(library))
    loaded.emulation_launch.argtypes = [ctypes.POINTER(Request), ctypes.POINTER(Outcome)]
    loaded.emulation_launch.restype = None
    return loaded, library


def library_of(code: str, source: str, folder: Path) -> ctypes.CDLL:
    """The kernels of a translated source.

    Raises:
        UnsupportedCuda: If it does not compile, with the compiler's words and the lines of ``source``.
    """
    _, beside = machine(folder)
    library = folder / f"kernel-{_digest([str(beside), _headers(), code])}.so"  # it names the machine by its path
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as made:
            path = Path(made) / "translated.cpp"
            path.write_text(code)
            try:
                _compile([path], [*_CHECKS, "-I", str(_precompiled(folder))], [str(beside)], library)
            except _DoesNotCompileError as error:
                raise UnsupportedCuda(_explain(str(error), source)) from None
    return ctypes.CDLL(str(library))


def _explain(words: str, source: str) -> str:
    """The compiler's errors, each with the line of the source that it is about."""
    lines = source.splitlines()
    explained = []
    for number, message in re.findall(rf"^{re.escape(FILE)}:(\d+):\d+: (?:fatal )?error: (.*)$", words, re.MULTILINE):
        quoted = lines[int(number) - 1].strip() if int(number) <= len(lines) else ""
        explained.append(f"line {number}: {message}\n    {quoted}")
    return "\n".join(explained) or words
