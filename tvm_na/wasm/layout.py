"""How 32-bit kernels are handed tensors: the structures of DLPack and TVM FFI, as bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

#: Bytes of a DLTensor, and of a TVMFFIAny, which points to one.
TENSOR_BYTES, ANY_BYTES = 40, 16
_CPU, _POINTER_TO_TENSOR = 1, 7
#: DLPack's code and the bits of a dtype.
DTYPES = {
    "float32": (2, 32),
    "float64": (2, 64),
    "float16": (2, 16),
    "bfloat16": (4, 16),
    "int8": (0, 8),
    "int32": (0, 32),
    "int64": (0, 64),
    "bool": (6, 8),
}


@dataclass(frozen=True)
class Placed:
    """A contiguous tensor in a module's memory.

    Attributes:
        address: Of its first element, a multiple of 64.
        shape: Its sizes.
        dtype: A name of :data:`DTYPES`.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * DTYPES[self.dtype][1] // 8


def descriptors(tensors: Sequence[Placed], address: int) -> bytes:
    """DLTensors at ``address``, the n-th at ``n * TENSOR_BYTES``, and behind them their shapes."""
    shapes_at, shapes, found = address + len(tensors) * TENSOR_BYTES, bytearray(), bytearray()
    for tensor in tensors:
        code, bits = DTYPES[tensor.dtype]
        at = shapes_at + len(shapes)
        found += struct.pack("<IiiiBBHIIIQ", tensor.address, _CPU, 0, len(tensor.shape), code, bits, 1, at, 0, 0, 0)
        shapes += struct.pack(f"<{len(tensor.shape)}q", *tensor.shape)
    return bytes(found + shapes)


def descriptor_bytes(tensors: Sequence[Placed]) -> int:
    """How long :func:`descriptors` are."""
    return sum(TENSOR_BYTES + 8 * len(tensor.shape) for tensor in tensors)


def arguments(addresses: Sequence[int]) -> bytes:
    """Arguments of a function: DLTensors by their addresses."""
    return b"".join(struct.pack("<iiQ", _POINTER_TO_TENSOR, 0, address) for address in addresses)
