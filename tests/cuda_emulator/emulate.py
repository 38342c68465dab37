"""Runs CUDA C++ on the CPU, for numbers and for missing synchronisation.

    kernels = Emulated(source)
    counts = kernels.launch("add", (4, 1, 1), (128, 1, 1), [a, b, c, 512])

Threads of a block take turns on one CPU, in an order drawn from ``seed``: a warp runs until all of its lanes wait
for the rest of the block, a lane until it waits for its warp. So a thread that does not wait for what it needs finds
it missing, most of the time; try several seeds, and both settings of ``late_copies``. Shared memory is NaN when a
block starts. Races that no order of whole turns shows stay hidden, as do those between blocks, and nothing is said
about time. See ``errors`` for what is refused.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.cuda_emulator import build
from tests.cuda_emulator.errors import LaunchRefused
from tests.cuda_emulator.translate import Kernel, Parameter, translate

_MOST_THREADS = (1024, 1024, 64)
_MOST_BLOCKS = (2**31 - 1, 65535, 65535)
_MOST_SHARED = 227 * 1024
#: Arrays that a pointer of this type may be given, by names of dtypes. NumPy has no bfloat16: its bits will do.
_DTYPES = {
    "half": ("float16",),
    "nv_bfloat16": ("bfloat16", "uint16", "int16"),
    "float": ("float32",),
    "double": ("float64",),
    "int": ("int32", "uint32"),
    "int64_t": ("int64", "uint64"),
}


@dataclass(frozen=True)
class Counts:
    """How often a launch did what: a warp's collectives count once, barriers once a block, copies once a thread."""

    mma: int
    ldmatrix: int
    shuffles: int
    votes: int
    warp_barriers: int
    barriers: int
    copies: int


@dataclass(frozen=True)
class _Array:
    """The memory of a NumPy array or a torch tensor."""

    pointer: int
    bytes: int
    dtype: str
    writable: bool


def _array(value: Any, parameter: Parameter) -> _Array:
    if isinstance(value, np.ndarray):
        if not value.flags.c_contiguous:
            raise LaunchRefused(f"{parameter.name}: an array that is not contiguous")
        found = _Array(value.ctypes.data, value.nbytes, value.dtype.name, value.flags.writeable)
    elif hasattr(value, "data_ptr"):  # a torch tensor, without importing torch
        if value.device.type != "cpu" or not value.is_contiguous():
            raise LaunchRefused(f"{parameter.name}: a tensor that is not contiguous on the CPU")
        size = value.numel() * value.element_size()
        found = _Array(value.data_ptr(), size, str(value.dtype).removeprefix("torch."), True)
    else:
        raise LaunchRefused(f"{parameter.name}: an array for {parameter.type}*, got {type(value).__name__}")
    wanted = _DTYPES.get(parameter.type.removeprefix("__"))
    if wanted is not None and found.dtype not in wanted:
        raise LaunchRefused(f"{parameter.name}: an array of {wanted[0]} for {parameter.type}*, got {found.dtype}")
    return found


def _scalar(value: Any, parameter: Parameter) -> ctypes.c_int64 | ctypes.c_double:
    integers = parameter.integers
    if integers is None:
        return ctypes.c_double(float(value))
    if isinstance(value, float) or int(value) not in integers:
        raise LaunchRefused(f"{parameter.name}: an integer that {parameter.type} can hold, got {value}")
    return ctypes.c_int64(int(value))


def _check_extents(what: str, extents: Sequence[int], most: Sequence[int]) -> None:
    if len(extents) != 3 or not all(1 <= n <= m for n, m in zip(extents, most, strict=True)):
        raise LaunchRefused(f"{what}: three numbers from 1 to {tuple(most)}, got {tuple(extents)}")


def _check_overlap(arrays: Sequence[_Array]) -> None:
    """Each array has a copy of its own: what is written to one would not be seen in another."""
    spans = sorted({(array.pointer, array.pointer + array.bytes) for array in arrays if array.bytes})
    if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
        raise LaunchRefused("arrays that share some of their memory, but not all")


class Emulated:
    """The kernels of a CUDA source, compiled for the CPU.

    Attributes:
        source: The source.
        kernels: Its kernels by name, in the source's order.
    """

    def __init__(self, source: str, *, folder: Path | None = None) -> None:
        """Compiles ``source``, unless that has been done before.

        Args:
            source: CUDA C++ as TVM generates it, with one kernel or several.
            folder: Where compiled code stays; by default the user's own below the system's temporary folder.

        Raises:
            UnsupportedCuda: If there is something in it that the emulator does not know; the message quotes it.
            FileNotFoundError: Without a C++ compiler.
        """
        code, self.kernels = translate(source)
        self.source = source
        folder = build.default_folder() if folder is None else folder.resolve()
        self._library = build.library_of(code, source, folder)
        self._machine, _ = build.machine(folder)

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared_bytes: int = 0,
        seed: int = 0,
        late_copies: bool = True,
    ) -> Counts:
        """Runs a kernel to its end.

        Kernels work on copies of the arrays, so that accesses beside them are noticed; what they wrote is copied
        back if there was no error.

        Args:
            name: The kernel.
            grid: Blocks along x, y and z.
            block: Threads along x, y and z.
            args: For each parameter, a contiguous NumPy array or torch CPU tensor, or a number. The same array may be
                given more than once.
            shared_bytes: Of dynamic shared memory.
            seed: Of the order in which warps and lanes take turns.
            late_copies: ``cp.async`` lands when a wait demands it, which shows waits that are missing. Otherwise it
                lands at once, which shows buffers that are overwritten too early.

        Raises:
            LaunchRefused: For arguments or extents that do not suit the kernel.
            EmulationError: For what the kernel did wrong; see ``errors`` for its kinds.
        """
        kernel = self.kernels.get(name)
        if kernel is None:
            raise LaunchRefused(f"no kernel {name!r}; there are {', '.join(self.kernels)}")
        self._check(kernel, grid, block, args, shared_bytes)
        given = [
            (_array if parameter.pointer else _scalar)(value, parameter)
            for value, parameter in zip(args, kernel.parameters, strict=True)
        ]
        arrays = [value if isinstance(value, _Array) else None for value in given]
        _check_overlap([array for array in arrays if array])
        values = [value.pointer if isinstance(value, _Array) else ctypes.addressof(value) for value in given]
        count = len(given)
        request = build.Request(
            kernel=ctypes.cast(self._entry(name), ctypes.c_void_p).value,
            grid=tuple(grid),
            block=tuple(block),
            shared_bytes=shared_bytes,
            late_copies=late_copies,
            workers=_workers(grid, block),
            arguments=count,
            seed=seed,
            values=(ctypes.c_void_p * count)(*values),
            bytes=(ctypes.c_int64 * count)(*(a.bytes if a else -1 for a in arrays)),
            writable=(ctypes.c_uint8 * count)(*(bool(a and a.writable) for a in arrays)),
        )
        outcome = build.Outcome()
        self._machine.emulation_launch(ctypes.byref(request), ctypes.byref(outcome))
        self._raise(name, outcome)
        return Counts(*outcome.counts)

    def _entry(self, name: str) -> Any:
        return getattr(self._library, f"emulation_kernel_{list(self.kernels).index(name)}")

    @staticmethod
    def _check(kernel: Kernel, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared: int) -> None:
        _check_extents("grid", grid, _MOST_BLOCKS)
        _check_extents("block", block, _MOST_THREADS)
        threads, most = math.prod(block), kernel.most_threads or 1024
        if threads > most:
            raise LaunchRefused(f"{kernel.name}: at most {most} threads a block, by its launch bounds, got {threads}")
        if not 0 <= shared <= _MOST_SHARED:
            raise LaunchRefused(f"shared_bytes: from 0 to {_MOST_SHARED}, got {shared}")
        if len(args) != len(kernel.parameters):
            names = ", ".join(p.name for p in kernel.parameters)
            raise LaunchRefused(f"{kernel.name}: arguments ({names}), got {len(args)}")

    def _raise(self, name: str, outcome: build.Outcome) -> None:
        """The launch's error, if there was one, with its line of the source."""
        error = build.FAULTS[outcome.fault]
        if error is None:
            return
        message = f"{name}: {outcome.message.decode(errors='replace')}"
        lines = self.source.splitlines()
        if 0 < outcome.line <= len(lines):
            message += f"\n    line {outcome.line}: {lines[outcome.line - 1].strip()}"
        raise error(message)


def _workers(grid: Sequence[int], block: Sequence[int]) -> int:
    """How many CPU threads a launch is worth."""
    return min(2, os.cpu_count() or 1) if math.prod(grid) * math.prod(block) > 2048 else 1
