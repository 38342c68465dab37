"""An artifact that is whole, and whose code cannot run: for tests of what is done before it would."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

from tvm_na.deploy import manifest
from tvm_na.targets.target import cpu_features, detect_target

MODEL_LIBRARY = "model/data/aotinductor/model/abc.wrapper.so"


def made_up(path: Path, name: str = "made-up") -> Path:
    """Makes one of the format ``aoti`` in a folder, of which the model has a name; returns the folder."""
    (path / MODEL_LIBRARY).parent.mkdir(parents=True)
    (path / MODEL_LIBRARY).write_bytes(b"model" * 100)
    (path / "model" / "byteorder").write_bytes(b"little")
    (path / "operators.so").write_bytes(b"operators" * 100)
    target = detect_target()
    found = manifest.Manifest(
        model={"name": name, "parameters": 1, "weights": None},
        target={
            "name": target.name,
            "system": platform.system(),
            "architecture": platform.machine(),
            "cpu_features": list(cpu_features(target)),
        },
        requires={"torch": manifest.torch_interface(metadata.version("torch"))},
        built_with={},
        problems=[],
        input=manifest.TensorSpec((None, 3, 32, 32), "float32"),
        outputs=[manifest.TensorSpec((None, 10), "float32")],
        returns_list=False,
        preprocessing=None,
        kind="aoti",
        precision="float32",
        code={"namespace": "tvm_na_0"},
        check={"budget": 1e-4},
        files=manifest.describe_files(path),
    )
    manifest.write_manifest(path, found)
    assert manifest.read_manifest(path) == found
    return path
