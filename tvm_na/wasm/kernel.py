"""A single kernel in wasmtime, called with PyTorch's tensors or NumPy's arrays as a native one is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tvm_na.wasm.layout import TENSOR_BYTES, Placed, arguments, descriptor_bytes, descriptors
from tvm_na.wasm.machine import MOST_PAGES, Machine


class Kernel:
    """The function ``entry`` of a module; ``kernel(*tensors)`` computes in copies of contiguous tensors on the CPU.

    For a clock, :meth:`placed` puts tensors there once, and gives a call that copies nothing.
    """

    def __init__(self, file: Path, entry: str, most_pages: int = MOST_PAGES) -> None:
        self._machine, self._entry = Machine(file, most_pages), entry

    def __call__(self, *tensors: Any) -> None:
        """Compute; every tensor is what the kernel left of it afterwards.

        Raises:
            RuntimeError: the kernel refuses a tensor, or there is too little memory.
        """
        call = self.placed(*tensors)
        try:
            call()
            for tensor, address in zip(tensors, call.addresses, strict=True):
                bits = _bits(tensor)
                bits[...] = self._machine.view(address, bits.shape, str(bits.dtype))
        finally:
            call.free()

    def placed(self, *tensors: Any) -> Call:
        """A call of the kernel with copies of the tensors, as often as it is wanted."""
        return Call(self._machine, self._entry, tensors)


class Call:
    """A call of a kernel with tensors in its memory, at ``addresses``; each time it computes anew."""

    def __init__(self, machine: Machine, entry: str, tensors: tuple[Any, ...]) -> None:
        self._machine, self._entry = machine, entry
        self.addresses = [machine.alloc(_bits(tensor).nbytes) for tensor in tensors]
        placed = [
            Placed(address, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for address, tensor in zip(self.addresses, tensors, strict=True)
        ]
        for place, tensor in zip(placed, tensors, strict=True):
            bits = _bits(tensor)
            machine.view(place.address, bits.shape, str(bits.dtype))[...] = bits
        self._about = machine.alloc(descriptor_bytes(placed))
        machine.write(self._about, descriptors(placed, self._about))
        given = arguments([self._about + n * TENSOR_BYTES for n in range(len(placed))])
        self._arguments = machine.alloc(len(given))
        machine.write(self._arguments, given)

    def __call__(self) -> None:
        self._machine.call(self._entry, self._arguments, len(self.addresses))

    def free(self) -> None:
        """Give its memory back."""
        for address in (*self.addresses, self._about, self._arguments):
            self._machine.free(address)


def _bits(tensor: Any) -> Any:
    """A tensor or array as an array that shares its memory; bfloat16, which NumPy lacks, as uint16."""
    if not hasattr(tensor, "detach"):
        return tensor
    if str(tensor.dtype) == "torch.bfloat16":
        import torch

        return tensor.detach().view(torch.uint16).numpy()
    return tensor.detach().numpy()
