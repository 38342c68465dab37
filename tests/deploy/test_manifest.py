"""An artifact's manifest: whatever is damaged or does not fit the machine is a clear error, and nothing is loaded.

The artifact is a folder of made-up files: none of them may be looked at but for its digest.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tvm_na
from tests.deploy.made_up import MODEL_LIBRARY, made_up
from tests.helpers import within
from tvm_na.deploy import manifest
from tvm_na.deploy.artifact import TorchArtifact


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact that is whole, and whose code cannot run."""
    path = made_up(tmp_path / "made-up.artifact")
    manifest.verify(path, manifest.read_manifest(path))
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


def instead(file: Path, make: Callable[[Path], object]) -> None:
    file.unlink()
    make(file)


def linked(name: str) -> Damage:
    """A file or folder that is where it was by a link alone."""

    def damage(folder: Path) -> None:
        elsewhere = (folder / name).rename(folder.with_name("elsewhere"))
        (folder / name).symlink_to(elsewhere)

    return damage


def without_the_model(folder: Path) -> None:
    named = manifest.read_manifest(folder).files
    edited(files={name: named[name] for name in named if not name.startswith("model")})(folder)


# Values of a field, none of which it may have; the digest is right.
MISTYPED: list[tuple[str, Any]] = [
    ("model", []),
    ("model__name", 3),
    ("model__parameters", "many"),
    ("model__weights", 3),
    ("target", None),
    ("target__name", None),
    ("target__cpu_features", "avx2"),
    ("target__cpu_features", [2]),
    ("requires", ["torch"]),
    ("requires__torch", 2.13),
    ("built_with", None),
    ("problems", {}),
    ("problems", ["8x8"]),
    ("problems", [{"text": 1, "layers": 1, "schedule": ""}]),
    ("input", [1]),
    ("input__shape", "abc"),
    ("input__shape", [None, 3.5]),
    ("input__shape", [True]),
    ("input__shape", [None, -3]),
    ("input__shape", [None, 2**70]),
    ("input__shape", []),
    ("input__dtype", 3),
    ("outputs", []),
    ("outputs", {"shape": [1], "dtype": "float32"}),
    ("outputs", [{"shape": [1]}]),
    ("returns_list", 0),
    ("preprocessing", [224]),
    ("preprocessing", {"input_size": 224}),
    ("kind", []),
    ("kind", None),
    ("code", None),
    ("code__namespace", {}),
    ("check", 1),
    ("check__budget", "1e-4"),
    ("files__operators.so", None),
    ("files__operators.so", {"sha256": 3, "bytes": 9}),
    ("files__operators.so", {"sha256": "", "bytes": 9.0}),
    ("files__operators.so", {"sha256": "", "bytes": -1}),
    ("files__operators.so", {"sha256": "", "bytes": 10**30}),
]


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
        edited(**{"files__../outside": {"sha256": "", "bytes": 0}}),
        ("../outside: required a file of 0 bytes inside of the artifact, got none",),
    ),
    "operators not named": (edited(files={}), ("manifest.json: required the fields", "operators.so")),
    "the model not named": (without_the_model, ("got also model/byteorder",)),
    "a new file": (lambda f: (f / "model" / "data" / "other.so").write_bytes(b""), ("got also model/data/other.so",)),
    "libraries swapped": (swap, (".so: required",)),
    "operators missing": (lambda f: (f / "operators.so").unlink(), ("operators.so: required a file",)),
    "operators cut": (rewritten(cut, "operators.so"), ("operators.so: required", "bytes")),
    "operators empty": (rewritten(lambda _: b"", "operators.so"), ("operators.so: required", "bytes, got 0")),
    "model missing": (lambda f: shutil.rmtree(f / "model"), ("required a file",)),
    "manifest nested": (rewritten(lambda _: b"[" * 200_000), ("manifest.json: required JSON",)),
    "manifest nested in an object": (
        rewritten(lambda _: b'{"a":' * 90_000 + b"1" + b"}" * 90_000),
        ("manifest.json: required JSON",),
    ),
    "manifest too large": (rewritten(lambda c: c + b" " * 2**25), ("manifest.json: required a file of at most",)),
    "a number of many digits": (rewritten(lambda c: c.replace(b"false", b"1" * 9999, 1)), ("manifest.json",)),
    "no number": (edited(check={"budget": float("nan")}), ("manifest.json: required JSON", "NaN")),
    "a number beyond all": (rewritten(lambda c: c.replace(b"false", b"1e999", 1)), ("manifest.json",)),
    **{
        f"{field} as {value!r}": (
            edited(**{field: value}),
            ("manifest.json: required the fields", field.replace("__", ".")),
        )
        for field, value in MISTYPED
    },
    "manifest a folder": (lambda f: instead(f / "manifest.json", Path.mkdir), ("with a manifest.json",)),
    "manifest a pipe": (lambda f: instead(f / "manifest.json", os.mkfifo), ("with a manifest.json",)),
    "manifest a link": (linked("manifest.json"), ("with a manifest.json",)),
    "manifest a link to itself": (
        lambda f: instead(f / "manifest.json", lambda file: file.symlink_to("manifest.json")),
        ("with a manifest.json",),
    ),
    "operators a link": (linked("operators.so"), ("operators.so: required a regular file or a folder, got a link",)),
    "operators a link to itself": (
        lambda f: instead(f / "operators.so", lambda file: file.symlink_to("operators.so")),
        ("operators.so: required a regular file or a folder, got a link",),
    ),
    "operators a pipe": (
        lambda f: instead(f / "operators.so", os.mkfifo),
        ("operators.so: required a regular file or a folder, got a pipe",),
    ),
    "operators a device": (
        lambda f: instead(f / "operators.so", lambda file: file.symlink_to("/dev/zero")),
        ("operators.so: required a regular file or a folder, got a link",),
    ),
    "operators a folder": (lambda f: instead(f / "operators.so", Path.mkdir), ("operators.so: required a file",)),
    "a folder a link": (linked("model"), ("model: required a regular file or a folder, got a link",)),
    "a link to the whole": (
        lambda f: (f / "loop").symlink_to("."),
        ("loop: required a regular file or a folder, got a link",),
    ),
    "a link to nowhere": (
        lambda f: (f / "gone").symlink_to("nowhere"),
        ("gone: required a regular file or a folder, got a link",),
    ),
    "a name that cannot be printed": (
        lambda f: (f / os.fsdecode(b"\xff\xfe")).write_bytes(b""),
        ("got also \\udcff\\udcfe",),
    ),
    "a pipe too many": (lambda f: os.mkfifo(f / "pipe"), ("pipe: required a regular file or a folder, got a pipe",)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(folder: Path, name: str) -> None:
    damage, says = DAMAGES[name]
    damage(folder)
    with within(20), pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
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
