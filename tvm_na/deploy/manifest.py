"""An artifact's manifest: what it is, what it needs, and a digest of every file; checked before anything is loaded.

The digests guard against accidents. Whoever can change a file can change the manifest as well.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tvm_na.deploy import files
from tvm_na.deploy.schema import is_bytes, is_shape, is_size, mismatch
from tvm_na.targets.target import missing_features
from tvm_na.wasm import machine

FORMAT = "tvm_na artifact"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
#: Files of the format ``aoti``: the model as AOTInductor makes it, and the operators that it calls.
MODEL, OPERATORS = "model", "operators.so"
#: Files of the format ``tvm``: the model, its weights, and TVM's runtime.
LIBRARY, WEIGHTS, RUNTIME = "model.so", "weights.safetensors", "libtvm_runtime.so"
#: Files of the format ``wasm``, beside weights: kernels, for one thread and for several, and the plan of their calls.
MODULE, SHARED_MODULE, PLAN = "model.wasm", "model-threads.wasm", "plan.json"
#: An input and the right outputs for it, where the machine that made an artifact could not run it.
EXPECTED = "expected.safetensors"

#: Bytes; NAT-Tiny's has 16 000.
_LARGEST = 1 << 24

_NUMBER = (int, float)
_TENSOR = {"shape": is_shape, "dtype": str}
_FILE = {"sha256": str, "bytes": is_bytes}
# Of what the fields consist that somebody reads.
_FIELDS = {
    "kind": lambda kind: kind in ("aoti", "tvm", "wasm"),
    "model": {"name": str, "parameters": int, "weights": (str, None)},
    "target": {"name": str, "system": str, "architecture": str, "cpu_features": [str]},
    "requires": {str: str},
    "built_with": {str: str},
    "problems": [{"problem": dict, "text": str, "layers": int, "schedule": str}],
    "input": _TENSOR,
    "outputs": [_TENSOR],
    "returns_list": bool,
    "preprocessing": (
        {"input_size": is_size, "crop_pct": _NUMBER, "interpolation": str, "mean": [_NUMBER], "std": [_NUMBER]},
        None,
    ),
    "code": dict,
    "check": {"budget": _NUMBER},
    "files": {str: _FILE},
}
# Of fields that those of older artifacts lack.
_ROUNDING = ({"relative_error": _NUMBER, "budget": _NUMBER, "same_class": (int, None), "inputs": is_size}, None)
_FIELDS_BY_KIND: dict[str, dict[str, Any]] = {
    "aoti": {"code": {"namespace": str}, "requires": {"torch": str}, "files": {OPERATORS: _FILE}},
    "tvm": {
        "code": {"weights": [str], "largest_batch": is_size},
        "requires": {"apache-tvm-ffi": str},
        "files": {LIBRARY: _FILE, WEIGHTS: _FILE},
    },
    "wasm": {
        "code": {"weights": [str], "largest_batch": is_size},
        "files": {MODULE: _FILE, WEIGHTS: _FILE, PLAN: _FILE},
    },
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
        model: ``name``, ``parameters`` (their number), ``weights`` (a file's name; None for random ones),
            ``weights_dtype`` (``int8`` for those of linear layers and convolutions; None, or absent, for the model's).
        target: The target's ``name``, ``system``, ``architecture`` and ``cpu_features`` (as /proc/cpuinfo names them).
        precision: ``float32`` or ``float64``, of everything; ``bfloat16``, of weights and between layers; ``float16``,
            of linear layers' and convolutions' weights alone. That of older artifacts is their input's dtype.
        kind: ``aoti`` (runs with PyTorch), ``tvm`` (runs with TVM's runtime) or ``wasm`` (runs in a browser, in node,
            and here in wasmtime: its ``system`` is ``any``).
        requires: Versions of packages: ``torch`` whose C++ interface it uses, such as ``2.13``; or ``apache-tvm-ffi``,
            and ``apache-tvm`` if it does not bring TVM's runtime.
        built_with: Versions of what made it.
        problems: Of each kernel: ``problem`` (its fields), ``text`` (in words), ``layers``, ``schedule`` (in words).
        input: What it takes.
        outputs: What it gives.
        returns_list: Whether the outputs come as a list rather than as one tensor.
        preprocessing: How an image becomes an input: the fields of ``models.registry.Preprocessing``; None if unknown.
        code: Of the format ``aoti``: ``namespace``, where its operators are registered in PyTorch; equal ones have
            equal code; ``linear``, of each distinct linear layer ``text``, ``layers``, whether its kernel is ``ours``,
            and the ``reason``. Of ``tvm``: ``weights``, their names in the order in which the library takes them,
            ``largest_batch`` of one call, and ``untuned``, kernels without a tuning record.
        check: ``relative_error`` to the eager reference (of halves: to the model as it was, in float64), ``budget`` and
            ``batches``, when it was made; of one that the machine that made it could not run, ``budget`` alone. With
            narrower weights the reference has the rounded ones, and ``rounding`` has the fields of
            :class:`tvm_na.deploy.int8.Rounding`.
        files: ``sha256`` and ``bytes`` of every other file, by its path in the artifact.
    """

    kind: str
    precision: str
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

    @property
    def weights_dtype(self) -> str:
        """The dtype of linear layers' and convolutions' weights."""
        return self.model.get("weights_dtype") or self.input.dtype

    @property
    def rounding(self) -> dict[str, Any] | None:
        """What rounding the weights changed, the fields of :class:`tvm_na.deploy.int8.Rounding`; None without any."""
        found: dict[str, Any] | None = self.check.get("rounding")
        return found

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
    """``sha256`` and ``bytes`` of every file of an artifact but its manifest.

    Raises:
        ValueError: something in it is neither a file nor a folder.
    """
    return files.describe(folder, MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the artifact in ``folder``, if it is whole and of a known format; its files are not looked at.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is no artifact, of a later format, or its manifest was changed; names what was required.
    """
    if not folder.exists():
        raise FileNotFoundError(f"artifact: required an existing folder, got {folder}")
    file = folder / MANIFEST
    if not files.is_regular(file):
        raise ValueError(f"artifact: required a folder with a {MANIFEST}, got {folder} without one")
    content = _parsed(file)
    if content.get("format") != FORMAT:
        raise ValueError(f"{file}: required the format {FORMAT!r}, got {_brief(content.get('format'))}")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        hint = "; a newer tvm_na reads it" if isinstance(version, int) and version > FORMAT_VERSION else ""
        raise ValueError(f"{file}: required format version {FORMAT_VERSION}, got {_brief(version)}{hint}")
    digest = content.pop("digest", None)
    if digest != _digest_of(content):
        raise ValueError(f"{file}: required content with the digest {_brief(digest)} that it names, got other content")
    return _from_content(file, content)


def _brief(value: Any) -> str:
    return ascii(value)[:80]


def _parsed(file: Path) -> dict[str, Any]:
    with files.opened(file) as stream:
        read = stream.read(_LARGEST + 1)
    if len(read) > _LARGEST:
        raise ValueError(f"{file}: required a file of at most {_LARGEST} bytes, got more")
    try:
        content = json.loads(read, parse_constant=_no_number)
        _digest_of(content)  # what is nested too deeply to be read may first show here
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise ValueError(f"{file}: required JSON, got a damaged file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: required a JSON object, got {type(content).__name__}")
    return content


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _from_content(file: Path, content: dict[str, Any]) -> Manifest:
    fields = {name: value for name, value in content.items() if name not in ("format", "format_version")}
    wrong = mismatch(fields, _FIELDS) or mismatch(fields, _FIELDS_BY_KIND[fields["kind"]])
    wrong = wrong or mismatch(fields.get("precision", ""), str, "precision")
    wrong = wrong or mismatch(fields["model"].get("weights_dtype"), (str, None), "model.weights_dtype")
    wrong = wrong or mismatch(fields["check"].get("rounding"), _ROUNDING, "check.rounding")
    if wrong is None and (more := sorted(fields.keys() - _FIELDS - {"precision"})):
        wrong = f"also {_brief(more[0])}"
    if wrong is None and not fields["outputs"]:
        wrong = "no outputs"
    if wrong is not None:
        raise ValueError(f"{file}: required the fields of format version {FORMAT_VERSION}, got {wrong}")
    specs = [TensorSpec(tuple(spec["shape"]), spec["dtype"]) for spec in (fields["input"], *fields["outputs"])]
    return Manifest(**{"precision": specs[0].dtype, **fields, "input": specs[0], "outputs": specs[1:]})


def verify(folder: Path, manifest: Manifest) -> None:
    """ValueError if this machine cannot run the artifact, or one of its files is not what the manifest says."""
    check_machine(folder, manifest)
    files.verify(folder, manifest.files, MANIFEST)


def check_machine(folder: Path, manifest: Manifest) -> None:
    """ValueError if an artifact's system, architecture, CPU features or packages are not those at hand."""
    if manifest.kind == "wasm":
        if not machine.is_there():
            raise ValueError(f"{folder}: required the package wasmtime (pip install 'tvm_na[wasm]'), got none")
        return
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


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
