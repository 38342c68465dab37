"""An artifact's manifest: whatever is damaged or does not fit the machine is a clear error, and nothing is loaded.

The artifact is a folder of made-up files: none of them may be looked at but for its digest.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import tvm_na
from tvm_na.deploy import manifest
from tvm_na.deploy.artifact import TorchArtifact
from tvm_na.targets.target import cpu_features, detect_target

MODEL_LIBRARY = "model/data/aotinductor/model/abc.wrapper.so"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact that is whole, and whose code cannot run."""
    path = tmp_path / "made-up.artifact"
    (path / MODEL_LIBRARY).parent.mkdir(parents=True)
    (path / MODEL_LIBRARY).write_bytes(b"model" * 100)
    (path / "model" / "byteorder").write_bytes(b"little")
    (path / "operators.so").write_bytes(b"operators" * 100)
    spec = manifest.TensorSpec((None, 3, 32, 32), "float32")
    target = detect_target()
    found = manifest.Manifest(
        model={"name": "made-up", "parameters": 1, "weights": None},
        target={
            "name": target.name,
            "system": platform.system(),
            "architecture": platform.machine(),
            "cpu_features": list(cpu_features(target)),
        },
        requires={"torch": manifest.torch_interface(metadata.version("torch"))},
        built_with={},
        problems=[],
        input=spec,
        outputs=[manifest.TensorSpec((None, 10), "float32")],
        returns_list=False,
        preprocessing=None,
        kind="aoti",
        code={"namespace": "tvm_na_0"},
        check={},
        files=manifest.describe_files(path),
    )
    manifest.write_manifest(path, found)
    assert manifest.read_manifest(path) == found
    manifest.verify(path, found)
    monkeypatch.setattr(TorchArtifact, "__init__", lambda *_: pytest.fail("a damaged artifact was loaded"))
    return path


Damage = Callable[[Path], object]


def edited(**changes: Any) -> Damage:
    """Other content of the manifest, with the digest that belongs to it."""

    def damage(folder: Path) -> None:
        file = folder / "manifest.json"
        content = json.loads(file.read_text())
        content.pop("digest")
        for name, value in changes.items():
            part = content
            *parents, last = name.split("__")
            for parent in parents:
                part = part[parent]
            part[last] = value
        file.write_text(json.dumps({**content, "digest": manifest._digest_of(content)}))

    return damage


def rewritten(change: Callable[[bytes], bytes], name: str = "manifest.json") -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def flipped(at: float) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        place = min(int(at * len(content)), len(content) - 1)
        return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]

    return change


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def swap(folder: Path) -> None:
    one, other = folder / "operators.so", folder / MODEL_LIBRARY
    one.rename(folder / "x")
    other.rename(one)
    (folder / "x").rename(other)


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"PK")


DAMAGES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), ("required a folder with a manifest.json",)),
    "a file in its place": (a_file, ("required a folder with a manifest.json",)),
    "manifest cut": (rewritten(cut), ("manifest.json: required JSON",)),
    "manifest empty": (rewritten(lambda _: b""), ("manifest.json: required JSON",)),
    "manifest not text": (rewritten(lambda c: b"\xff" + c), ("manifest.json: required JSON",)),
    "manifest a list": (rewritten(lambda c: b"[" + c + b"]"), ("manifest.json: required a JSON object",)),
    "another batch by hand": (rewritten(lambda c: c.replace(b"null", b"4", 1)), ("manifest.json", "digest")),
    "another size by hand": (rewritten(lambda c: c.replace(b"32,", b"64,", 1)), ("manifest.json", "digest")),
    "no digest": (rewritten(lambda c: c.replace(b'"digest"', b'"Digest"')), ("manifest.json", "digest")),
    "another format": (edited(format="zip"), ("manifest.json: required the format 'tvm_na artifact'", "'zip'")),
    "a later version": (edited(format_version=3), ("required format version 2, got 3", "newer tvm_na")),
    "an earlier version": (edited(format_version=1), ("required format version 2, got 1",)),
    "a field too many": (edited(more=1), ("manifest.json: required the fields", "more")),
    "an input without a shape": (edited(input={"dtype": "float32"}), ("manifest.json: required the fields", "shape")),
    "no target": (edited(target={}), ("manifest.json: required the fields", "name")),
    "no PyTorch": (edited(requires={}), ("manifest.json: required the fields", "torch")),
    "another kind": (edited(kind="onnx"), ("manifest.json: required the fields", "onnx")),
    "weights without names": (edited(kind="tvm"), ("manifest.json: required the fields", "weights")),
    "without a package": (edited(requires__nothing="1.0"), ("required nothing 1.0, got none",)),
    "a file without a digest": (edited(files={"operators.so": {"bytes": 9}}), ("required the fields", "sha256")),
    "files as a list": (edited(files=["operators.so"]), ("manifest.json: required the fields",)),
    "another architecture": (edited(target__architecture="aarch64"), ("required the architecture aarch64", "got x86")),
    "another system": (edited(target__system="Darwin"), ("required the system Darwin", platform.system())),
    "a missing CPU feature": (edited(target__cpu_features=["avx2", "amx_9"]), ("required a CPU", "without amx_9")),
    "two missing CPU features": (edited(target__cpu_features=["x1", "x2"]), ("without x1, x2",)),
    "an older PyTorch": (edited(requires__torch="2.1"), ("required PyTorch 2.1, got ",)),
    "a later PyTorch": (edited(requires__torch="99.0"), ("required PyTorch 99.0, got ",)),
    "a file outside": (
        edited(files={"../outside": {"sha256": "", "bytes": 0}}),
        ("manifest.json: required names of files inside", "../outside"),
    ),
    "no files named": (edited(files={}), ("got also", "operators.so")),
    "a new file": (lambda f: (f / "model" / "data" / "other.so").write_bytes(b""), ("got also model/data/other.so",)),
    "libraries swapped": (swap, (".so: required",)),
    "operators missing": (lambda f: (f / "operators.so").unlink(), ("operators.so: required a file",)),
    "operators cut": (rewritten(cut, "operators.so"), ("operators.so: required", "bytes")),
    "operators empty": (rewritten(lambda _: b"", "operators.so"), ("operators.so: required", "bytes, got 0")),
    "model missing": (lambda f: shutil.rmtree(f / "model"), ("required a file",)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(folder: Path, name: str) -> None:
    damage, says = DAMAGES[name]
    damage(folder)
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        tvm_na.load(folder)
    for part in says:
        assert part in str(caught.value)


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_flipped_bit_is_found_in_every_file(folder: Path, place: float) -> None:
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        content = file.read_bytes()
        file.write_bytes(flipped(place)(content))
        with pytest.raises(ValueError, match=re.escape(file.name)):
            tvm_na.load(folder)
        file.write_bytes(content)
    manifest.verify(folder, manifest.read_manifest(folder))


def test_a_missing_artifact(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="required an existing folder"):
        tvm_na.load(tmp_path / "none")
    with pytest.raises(TypeError, match="path: required the path"):
        tvm_na.load(3)
