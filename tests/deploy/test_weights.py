"""Weights beside a library: safetensors that others read, and that is used where it is mapped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from tvm_na.deploy.weights import ALIGNMENT, aligned, empty, map_weights, write_weights

WEIGHTS = {
    "odd": np.arange(13, dtype=np.float32).reshape(13, 1),
    "a.weight": np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32),
    "double": np.linspace(0, 1, 24).reshape(2, 3, 4),
    "indices": np.arange(16, dtype=np.int32),
    "nothing": np.zeros((0, 3), np.float32),
    "mask": np.array([True, False]),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_weights(tmp_path / "weights.safetensors", WEIGHTS)
    return tmp_path / "weights.safetensors"


def test_every_array_comes_back_aligned(file: Path) -> None:
    found = map_weights(file)
    assert found.keys() == WEIGHTS.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, WEIGHTS[name])
        assert array.dtype == WEIGHTS[name].dtype
        assert array.ctypes.data % ALIGNMENT == 0 or array.size == 0


def test_others_read_it(file: Path) -> None:
    with safe_open(file, "numpy") as opened:
        for name in opened.keys():  # noqa: SIM118
            np.testing.assert_array_equal(opened.get_tensor(name), WEIGHTS[name])


def test_large_ones_are_not_copied(tmp_path: Path) -> None:
    """Whatever the sizes of small ones, only these are copied."""
    sizes = {"w": 64, "b": 3, "v": 32, "c": 1}
    write_weights(tmp_path / "w", {name: np.ones(size, np.float32) for name, size in sizes.items()})
    found = map_weights(tmp_path / "w")
    mapped = {name for name, array in found.items() if not _owns(array)}
    assert {"w", "v"} <= mapped


def _owns(array: np.ndarray) -> bool:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.flags.owndata


def of_header(header: object) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 64


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 8,
        of_header(b"not JSON"),
        of_header(b"[" * 200_000),
        of_header([]),
        of_header({"w": {}}),
        of_header({"w": {**ONE, "dtype": ["F32"]}}),
        of_header({"w": {**ONE, "dtype": "F8"}}),
        of_header({"w": {**ONE, "shape": [10**30]}}),
        of_header({"w": {**ONE, "shape": [-1]}}),
        of_header({"w": {**ONE, "shape": [3]}}),
        of_header({"w": {**ONE, "data_offsets": [-8, 0]}}),
        of_header({"w": {**ONE, "data_offsets": [10**30, 10**30 + 8]}}),
        of_header({"w": {**ONE, "data_offsets": [0]}}),
        of_header({"w": {**ONE, "data_offsets": [60, 68]}}),
    ],
    ids=range(16),
)
def test_another_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(ValueError, match="/w: required a safetensors file"):
        map_weights(tmp_path / "w")


def test_a_cut_file_is_an_error(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="required a safetensors file"):
        map_weights(file)


def test_a_dtype_that_kernels_lack_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="required dtype float32.*got complex64 for z"):
        write_weights(tmp_path / "w", {"z": np.ones(2, np.complex64)})


def test_alignment_of_any_array() -> None:
    memory = empty((5, 7), "float32")
    assert memory.ctypes.data % ALIGNMENT == 0 and aligned(memory) is memory
    memory[...] = np.arange(35).reshape(5, 7)
    read_only = memory.copy()
    read_only.flags.writeable = False
    for array in (memory[1:], memory.T, memory[:, ::2], read_only):
        found = aligned(array)
        np.testing.assert_array_equal(found, array)
        assert found.flags.c_contiguous and found.flags.writeable and found.ctypes.data % ALIGNMENT == 0
