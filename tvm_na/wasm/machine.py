"""A module of :mod:`.link` in wasmtime, on one thread."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_na.wasm.layout import ANY_BYTES
from tvm_na.wasm.link import PREFIX

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_PAGE = 1 << 16
#: Pages of the largest memory that 32 bits reach.
MOST_PAGES = 1 << 16


def is_there() -> bool:
    """Whether there is something to run WebAssembly in."""
    return importlib.util.find_spec("wasmtime") is not None


def require() -> None:
    """RuntimeError if there is nothing to run WebAssembly in."""
    if not is_there():
        raise RuntimeError("to run WebAssembly: required the package wasmtime (pip install 'tvm_na[wasm]'), found none")


class Machine:
    """A module, its memory, and calls of its functions.

    Attributes:
        size: Bytes of the memory as it is now.
    """

    def __init__(self, file: Path, most_pages: int = MOST_PAGES) -> None:
        """Compile the module in ``file``; its memory grows to ``most_pages`` pages of 64 KiB.

        Raises:
            RuntimeError: wasmtime is missing, or cannot load the module, or ``most_pages`` are too few for it.
        """
        require()
        import wasmtime

        config = wasmtime.Config()
        config.wasm_relaxed_simd = True
        self._store = wasmtime.Store(wasmtime.Engine(config))
        try:
            module = wasmtime.Module.from_file(self._store.engine, str(file))
            wanted = module.imports[0].type
            assert isinstance(wanted, wasmtime.MemoryType)
            limits = wasmtime.Limits(wanted.limits.min, most_pages)
            self._memory = wasmtime.Memory(self._store, wasmtime.MemoryType(limits))
            self._exports = wasmtime.Instance(self._store, module, [self._memory]).exports(self._store)
        except wasmtime.WasmtimeError as error:
            raise RuntimeError(f"{file}: required a module that wasmtime can load, got {error}") from error
        self._function("na_start")(self._store)
        self._returned = self.alloc(ANY_BYTES)

    def _function(self, name: str) -> Any:
        return self._exports[name]

    @property
    def size(self) -> int:
        return self._memory.data_len(self._store)

    def alloc(self, size: int) -> int:
        """The address of ``size`` bytes, a multiple of 64; RuntimeError if the memory cannot grow by them."""
        address = 0
        if size < 2**32:  # 32 bits, which wasmtime takes for a signed number
            address = int(self._function("na_alloc")(self._store, size - (size >> 31 << 32))) & 0xFFFFFFFF
        if not address:
            self._refused()
            raise self._too_little(size)
        return address

    def free(self, address: int) -> None:
        """Give back what :meth:`alloc` gave."""
        self._function("na_free")(self._store, address)

    def view(self, address: int, shape: tuple[int, ...], dtype: str) -> Array:
        """Numbers in the memory, writable, until that grows, which :meth:`alloc` and :meth:`call` may do."""
        import numpy as np

        memory = np.ctypeslib.as_array(self._memory.data_ptr(self._store), (self.size,))
        kind = np.dtype("uint16" if dtype == "bfloat16" else dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        return memory[address : address + size].view(kind).reshape(shape)

    def write(self, address: int, content: bytes) -> None:
        """Put bytes into the memory."""
        self._memory.write(self._store, content, address)

    def call(self, name: str, arguments: int, count: int) -> None:
        """Call a function of the name that TVM knows with ``count`` arguments (:func:`.layout.arguments`).

        Raises:
            RuntimeError: it has refused its arguments, the memory cannot grow, or it was stopped by a trap.
        """
        import wasmtime

        try:
            status = self._function(PREFIX + name)(self._store, 0, arguments, count, self._returned)
        except wasmtime.Trap as trap:
            raise RuntimeError(f"{name}: {trap}") from trap
        if status:
            if refused := self._refused():
                raise self._too_little(refused)
            text = self._function("na_error")(self._store)
            said = self._memory.read(self._store, text, text + 512).split(b"\0")[0]
            raise RuntimeError(f"{name}: {said.decode(errors='replace')}")

    def _refused(self) -> int:
        """Bytes of the last request for memory that could not be met since this was last asked."""
        return int(self._function("na_refused")(self._store)) & 0xFFFFFFFF

    def _too_little(self, size: int) -> RuntimeError:
        return RuntimeError(f"memory: required {size} bytes more than the {self.size} that there are, got none")
