"""Tensors that say they are on a GPU, for tests of launches without one. Nobody may read them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import prod
from typing import Any

import tvm_ffi

_CUDA, _FLOAT = 2, 2


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_kept: list[Any] = []  # for good: nothing deletes them


class _Producer:
    """What DLPack wants of a tensor."""

    def __init__(self, shape: Sequence[int], device: int, bits: int) -> None:
        strides = [prod(shape[i + 1 :]) for i in range(len(shape))]
        sizes = [(ctypes.c_int64 * len(shape))(*values) for values in (shape, strides)]
        pointers = [ctypes.cast(values, ctypes.POINTER(ctypes.c_int64)) for values in sizes]
        tensor = _DLTensor(0x10000, _CUDA, device, len(shape), _FLOAT, bits, 1, *pointers, 0)
        self.managed = _DLManagedTensor(tensor, None, None)
        self.device = device
        _kept.extend((sizes, self))

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self.device

    def __dlpack__(self, **_: Any) -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.managed), b"dltensor", None)


def cuda_tensor(shape: Sequence[int], device: int, bits: int = 32) -> Any:
    """A tensor of tvm_ffi, of floats of so many bits, on a CUDA device, at an address where nothing is."""
    return tvm_ffi.from_dlpack(_Producer(shape, device, bits))
