"""An artifact of the format ``wasm`` in wasmtime, on one thread: the plan, call by call."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_na.deploy import weights
from tvm_na.deploy.called import ArrayArtifact
from tvm_na.deploy.manifest import MODULE, PLAN, WEIGHTS, Manifest
from tvm_na.wasm.layout import TENSOR_BYTES, Placed, arguments, descriptor_bytes, descriptors
from tvm_na.wasm.machine import MOST_PAGES, Machine

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Prepared:
    """What a batch of a size needs: its tensors, and the calls with the addresses of their arguments.

    Attributes:
        blocks: Addresses to give back.
    """

    batch: int
    tensors: list[Placed]
    calls: list[tuple[str, int, int]]
    blocks: list[int]


class WasmArtifact(ArrayArtifact):
    """An artifact of the format ``wasm``, which takes NumPy arrays and gives them, or tensors where one came.

    It computes in wasmtime on one thread; browsers and node take more (``tvm_na.mjs`` in its folder). The memory of
    WebAssembly has 4 GiB at most: a RuntimeError says where a batch is too large for it.
    """

    def __init__(self, path: Path, manifest: Manifest, most_pages: int = MOST_PAGES) -> None:
        """Load it; its memory grows to ``most_pages`` pages of 64 KiB."""
        super().__init__(path, manifest)
        self._plan = json.loads((path / PLAN).read_text(encoding="utf-8"))
        self._machine = Machine(path / MODULE, most_pages)
        self._weights = self._put_weights(weights.map_weights(path / WEIGHTS))
        self._prepared: _Prepared | None = None

    def _put_weights(self, mapped: dict[str, Array]) -> dict[str, int]:
        """The addresses of weights, which are widened to what the kernels read."""
        found = {}
        for tensor in self._plan["tensors"]:
            name = tensor.get("weight")
            if name is None or name in found:
                continue
            if name not in mapped:
                raise ValueError(f"{self.path / WEIGHTS}: required the weights that the plan names, got no {name}")
            array = mapped[name]
            found[name] = self._machine.alloc(Placed(0, array.shape, tensor["dtype"]).bytes)
            self._machine.view(found[name], array.shape, tensor["dtype"])[...] = array
        return found

    def _run(self, images: Array) -> list[Array]:
        with self._one_at_a_time:
            prepared = self._prepare(len(images))
            self._view(prepared.tensors[0])[...] = images
            for call in prepared.calls:
                self._machine.call(*call)
            return [self._view(prepared.tensors[n]).copy() for n in self._plan["outputs"]]

    def _view(self, tensor: Placed) -> Array:
        return self._machine.view(tensor.address, tensor.shape, tensor.dtype)

    def _prepare(self, batch: int) -> _Prepared:
        """Memory, descriptors and arguments for a batch, those of the last one if it has the same size."""
        if self._prepared is not None and self._prepared.batch == batch:
            return self._prepared
        if self._prepared is not None:
            for block in self._prepared.blocks:
                self._machine.free(block)
            self._prepared = None
        blocks: list[int] = []
        try:
            self._prepared = self._made(batch, blocks)
        except RuntimeError:
            for block in blocks:
                self._machine.free(block)
            raise
        return self._prepared

    def _made(self, batch: int, blocks: list[int]) -> _Prepared:
        def alloc(size: int) -> int:
            blocks.append(self._machine.alloc(size))
            return blocks[-1]

        arena = alloc(batch * self._plan["arena"])
        tensors: list[Placed] = []
        for index, tensor in enumerate(self._plan["tensors"]):
            shape = tuple(batch if n is None else n for n in tensor["shape"])
            if "weight" in tensor:
                address = self._weights[tensor["weight"]]
            elif "offset" in tensor:
                address = arena + batch * tensor["offset"]
            else:
                address = tensors[0].address if index else alloc(Placed(0, shape, tensor["dtype"]).bytes)
            tensors.append(Placed(address, shape, tensor["dtype"]))
        about = alloc(descriptor_bytes(tensors))
        self._machine.write(about, descriptors(tensors, about))
        given = [arguments([about + t * TENSOR_BYTES for t in used]) for _, *used in self._plan["calls"]]
        at = alloc(sum(map(len, given)))
        self._machine.write(at, b"".join(given))
        calls = []
        for (function, *used), bytes_ in zip(self._plan["calls"], given, strict=True):
            calls.append((self._plan["functions"][function], at, len(used)))
            at += len(bytes_)
        return _Prepared(batch, tensors, calls, blocks)
