"""Objects of TVM's for wasm32, with ``runtime.c``, as one module: it imports a memory and nothing else."""

from __future__ import annotations

import functools
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tvm_na.compilers.run import run

#: Bytes of a thread's stack. Kernels keep less than 1 KiB of sums on it.
STACK_BYTES = 1 << 18
#: Bytes that a shared memory grows to at most: hosts set as many addresses aside. One of a single thread has no limit.
MOST_SHARED_BYTES = 1 << 30
#: What TVM puts before the name of a function.
PREFIX = "__tvm_ffi_"

_SOURCE = Path(__file__).with_name("runtime.c")
_FLAGS = "-target wasm32-freestanding -c -O2 -mbulk-memory -matomics -ffreestanding -fno-builtin -fvisibility=hidden"


def require() -> None:
    """RuntimeError if there is nothing to link with."""
    if importlib.util.find_spec("ziglang") is None:
        wanted = "required the package ziglang (pip install 'tvm_na[wasm]')"
        raise RuntimeError(f"to link for wasm32: {wanted}, found none")


def link(functions: Sequence[str], shared: bool, file: str, objects: Sequence[Path]) -> None:
    """Link objects into a module.

    Args:
        functions: Those that hosts call, by the name that TVM knows.
        shared: Whether its memory is one that several threads share.
        file: The module to make.
        objects: The objects.

    Raises:
        RuntimeError: there is no linker, or an object wants a function that nobody has, which it names.
    """
    require()
    with tempfile.TemporaryDirectory(prefix="tvm_na-wasm-") as folder:
        runtime = Path(folder) / "runtime.o"
        runtime.write_bytes(_runtime())
        memory = ["--import-memory"]
        if shared:
            memory += ["--shared-memory", f"--max-memory={MOST_SHARED_BYTES}", "--export=__stack_pointer"]
        exports = [f"--export={PREFIX}{name}" for name in functions]
        words = ["--no-entry", "--strip-all", "--gc-sections", "--stack-first", "-z", f"stack-size={STACK_BYTES}"]
        # From a file: an artifact has hundreds of functions.
        arguments = Path(folder) / "arguments"
        arguments.write_text("\n".join(exports), encoding="utf-8")
        inputs = [f"@{arguments}", *map(str, objects), str(runtime)]
        run([*_zig("wasm-ld"), *words, *memory, *inputs, "-o", file], Path(file), "the linker")


def _zig(*words: str) -> list[str]:
    return [sys.executable, "-m", "ziglang", *words]


@functools.lru_cache(maxsize=1)
def _runtime() -> bytes:
    """The object of ``runtime.c``."""
    with tempfile.TemporaryDirectory(prefix="tvm_na-wasm-") as folder:
        made = Path(folder) / "runtime.o"
        run([*_zig("cc"), *_FLAGS.split(), str(_SOURCE), "-o", str(made)], made, "the C compiler")
        return made.read_bytes()


def pages_of(file: Path) -> int:
    """Pages of 64 KiB that the memory of a module has at first: its host must give so many."""
    content, at = file.read_bytes(), 8  # behind the magic number and the version
    while content[at] != 2:  # the section of imports
        size, at = _number(content, at + 1)
        at += size
    _, at = _number(content, at + 1)
    count, at = _number(content, at)
    assert count == 1, f"{file}: {count} imports"
    for _ in range(2):  # a module's name, and the memory's
        length, at = _number(content, at)
        at += length
    kind, limits = content[at : at + 2]
    assert kind == 2 and limits <= 3, f"{file}: an import of kind {kind}"
    return _number(content, at + 2)[0]


def _number(content: bytes, at: int) -> tuple[int, int]:
    """A number in LEB128 (7 bits in a byte, the lowest first), and what is behind it."""
    value, shift = 0, 0
    while True:
        value |= (content[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if content[at - 1] < 128:
            return value, at
