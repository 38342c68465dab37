"""Checkpoints as files, which may be damaged or made to harm: nothing in them runs, and nothing is unpacked unseen."""

from __future__ import annotations

import argparse
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tvm_na.models.checkpoint_pickle import check_pickle

_TORCH_SUFFIXES = (".pth", ".pt", ".bin")
_ZIP = b"PK\x03\x04"
#: Bytes. What a pickle says besides tensors, which lie beside it, takes up to 64 times as much memory.
_LARGEST_PICKLE = 1 << 26
# A number, a version, the system, the content, and the names of the storages that follow.
_PICKLES_OF_OLD_FORMAT = 5
#: How often over a file may hold the same numbers: weights may be tied, or expanded, but not without end.
_SHARED = 2


def read(path: Any) -> tuple[Any, int]:
    """What a file holds, with tensors on the CPU, and its size in bytes.

    Tensors may still lie in the file: copy them before it changes.

    Raises:
        FileNotFoundError, TypeError, ValueError: as :func:`tvm_na.models.load_checkpoint`.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: required a path, got {type(path).__name__} {path!r}")
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"path: required an existing file, got {file}")
    suffix = file.suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors(file), file.stat().st_size
    if suffix in _TORCH_SUFFIXES:
        return _read_torch(file), file.stat().st_size
    raise ValueError(f"path: required a file ending in {', '.join(_TORCH_SUFFIXES)} or .safetensors, got {file}")


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(file, device="cpu")
    except OSError:
        raise
    except Exception as error:  # the format's own, and others for dtypes that PyTorch lacks
        raise ValueError(f"path: required a safetensors file, got {file}: {_reason(error)}") from error


def _read_torch(file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            is_zip = stream.read(len(_ZIP)) == _ZIP
        if is_zip:
            _check_directory(file)
        else:
            _check_old_format(file)
        # timm's training script saves its arguments next to the weights; a Namespace runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped, a storage that claims more than its record has ends with the file. Read, it goes on in memory.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError:
        raise
    except Exception as error:  # what is damaged makes the unpickler stumble over anything
        raise ValueError(
            "path: required a file that torch.load(weights_only=True) reads, of tensors and no Python objects, "
            f"got {file}: {_reason(error)}"
        ) from error


def _check_directory(file: Path) -> None:
    """ValueError if what a zip holds is more than is there, or compressed: ``torch.save`` compresses nothing.

    And if a pickle in it would crash its reader.
    """
    size = file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        if archive.comment:  # may hide a second directory, which another reader takes for the first
            raise ValueError("its zip has a comment")
        records = archive.infolist()
        _check_records(records, size)
        for record in records:
            if record.filename.endswith(".pkl"):
                check_pickle(io.BytesIO(archive.read(record)))


def _check_records(records: Sequence[zipfile.ZipInfo], size: int) -> None:
    for record in records:
        if record.header_offset < 0:
            raise ValueError(f"{record.filename[:80]} in it would lie before its beginning")
        if record.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{record.filename[:80]} in it is compressed, to be {record.file_size} bytes")
        if record.filename.endswith(".pkl") and record.file_size > _LARGEST_PICKLE:
            raise ValueError(f"{record.filename[:80]} in it has more than {_LARGEST_PICKLE} bytes")
    if (unpacked := sum(record.file_size for record in records)) > size:
        raise ValueError(f"what is in it would take {unpacked} bytes, more than it has")


def _check_old_format(file: Path) -> None:
    """ValueError if a pickle of a file from before PyTorch 1.6 would crash its reader."""
    with file.open("rb") as stream:
        for _ in range(_PICKLES_OF_OLD_FORMAT):
            check_pickle(stream)


def require_tensors(state: Mapping[Any, Any], size: int) -> dict[str, Tensor]:
    """The tensors of a file of ``size`` bytes by name, all dense, with numbers on the CPU.

    Raises:
        ValueError: something else is among them, or they are more than ``size``; names the first one.
    """
    total = 0
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            at = repr(key[:80]) if isinstance(key, str) else f"a key of class {type(key).__name__}"
            came = f"{type(value).__name__} at {at}"
            raise ValueError(f"path: required a file with a dictionary of tensors by name, got {came}")
        if (why := why_not_dense(value)) is not None:
            raise ValueError(f"path: required a dense tensor with numbers at {key[:80]}, got {why}")
        total += value.numel() * value.element_size()
        if total > _SHARED * size:
            wanted = f"weights of at most {_SHARED} times the file's {size} bytes"
            raise ValueError(f"path: required {wanted}, got {total} bytes at {key[:80]}")
    return {key: value.detach() for key, value in state.items()}


def why_not_dense(tensor: Tensor) -> str | None:
    """What a tensor is, in words, if it is not a dense one with numbers; None if it is."""
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        return f"a {type(tensor).__name__}"
    if tensor.layout != torch.strided:
        return f"one with layout {tensor.layout}"
    if tensor.is_nested:
        return "a nested one"
    if tensor.is_quantized:
        return f"a quantized one, of {tensor.dtype}"
    return f"one without numbers, on the device {tensor.device}" if tensor.is_meta else None
