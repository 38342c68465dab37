"""Weights beside a library: a safetensors file whose tensors can be used where it is mapped.

Compiled code wants its tensors at multiples of 64 bytes; the format itself only promises 8.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_na.deploy.schema import is_bytes, mismatch

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

ALIGNMENT = 64  # bytes
_HEADER = {str: {"dtype": str, "shape": [is_bytes], "data_offsets": [is_bytes]}}
# NumPy lacks bfloat16: its bits are in uint16, which is nothing else here.
_DTYPES = {"F32": "float32", "F64": "float64", "F16": "float16", "BF16": "uint16"}
_DTYPES |= {"I32": "int32", "I64": "int64", "I8": "int8", "BOOL": "bool"}


def write_weights(file: Path, weights: Mapping[str, Array]) -> None:
    """Write a safetensors file (https://github.com/huggingface/safetensors, "Format") in an order that aligns tensors.

    Those whose size is a multiple of the alignment come first, so only the last ones, which are small, are not aligned.

    Raises:
        TypeError: an array has another dtype than the format's for floats, int32, int64, int8 and bool; the bits of
            bfloat16 come as uint16.
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header, offset = {}, 0
    ordered = sorted(weights, key=lambda name: (weights[name].nbytes % ALIGNMENT != 0, -weights[name].itemsize, name))
    for name in ordered:
        array = weights[name]
        if str(array.dtype) not in names:
            raise TypeError(f"weights: required dtype {', '.join(names)}, got {array.dtype} for {name}")
        end = offset + array.nbytes
        header[name] = {"dtype": names[str(array.dtype)], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            stream.write(weights[name].tobytes())


def map_weights(file: Path) -> dict[str, Array]:
    """The arrays of a safetensors file by name, each aligned; those that are so in the file are not copied.

    Raises:
        ValueError: it is no such file.
    """
    import numpy as np

    try:
        with file.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)  # NumPy lends out writable memory alone
        length = int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8 : 8 + length])
        header.pop("__metadata__", None)
        if (wrong := mismatch(header, _HEADER)) is not None:
            raise ValueError(f"{wrong} in its header")
        found = {}
        for name, about in header.items():
            begin, end = about["data_offsets"]
            dtype = np.dtype(_DTYPES[about["dtype"]])
            flat = np.frombuffer(mapped, dtype, (end - begin) // dtype.itemsize, 8 + length + begin)
            found[name] = aligned(flat).reshape(about["shape"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{file}: required a safetensors file, got {type(error).__name__}: {error}") from error
    return found


def empty(shape: tuple[int, ...], dtype: str) -> Array:
    """An array whose memory is aligned, of any content."""
    import numpy as np

    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def aligned(array: Array) -> Array:
    """The array, or a copy of it, contiguous, writable (for DLPack) and at a multiple of the alignment."""
    if array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = empty(array.shape, str(array.dtype))
    copy[...] = array
    return copy
