"""Artifacts of the format ``tvm``: without PyTorch and TVM, in parts, and what cannot be compiled.

test_deploy.py tests what both formats have in common.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import textwrap
import threading
import venv
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tvm_na
from tests.deploy.artifacts import LIMIT, SIZE, seal
from tests.helpers import ROOT, relative_error, run_python
from tvm_na.deploy import manifest
from tvm_na.deploy.artifact import VMArtifact
from tvm_na.nn import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D


def test_arrays_give_arrays(tvm) -> None:
    artifact = tvm_na.load(tvm.path)
    assert isinstance(artifact, VMArtifact)
    images = torch.randn(2, 3, SIZE, SIZE)
    right = artifact(images)
    read_only = images.numpy().copy()
    read_only.flags.writeable = False
    for array in (images.numpy(), read_only):
        found = artifact(array)
        assert isinstance(found, np.ndarray) and np.array_equal(found, right.numpy())


def test_results_stay_and_threads_wait_for_each_other(tvm) -> None:
    artifact = tvm_na.load(tvm.path)
    images = [torch.randn(2, 3, SIZE, SIZE) for _ in range(8)]
    rights = [artifact(x) for x in images]  # kept while later calls compute
    found: dict[int, torch.Tensor] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: artifact(images[i])})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], right) for i, right in enumerate(rights))


def test_batches_too_large_for_a_kernel_are_computed_in_parts(tvm) -> None:
    artifact = tvm_na.load(tvm.path)
    images = torch.randn(7, 3, SIZE, SIZE)
    code = {**artifact.manifest.code, "largest_batch": 3}
    parts = VMArtifact(tvm.path, dataclasses.replace(artifact.manifest, code=code))
    assert relative_error(parts(images), artifact(images)) <= 1e-6
    largest = 3 * 33 * 33  # elements of a sample: the padded image, whose last row and column no window reaches
    assert artifact.manifest.code["largest_batch"] == (2**31 - 1) // largest


def test_the_command_says_what_was_made(tvm) -> None:
    found, said = manifest.read_manifest(tvm.path), tvm.said[0]
    assert found.kind == "tvm" and found.requires == {"apache-tvm-ffi": metadata.version("apache-tvm-ffi")}
    assert found.check["relative_error"] <= 1e-5
    assert len(found.code["untuned"]) == len(found.problems) > 10
    assert "UNTUNED" in said and "relative error" in said
    assert sum(p["layers"] for p in found.problems if "operator" not in p["problem"] and "heads" in p["problem"]) == 2
    assert sum(about["bytes"] for name, about in found.files.items() if name != "weights.safetensors") <= 5_000_000


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has NumPy and tvm_ffi, not PyTorch and TVM."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    for name in ("numpy", "numpy.libs", "tvm_ffi", "typing_extensions.py", "apache_tvm_ffi*", "numpy-*"):
        for source in Path(util.find_spec("numpy").origin).parent.parent.glob(name):
            (packages / source.name).symlink_to(source)
    (packages / "tvm_na").symlink_to(ROOT / "tvm_na")
    return folder / "bin" / "python"


def test_a_process_without_pytorch_and_tvm(tvm, model, bare_python: Path, tmp_path: Path) -> None:
    path, images = tvm.path, torch.randn(2, 3, SIZE, SIZE)
    np.save(tmp_path / "images.npy", images.numpy())
    code = f"""
        import importlib.util, sys
        import numpy as np
        import tvm_na
        assert importlib.util.find_spec("torch") is None and importlib.util.find_spec("tvm") is None
        artifact = tvm_na.load({str(path)!r})
        np.save("out.npy", artifact(np.load("images.npy")))
        assert {str(path)!r} + "/libtvm_runtime.so" in open("/proc/self/maps").read()
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PATH")}
    command = [str(bare_python), "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert relative_error(torch.from_numpy(np.load(tmp_path / "out.npy")), model(images)) <= LIMIT


@pytest.mark.parametrize("before", ["", "import tvm", "artifact = tvm_na.load(PATH)"])
def test_it_lives_beside_kernels_of_this_process(tvm, before: str) -> None:
    """In whatever order TVM's runtime, the artifact and compiled attention come."""
    code = f"""
        import torch, tvm_na
        PATH = {str(tvm.path)!r}
        {before}
        q = torch.randn(1, 8, 8, 2, 8)
        right = tvm_na.na2d(q, q, q, 3, backend="reference")
        assert torch.allclose(tvm_na.na2d(q, q, q, 3, backend="compiled"), right, atol=1e-5)
        artifact = tvm_na.load(PATH)
        x = torch.randn(2, 3, {SIZE}, {SIZE})
        first = artifact(x)
        assert torch.allclose(tvm_na.na2d(q, q, q, 3, backend="compiled"), right, atol=1e-5)
        assert torch.equal(artifact(x), first) and first.isfinite().all()
    """
    run_python(code)


@pytest.mark.parametrize("name", ["model.so", "weights.safetensors", "libtvm_runtime.so"])
def test_damage_is_found_before_anything_is_loaded(tvm_copy, monkeypatch, name: str) -> None:
    file, content = tvm_copy / name, (tvm_copy / name).read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    monkeypatch.setattr(VMArtifact, "__init__", lambda *_: pytest.fail("a damaged artifact was loaded"))
    for damaged in (flipped, content[:-1], None):
        file.write_bytes(damaged) if damaged is not None else file.unlink()
        with pytest.raises(ValueError, match=re.escape(str(file))):
            tvm_na.load(tvm_copy)


class Backbone(nn.Module):
    """Gives two maps; attends with dilation and without a bias, has a layer scale."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.embed = nn.Conv2d(2, 8, 3, padding=1)
        self.attend = NeighborhoodAttention2D(8, 2, 3, dilation=2)
        self.norm = nn.LayerNorm(8)
        self.scale = nn.Parameter(torch.rand(8))
        self.down = nn.Conv2d(8, 12, 2, stride=2, groups=groups)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.embed(x).permute(0, 2, 3, 1)
        x = x + self.scale * self.attend(self.norm(x))
        x = x.permute(0, 3, 1, 2)
        return [x, torch.relu(self.down(x))]


def test_lists_fixed_batches_and_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Backbone().eval()
    with pytest.warns(UserWarning, match="UNTUNED"):
        artifact = tvm_na.compile(
            *(model, torch.zeros(1, 2, 9, 10), None, 3, "float64"),
            output=tmp_path / "backbone.artifact",
            format="tvm",
            records="off",
        )
    assert next(model.parameters()).dtype == torch.float32
    x = torch.randn(3, 2, 9, 10, dtype=torch.float64)
    with torch.no_grad():
        rights = model.double()(x)
    outs = artifact(x)
    assert isinstance(outs, list) and [tuple(o.shape) for o in outs] == [(3, 8, 9, 10), (3, 12, 4, 5)]
    assert all(relative_error(out, right) <= 1e-12 for out, right in zip(outs, rights, strict=True))
    with pytest.raises(ValueError, match=re.escape("required float64 [3, 2, 9, 10], got shape (1, 2, 9, 10)")):
        artifact(x[:1])


def test_a_convolution_without_a_kernel_of_ours_is_compiled_and_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Backbone(groups=2).eval()
    with pytest.warns(UserWarning, match="UNTUNED: .*conv2d"):
        artifact = compile_(tmp_path, model, 2, 9, 10)
    x = torch.randn(3, 2, 9, 10)
    with torch.no_grad():
        rights = model(x)
    assert all(relative_error(out, right) <= LIMIT for out, right in zip(artifact(x), rights, strict=True))
    with pytest.raises(NotImplementedError, match="no kernel for a float64 convolution with groups or dilation"):
        tvm_na.compile(
            *(model, torch.zeros(1, 2, 9, 10), None, "dynamic", "float64"), output=tmp_path / "y", format="tvm"
        )


def compile_(tmp_path: Path, model: nn.Module, *sizes: int, **options: Any) -> Any:
    return tvm_na.compile(model, torch.zeros(1, *sizes), output=tmp_path / "x.artifact", format="tvm", **options)


@pytest.mark.parametrize(
    ("module", "sizes"), [(NeighborhoodAttention1D, (9, 8)), (NeighborhoodAttention3D, (4, 3, 5, 8))]
)
def test_one_and_three_axes(tmp_path: Path, module: Any, sizes: tuple[int, ...]) -> None:
    model = module(8, 2, 3, rel_pos_bias=True).eval()
    with pytest.warns(UserWarning, match="UNTUNED"):
        artifact = compile_(tmp_path, model, *sizes)
    x = torch.randn(2, *sizes)
    with torch.no_grad():
        assert relative_error(artifact(x), model(x)) <= LIMIT


def test_weights_that_did_not_come_are_an_error(tvm_copy: Path) -> None:
    code = manifest.read_manifest(tvm_copy).code
    seal(tvm_copy, code={**code, "weights": ["gone", *code["weights"]]})
    with pytest.raises(ValueError, match=r"weights\.safetensors: required the weights that .* names, got no gone"):
        tvm_na.load(tvm_copy)


def test_what_cannot_be_compiled(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="without neighborhood attention"):
        compile_(tmp_path, nn.Linear(3, 4), 3)
    with pytest.raises(ValueError, match="format: required one of aoti, tvm, wasm, got 'onnx'"):
        tvm_na.compile(Backbone(), torch.zeros(1, 2, 9, 9), output=tmp_path / "x", format="onnx")
    with pytest.raises(ValueError, match="precision: required .* or bfloat16 or float16 or None, got 'float8'"):
        compile_(tmp_path, Backbone(), 2, 9, 9, precision="float8")
    with pytest.raises(ValueError, match="runtime: required an existing file"):
        compile_(tmp_path, Backbone(), 2, 9, 9, runtime=tmp_path / "none.so")
    with pytest.raises(TypeError, match="runtime: required a path, got int 1"):
        compile_(tmp_path, Backbone(), 2, 9, 9, runtime=1)
    with pytest.raises(ValueError, match="runtime: required the format tvm"):
        tvm_na.compile(Backbone(), torch.zeros(1, 2, 9, 9), output=tmp_path / "x", runtime=tmp_path)
    assert list(tmp_path.iterdir()) == []
