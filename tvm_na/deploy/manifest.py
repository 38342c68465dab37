"""An artifact's manifest: what it is, what it needs, and a digest of every file; checked before anything is loaded.

The digests guard against accidents. Whoever can change a file can change the manifest as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from tvm_na.targets.target import missing_features

FORMAT = "tvm_na artifact"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
#: Files of the format ``aoti``: the model as AOTInductor makes it, and the operators that it calls.
MODEL, OPERATORS = "model", "operators.so"
#: Files of the format ``tvm``: the model, its weights, and TVM's runtime.
LIBRARY, WEIGHTS, RUNTIME = "model.so", "weights.safetensors", "libtvm_runtime.so"
#: An input and the right outputs for it, where the machine that made an artifact could not run it.
EXPECTED = "expected.safetensors"

_BLOCK = 1 << 20

# Of the manifest's objects, what loading an artifact depends on.
_NEEDED = {"target": ("name", "system", "architecture", "cpu_features"), "model": ("name",)}
_NEEDED_BY_KIND: dict[str, dict[str, tuple[str, ...]]] = {
    "aoti": {"code": ("namespace",), "requires": ("torch",)},
    "tvm": {"code": ("weights", "largest_batch"), "requires": ("apache-tvm-ffi",)},
}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        shape: Sizes; None is the batch, any positive number.
        dtype: PyTorch's name, such as ``float32``.
    """

    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('batch' if n is None else str(n) for n in self.shape)}]"


@dataclass(frozen=True)
class Manifest:
    """What is known of an artifact.

    Attributes:
        model: ``name``, ``parameters`` (their number), ``weights`` (a file's name; None for random ones).
        target: The target's ``name``, ``system``, ``architecture`` and ``cpu_features`` (as /proc/cpuinfo names them).
        kind: ``aoti`` (runs with PyTorch) or ``tvm`` (runs with TVM's runtime).
        requires: Versions of packages: ``torch`` whose C++ interface it uses, such as ``2.13``; or ``apache-tvm-ffi``,
            and ``apache-tvm`` if it does not bring TVM's runtime.
        built_with: Versions of what made it.
        problems: Of each kernel: ``problem`` (its fields), ``text`` (in words), ``layers``, ``schedule`` (in words).
        input: What it takes.
        outputs: What it gives.
        returns_list: Whether the outputs come as a list rather than as one tensor.
        preprocessing: How an image becomes an input: the fields of ``models.registry.Preprocessing``; None if unknown.
        code: Of the format ``aoti``: ``namespace``, where its operators are registered in PyTorch; equal ones have
            equal code. Of ``tvm``: ``weights``, their names in the order in which the library takes them,
            ``largest_batch`` of one call, and ``untuned``, kernels without a tuning record.
        check: ``relative_error`` to the eager reference, ``budget`` and ``batches``, when it was made; of one that the
            machine that made it could not run, ``budget`` alone.
        files: ``sha256`` and ``bytes`` of every other file, by its path in the artifact.
    """

    kind: str
    model: dict[str, Any]
    target: dict[str, Any]
    requires: dict[str, str]
    built_with: dict[str, str]
    problems: list[dict[str, Any]]
    input: TensorSpec
    outputs: list[TensorSpec]
    returns_list: bool
    preprocessing: dict[str, Any] | None
    code: dict[str, Any]
    check: dict[str, Any]
    files: dict[str, dict[str, Any]]

    @property
    def batch(self) -> int | None:
        """The batch that it takes; None for any."""
        return self.input.shape[0]

    def check_input(self, shape: tuple[int, ...], dtype: str) -> None:
        """TypeError or ValueError if it takes no ``images`` of this shape and dtype."""
        wanted = self.input
        if dtype != wanted.dtype:
            raise TypeError(f"images: required dtype {wanted.dtype}, got {dtype}")
        fits = len(shape) == len(wanted.shape) and all(
            size >= 1 if n is None else size == n for n, size in zip(wanted.shape, shape, strict=True)
        )
        if not fits:
            raise ValueError(f"images: required {wanted}, got shape {shape}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of the artifact in ``folder``, with a digest of itself."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    text = json.dumps({**content, "digest": _digest_of(content)}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def describe_kernel(problem: Any, layers: int, schedule: object) -> dict[str, Any]:
    """What a manifest says of a kernel: the fields of its problem, that in words, and its schedule in words."""
    return {"problem": asdict(problem), "text": str(problem), "layers": layers, "schedule": str(schedule)}


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """``sha256`` and ``bytes`` of every file of an artifact but its manifest."""
    files = {name: folder / name for name in sorted(_names(folder)) if name != MANIFEST}
    return {name: {"sha256": _sha256(file), "bytes": file.stat().st_size} for name, file in files.items()}


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the artifact in ``folder``, if it is whole and of a known format; its files are not looked at.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is no artifact, of a later format, or its manifest was changed; names what was required.
    """
    if not folder.exists():
        raise FileNotFoundError(f"artifact: required an existing folder, got {folder}")
    file = folder / MANIFEST
    if not file.is_file():
        raise ValueError(f"artifact: required a folder with a {MANIFEST}, got {folder} without one")
    content = _parsed(file)
    if content.get("format") != FORMAT:
        raise ValueError(f"{file}: required the format {FORMAT!r}, got {content.get('format')!r}")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        hint = "; a newer tvm_na reads it" if isinstance(version, int) and version > FORMAT_VERSION else ""
        raise ValueError(f"{file}: required format version {FORMAT_VERSION}, got {version!r}{hint}")
    digest = content.pop("digest", None)
    if digest != _digest_of(content):
        raise ValueError(f"{file}: required content with the digest {digest!r} that it names, got other content")
    return _from_content(file, content)


def _parsed(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise ValueError(f"{file}: required JSON, got a damaged file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: required a JSON object, got {type(content).__name__}")
    return content


def _from_content(file: Path, content: dict[str, Any]) -> Manifest:
    fields = {name: value for name, value in content.items() if name not in ("format", "format_version")}
    try:
        specs = [TensorSpec(tuple(spec["shape"]), spec["dtype"]) for spec in (fields["input"], *fields["outputs"])]
        for part, names in {**_NEEDED, **_NEEDED_BY_KIND[fields["kind"]]}.items():
            _require_keys(fields[part], names)
        for described in fields["files"].values():
            _require_keys(described, ("sha256", "bytes"))
        return Manifest(**{**fields, "input": specs[0], "outputs": specs[1:]})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: required the fields of format version {FORMAT_VERSION}, got {error}") from error


def _require_keys(described: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name not in described:
            raise KeyError(name)


def verify(folder: Path, manifest: Manifest) -> None:
    """ValueError if this machine cannot run the artifact, or one of its files is not what the manifest says."""
    check_machine(folder, manifest)
    _check_files(folder, manifest)


def check_machine(folder: Path, manifest: Manifest) -> None:
    """ValueError if an artifact's system, architecture, CPU features or packages are not those at hand."""
    for name, here in (("system", platform.system()), ("architecture", platform.machine())):
        if manifest.target[name] != here:
            raise ValueError(f"{folder}: required the {name} {manifest.target[name]}, got {here}")
    missing = missing_features(manifest.target["cpu_features"])
    if missing:
        wanted = f"a CPU that runs {manifest.target['name']}"
        raise ValueError(f"{folder}: required {wanted}, got one without {', '.join(missing)}")
    for package, wanted in manifest.requires.items():
        got = _installed(package)
        is_torch = package == "torch"
        if got is None or (torch_interface(got) if is_torch else got) != wanted:
            raise ValueError(f"{folder}: required {'PyTorch' if is_torch else package} {wanted}, got {got or 'none'}")


def _installed(package: str) -> str | None:
    """The version of a package that is installed; None if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def torch_interface(version: str) -> str:
    """Of a version of PyTorch, what its C++ interface depends on: ``"2.13"``."""
    return ".".join(version.split(".")[:2])


def _check_files(folder: Path, manifest: Manifest) -> None:
    for name, wanted in manifest.files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{folder / MANIFEST}: required names of files inside of the artifact, got {name!r}")
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{file}: required a file of {wanted['bytes']} bytes, got none")
        if file.stat().st_size != wanted["bytes"]:
            raise ValueError(f"{file}: required {wanted['bytes']} bytes, got {file.stat().st_size}")
        digest = _sha256(file)
        if digest != wanted["sha256"]:
            raise ValueError(f"{file}: required the SHA-256 {wanted['sha256']}, got {digest}")
    extra = _names(folder) - set(manifest.files) - {MANIFEST}
    if extra:  # PyTorch loads what it finds in the model's folder
        raise ValueError(f"{folder}: required the files that the manifest names, got also {', '.join(sorted(extra))}")


def _names(folder: Path) -> set[str]:
    walk = os.walk(folder, followlinks=True)
    return {(Path(at) / name).relative_to(folder).as_posix() for at, _, names in walk for name in names}


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
