"""Checkpoints that are damaged, or made to harm: an error by name in little memory, and the model as it was."""

from __future__ import annotations

import io
import json
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import within
from tests.models.random_models import assert_same, loaded, small
from tests.models.test_checkpoint_hf import hf_state
from tvm_na.models import load_checkpoint

#: Of the address space, what loading a small checkpoint may take beside what the process has.
ROOM = 2 << 30

NORM = "norm.weight"  # [64], and comes late in the model
KEY = "path: required .* at norm.weight, got "


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """A bomb that goes off is a MemoryError, and none of the machine's."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, before[1]))
    try:
        with within(20):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refused(file: Path, says: str, save: Callable[[Path], object], strict: bool = True) -> None:
    """A file that ``save`` writes is a ValueError, and the model is as it was."""
    target = small(2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    save(file)
    with pytest.raises(ValueError, match="^" + says) as caught:
        load_checkpoint(target, file, strict=strict)
    assert len(str(caught.value)) < 1000
    assert_same(target, before)


# --- weights that are no numbers of the model's


def with_norm(value: Any) -> dict[str, Any]:
    return {**small(1).state_dict(), NORM: value}


def one(number: float) -> Tensor:
    weights = torch.ones(64)
    weights[37] = number
    return weights


NO_WEIGHTS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "int64": (lambda: torch.ones(64, dtype=torch.int64), "torch.int64"),
    "bool": (lambda: torch.ones(64, dtype=torch.bool), "torch.bool"),
    "complex64": (lambda: torch.ones(64, dtype=torch.complex64), "torch.complex64"),
    "float8": (lambda: torch.ones(64).to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
    "NaN": (lambda: one(float("nan")), "NaN or infinite"),
    "inf": (lambda: one(float("-inf")), "NaN or infinite"),
    "beyond float32": (lambda: torch.full((64,), 1e300, dtype=torch.float64), "NaN or infinite"),
    "sparse": (lambda: torch.ones(64).to_sparse(), "layout torch.sparse_coo"),
    "sparse rows": (lambda: torch.ones(8, 8).to_sparse_csr(), "layout torch.sparse_csr"),
    "meta": (lambda: torch.ones(64, device="meta"), "without numbers, on the device meta"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(64), 0.1, 0, torch.qint8), "quantized"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]), "nested"),
}


@pytest.mark.filterwarnings("ignore:Sparse|.*nested tensors|.*quantize|TypedStorage")
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_no_weight_is_an_error_by_name(tmp_path: Path, name: str, strict: bool) -> None:
    value, got = NO_WEIGHTS[name]
    refused(tmp_path / "w.pth", f"{KEY}.*{got}", lambda file: torch.save(with_norm(value()), file), strict)


def test_an_index_of_floats_is_an_error(tmp_path: Path) -> None:
    target, state = small(2, "vitrpb"), small(1, "vitrpb").state_dict()
    key = next(key for key in state if key.endswith("relative_position_index"))
    with pytest.raises(ValueError, match=f"^path: required integers at {key}, got torch.float32"):
        loaded(target, {**state, key: state[key].float()}, tmp_path / "w.pth")


def test_parts_of_other_dtypes_are_not_joined(tmp_path: Path) -> None:
    """Hugging Face's query of floats and key of integers would give integers as floats."""
    state = hf_state(small(1).state_dict())
    key = next(key for key in state if key.endswith("attention.self.key.weight"))
    with pytest.raises(ValueError, match="^path: required the keys and shapes.*\nmissing: .*qkv.weight"):
        loaded(small(2), {**state, key: state[key].int()}, tmp_path / "w.bin")


def test_what_is_not_used_may_be_anything_dense(tmp_path: Path) -> None:
    """A head of other classes is dropped, whatever is in it, and so is what stands beside a backbone."""
    source, target = small(1), small(2, num_classes=7)
    state = {**source.state_dict(), "head.weight": torch.full((10, 64), torch.nan)}
    assert loaded(target, state, tmp_path / "w.pth").complete


# --- files that are made to harm


def cyclic() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = {"state_dict": content}
    return content


def expanded(*shape: int) -> Tensor:
    return torch.ones(1).expand(*shape)


def hf_bomb() -> dict[str, Tensor]:
    """Three parts that are joined, of a number each."""
    layer = "nat.encoder.levels.0.layers.0.attention.self."
    return {f"{layer}{part}.weight": expanded(1 << 20, 1 << 16) for part in ("query", "key", "value")}


CONTENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "contains itself": (cyclic, "path: required a file with a dictionary of tensors, got one that contains itself"),
    "a key that contains itself": (
        lambda: {"model": {"a": cyclic()}},
        "path: required a file with a dictionary of tensors by name, got dict at 'a'",
    ),
    "a number for a key": (lambda: {10**300: torch.ones(1)}, "path: required .* got Tensor at a key of class int"),
    "text": (lambda: with_norm("ones"), "path: required .* got str at 'norm.weight'"),
    "a list": (lambda: with_norm([1.0] * 64), "path: required .* got list at 'norm.weight'"),
    "a long key": (lambda: {"k" * 10**6: 1}, "path: required .* got int at 'kkk"),
    "many numbers": (lambda: [1] * 10**5, "path: required a file with a dictionary of tensors, got list"),
    "a number expanded": (lambda: with_norm(expanded(1 << 40)), "path: required weights of .*at norm.weight"),
    "a bias expanded": (
        lambda: {**small(1).state_dict(), "levels.3.blocks.0.attn.rpb": expanded(4, 1 << 20, 1 << 20)},
        "path: required weights of .*at levels.3.blocks.0.attn.rpb",
    ),
    "an index expanded": (
        lambda: {"a.relative_position_index": expanded(1 << 20, 1 << 20)},
        "path: required weights of .*at a.relative_position_index",
    ),
    "parts expanded": (hf_bomb, "path: required weights of .*at nat.encoder"),
    "one storage many times": (
        lambda: {**dict.fromkeys(map(str, range(1000)), torch.ones(1 << 20)), NORM: torch.ones(64)},
        "path: required weights of ",
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_contents_made_to_harm(tmp_path: Path, name: str) -> None:
    content, says = CONTENTS[name]
    refused(tmp_path / "w.pth", says, lambda file: torch.save(content(), file))


def saved() -> dict[str, bytes]:
    """The records of a checkpoint, by their names in its zip."""
    buffer = io.BytesIO()
    torch.save({NORM: torch.ones(64)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(file: Path, compression: int = zipfile.ZIP_STORED, **changes: bytes) -> None:
    """A zip of the records, of which some are others."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in saved().items():
            archive.writestr(name, changes.get(Path(name).stem, content))


def overlapping(file: Path) -> None:
    """Many names for one record of 16 MB."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w/data.pkl", saved()["archive/data.pkl"])
        archive.writestr("w/version", b"3\n")
        archive.writestr("w/data/0", bytes(1 << 24))
        first = archive.infolist()[-1]
        for number in range(1, 500):
            info = zipfile.ZipInfo(f"w/data/{number}")
            info.header_offset, info.file_size, info.compress_size = first.header_offset, 1 << 24, 1 << 24
            info.CRC = first.CRC
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info


def shortened(file: Path) -> None:
    """The directory says that the first record is where no file is: bytes behind it are lost."""
    zipped(file)
    content = file.read_bytes()
    file.write_bytes(content[:100] + content[300:])


def with_size(file: Path, size: int) -> None:
    """The directory says that the first record is unpacked to ``size`` bytes."""
    zipped(file, zipfile.ZIP_DEFLATED)
    content = bytearray(file.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", size)
    file.write_bytes(content)


def claiming(file: Path, elements: int) -> None:
    """The pickle says that a storage of 64 numbers has more."""
    pickled = saved()["archive/data.pkl"]
    # ('storage', FloatStorage, '0', 'cpu', 64), the sizes (64,) and strides (1,): BININT1 is K.
    assert pickled.count(b"K@") == 2
    number = b"J" + struct.pack("<i", elements)
    zipped(file, data=pickled.replace(b"K@", number))


def with_key(instructions: bytes) -> bytes:
    """A pickle of a dictionary with one key, which instructions make of an empty tuple."""
    return b"\x80\x02})" + instructions + b"K\x01s."


# A tuple of the last one, without end; and twice the last one, so that the whole has 2^60.
DEEP, WIDE = with_key(b"\x85q\x00" * 300_000), with_key(b"\x85q\x00h\x00\x86" * 60)
OLD_FORMAT = b"".join(pickle.dumps(start, protocol=2) for start in (0x1950A86A20F9469CFC6C, 1001, {}))


def header_of(length: int, **tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", length or len(text)) + text


BOMBS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "compressed": ("w.pth", lambda f: zipped(f, zipfile.ZIP_DEFLATED)),
    "a compressed pickle of 64 MB": ("w.pth", lambda f: zipped(f, zipfile.ZIP_DEFLATED, data=b"}" * (1 << 26))),
    "a directory that says 4 GB": ("w.pth", lambda f: with_size(f, (1 << 32) - 2)),
    "a large pickle": ("w.pth", lambda f: zipped(f, data=b"}" * ((1 << 26) + 1))),
    "a record before the beginning": ("w.pth", shortened),
    "many names for one record": ("w.pth", overlapping),
    "a storage beyond its record": ("w.pth", lambda f: claiming(f, 1 << 20)),
    "a storage beyond all": ("w.pth", lambda f: claiming(f, 2**31 - 1)),
    "a pickle of nothing but marks": ("w.bin", lambda f: f.write_bytes(b"(" * (1 << 16))),
    "a nested pickle": ("w.pth", lambda f: zipped(f, data=b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")),
    "a key that is a deep tuple": ("w.pth", lambda f: zipped(f, data=DEEP)),
    "a key that is a wide tuple": ("w.pth", lambda f: zipped(f, data=WIDE)),
    "a deep key in the old format": ("w.pth", lambda f: f.write_bytes(OLD_FORMAT + DEEP)),
    "a huge header": ("w.safetensors", lambda f: f.write_bytes(header_of(1 << 40))),
    "a huge shape": (
        "w.safetensors",
        lambda f: f.write_bytes(header_of(0, a={"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]})),
    ),
    "a shape that overflows": (
        "w.safetensors",
        lambda f: f.write_bytes(header_of(0, a={"dtype": "F32", "shape": [1 << 62, 8], "data_offsets": [0, 0]})),
    ),
    "a dtype of nobody": (
        "w.safetensors",
        lambda f: f.write_bytes(header_of(0, a={"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}) + bytes(3)),
    ),
    "a nested header": ("w.safetensors", lambda f: f.write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_files_made_to_harm(tmp_path: Path, name: str) -> None:
    file, save = BOMBS[name]
    refused(tmp_path / file, "path: required a ", save)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_cut_or_flipped_file_never_gives_another_error(tmp_path: Path, legacy: bool) -> None:
    """Damaged anywhere, it is refused by a ValueError; or loaded whole, where the damage hit a number."""
    target, file, buffer = small(2), tmp_path / "w.pth", io.BytesIO()
    torch.save(small(1).state_dict(), buffer, _use_new_zipfile_serialization=not legacy)
    content, refusals = buffer.getvalue(), 0
    for part in range(60):
        place = part * len(content) // 60
        damaged = content[:place] if part % 2 else content[:place] + bytes([content[place] ^ 32]) + content[place + 1 :]
        file.write_bytes(damaged)
        try:
            load_checkpoint(target, file)
        except ValueError as error:
            assert str(error).startswith("path: required ")  # noqa: PT017
            refusals += 1
    assert refusals >= 30
