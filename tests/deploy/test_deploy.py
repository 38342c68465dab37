"""Artifacts of both formats: what they compute; those of the format ``aoti``: where, and what cannot be compiled."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import tvm_na
from benchmarks.photographs import crops
from tests.cli.invoking import invoke
from tests.deploy.artifacts import CLASSES, LIMIT, SIZE, SMALL, seal, small_model
from tests.helpers import ROOT, assert_says, bad, relative_error, run_python
from tvm_na.compilers import cxx
from tvm_na.deploy import compiler, manifest
from tvm_na.deploy.aoti import inductor
from tvm_na.nn import NeighborhoodAttention2D
from tvm_na.targets.target import detect_target

# --- what is computed


def test_any_batch_gives_what_the_model_gives(either, model) -> None:
    artifact = tvm_na.load(either.path)
    assert repr(artifact) == f"<artifact small.artifact: {SMALL.name}, float32 [batch, 3, {SIZE}, {SIZE}]>"
    for batch in (1, 2, 5, 64):
        images = torch.randn(batch, 3, SIZE, SIZE)
        with torch.no_grad():
            assert relative_error(artifact(images), model(images)) <= LIMIT


def test_crops_of_photographs(either, model) -> None:
    """Each of 50 on its own: what they look like is not noise."""
    artifact, images = tvm_na.load(either.path), crops(50, SMALL.preprocessing, SIZE)
    with torch.no_grad():
        outs, rights = artifact(images), model(images)
    assert all(relative_error(out, right) <= LIMIT for out, right in zip(outs, rights, strict=True))


def test_views_and_gradients_of_the_input(either, model) -> None:
    """Strided, lazily negated, misaligned: the result is the same, and has no gradient."""
    artifact = tvm_na.load(either.path)
    images = torch.randn(2, 3, SIZE, SIZE)
    storage = torch.empty(images.numel() + 1)
    odd = storage[1:].view_as(images).copy_(images)
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    negated = torch.complex(torch.zeros_like(images), -images).conj().imag
    assert negated.is_neg()
    with torch.no_grad():
        right = model(images)
    for x in (odd, strided, negated, images.clone().requires_grad_()):
        out = artifact(x)
        assert relative_error(out, right) <= LIMIT
        assert not out.requires_grad


def test_threads_do_not_change_the_numbers_and_copies_share_operators(aoti, aoti_copy) -> None:
    artifact, twin = tvm_na.load(aoti.path), tvm_na.load(aoti_copy)
    images = torch.randn(3, 3, SIZE, SIZE)
    threads = torch.get_num_threads()
    outputs = [artifact(images)]
    try:
        torch.set_num_threads(1)
        outputs.append(twin(images))
    finally:
        torch.set_num_threads(threads)
    assert relative_error(outputs[1], outputs[0]) <= 1e-6


def test_a_fresh_process_needs_no_compiler_and_then_no_tvm_na(aoti, model, tmp_path: Path) -> None:
    """Neither TVM nor Inductor nor anything of tvm_na's that builds; PATH has no compiler.

    A second process does what the documentation says for Python without this package.
    """
    path, images = aoti.path, torch.randn(2, 3, SIZE, SIZE)
    torch.save(images, tmp_path / "images.pt")
    with_us = f"""
        import sys, torch
        forbidden = ("tvm", "tvm_ffi", "torch._inductor.compile_fx", "tvm_na.jit.build",
                     "tvm_na.ops.attention", "tvm_na.te",
                     "tvm_na.schedules", "tvm_na.models", "tvm_na.deploy.compiler",
                     "tvm_na.jit.openmp", "tvm_na.jit.runtime")
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name in forbidden:
                    raise ImportError(f"{{name}} was imported")
        sys.meta_path.insert(0, Refuse())
        import tvm_na
        artifact = tvm_na.load({str(path)!r})
        assert artifact.manifest.model["name"] == {SMALL.name!r}
        torch.save(artifact(torch.load("images.pt")), "out.pt")
        loaded = open("/proc/self/maps").read()
        assert "operators.so" in loaded and "libtvm" not in loaded
    """
    without_us = f"""
        import sys, torch
        sys.modules["tvm_na"] = sys.modules["tvm"] = sys.modules["tvm_ffi"] = None  # importing them raises
        torch.ops.load_library({str(path / "operators.so")!r})
        model = torch._C._aoti.AOTIModelPackageLoader({str(path / "model")!r}, "model", False, 1, -1)
        torch.save(model.run([torch.load("images.pt")])[0], "out.pt")
    """
    with torch.no_grad():
        right = model(images)
    for code in (with_us, without_us):
        run_python(code, cwd=tmp_path, env={**os.environ, "PATH": "", "PYTHONPATH": str(ROOT)})
        assert relative_error(torch.load(tmp_path / "out.pt"), right) <= LIMIT
        (tmp_path / "out.pt").unlink()


def test_children_of_a_process_that_computed(either) -> None:
    """Forked while another thread is in a call; and PyTorch's threads, or the pool's, are not there."""
    code = f"""
        import os, signal, threading, torch, tvm_na
        torch.set_num_threads(2)
        artifact = tvm_na.load({str(either.path)!r})
        images = torch.rand(8, 3, {SIZE}, {SIZE})
        expected, stop = artifact(images), []
        def compute():
            while not stop:
                artifact(images)
        thread = threading.Thread(target=compute)
        thread.start()
        for _ in range(5):
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                os._exit(0 if torch.allclose(artifact(images), expected, rtol=1e-4) else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.append(1)
        thread.join()
        assert torch.get_num_threads() == 2
    """
    run_python(code, env={**os.environ, "TVM_NA_NUM_THREADS": "2"})


# --- what it says of itself


def test_the_manifest_says_what_it_is(aoti, model) -> None:
    path = aoti.path
    found = tvm_na.load(path).manifest
    parameters = sum(p.numel() for p in model.parameters())
    about = {"name": SMALL.name, "parameters": parameters, "weights": "small.pth"}
    assert found.model == {**about, "weights_dtype": None}
    assert (str(found.input), [str(o) for o in found.outputs]) == (
        f"float32 [batch, 3, {SIZE}, {SIZE}]",
        [f"float32 [batch, {CLASSES}]"],
    )
    attentions = [p for p in found.problems if "heads" in p["problem"]]
    assert [(tuple(p["problem"]["spatial"]), p["layers"]) for p in attentions] == [((8, 8), 1), ((4, 4), 1)]
    assert found.preprocessing is not None and found.preprocessing["input_size"] == SIZE
    assert found.check["batches"] == [1, 2, 3] and found.check["relative_error"] <= found.check["budget"] == LIMIT
    assert set(found.files) == {
        file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file() and file.name != "manifest.json"
    }


def test_the_library_needs_pytorch_alone(aoti) -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("test_the_library_needs_pytorch_alone needs readelf")
    for library in aoti.path.rglob("*.so"):
        text = subprocess.run([readelf, "-d", library], capture_output=True, text=True, check=True).stdout
        needed = set(re.findall(r"NEEDED.*\[(.+?)\.so", text))
        assert {"libtorch_cpu"} <= needed and not any("tvm" in name for name in needed)
        assert "RUNPATH" not in text and "RPATH" not in text


def test_what_compile_prints(aoti) -> None:
    said = aoti.said[0]
    for part in ("tracing", "AOTInductor", "checking", "8x8", "1 layers", "default schedule", "relative error", " MB"):
        assert part in said, said
    assert "RANDOM" not in said


@pytest.mark.parametrize(
    ("images", "error", "says"),
    [
        ("photo.png", TypeError, "torch.Tensor, got str|NumPy array or a PyTorch tensor, got str"),
        (torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float64), TypeError, "dtype float32, got float64"),
        (torch.zeros(1, 3, SIZE, SIZE, dtype=torch.bfloat16), TypeError, "dtype float32, got bfloat16"),
        (torch.zeros(1, 3, SIZE, SIZE, device="meta"), ValueError, "a dense tensor on the CPU, got one on meta"),
        (torch.zeros(0, 3, SIZE, SIZE), ValueError, r"\[batch, 3, 32, 32\], got shape \(0, 3, 32, 32\)"),
        (torch.zeros(3, SIZE, SIZE), ValueError, r"\[batch, 3, 32, 32\], got shape \(3, 32, 32\)"),
        (torch.zeros(1, 3, SIZE, SIZE + 1), ValueError, r"\[batch, 3, 32, 32\], got shape \(1, 3, 32, 33\)"),
        (torch.zeros(1, 3, SIZE, SIZE).to_sparse(), ValueError, "a dense tensor"),
    ],
    ids=range(8),
)
def test_wrong_inputs(either, images: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=f"^images: required (float32 )?(a )?({says})"):
        tvm_na.load(either.path)(images)


# --- compiling what cannot be compiled


MODEL, EXAMPLE = NeighborhoodAttention2D(8, 2, 3), torch.zeros(1, 6, 6, 8)
REFUSED = [
    bad("model", "nat_tiny", TypeError, "torch.nn.Module"),
    bad("model", NeighborhoodAttention2D(8, 2, 3).to("meta"), ValueError, "on the CPU", name="meta"),
    bad("example_input", [1], TypeError, "torch.Tensor"),
    bad("example_input", EXAMPLE.half(), TypeError, "float32 or float64", name="half"),
    bad("example_input", torch.zeros(3), ValueError, "[batch, ...]", name="flat"),
    bad("example_input", EXAMPLE[:0], ValueError, "at least 1", name="empty"),
    bad("batch", 0, ValueError, "'dynamic' or an integer"),
    bad("batch", True, ValueError, "'dynamic' or an integer"),
    bad("batch", "any", ValueError, "'dynamic' or an integer"),
    bad("target", 3, TypeError, "name or None"),
    bad("target", "z80", ValueError, "native"),
    bad("target", "cuda-sm_90", ValueError, "a CPU"),
    bad("target", "llvm-aarch64-neon", ValueError, "this CPU can run"),
    bad("output", 3, TypeError, "a path"),
    bad("output", "missing/folder/x", ValueError, "existing folder", name="nowhere"),
    bad("output", ".", ValueError, "nothing is"),
    bad("output", ".", ValueError, "an artifact is", name="overwritten", overwrite=True),
]


@pytest.mark.parametrize(("argument", "changed", "error", "says"), REFUSED)
def test_bad_arguments(tmp_path, monkeypatch, argument, changed, error, says) -> None:
    if changed.get("target") == "llvm-aarch64-neon" and platform.machine() != "x86_64":
        pytest.skip("this machine runs it")
    monkeypatch.chdir(tmp_path)
    arguments = {"model": MODEL, "example_input": EXAMPLE, "output": "x.artifact", **changed}
    with pytest.raises(error) as caught:
        tvm_na.compile(**arguments)
    assert_says(caught, argument, error, says)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("owner", "name", "value", "says"),
    [
        (cxx.shutil, "which", lambda name: None, r"required a C\+\+ compiler"),
        (torch, "__version__", "2.12.1+cpu", r"compile: required PyTorch 2\.13 or newer, got 2\.12\.1\+cpu"),
        (NeighborhoodAttention2D, "forward", lambda self, x: 2 * x, "without neighborhood attention"),
    ],
    ids=["no compiler", "an older PyTorch", "no attention"],
)
def test_what_compiling_needs(tmp_path, monkeypatch, owner, name, value, says) -> None:
    monkeypatch.setattr(owner, name, value)
    with pytest.raises(RuntimeError, match=says):  # of which NotImplementedError is one
        tvm_na.compile(MODEL, EXAMPLE, output=tmp_path / "x.artifact")
    assert not list(tmp_path.iterdir())


def test_inductor_measures_linear_layers_if_asked_to(tmp_path: Path, monkeypatch) -> None:
    asked: list[dict[str, Any]] = []

    def compile_and_package(program: Any, package_path: str, inductor_configs: dict[str, Any]) -> None:
        asked.append(inductor_configs)
        with zipfile.ZipFile(package_path, "w") as archive:
            archive.writestr("model/data/model.so", b"")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_and_package)
    for dtype, autotune in ((torch.float32, True), (torch.float64, False)):
        inductor.compile_program(None, detect_target(), tmp_path, tmp_path, dtype, autotune)
    assert ["max_autotune" in options for options in asked] == [True, False]
    assert [options["cpp.weight_prepack"] for options in asked] == [True, False]  # oneDNN does not compute in float64
    assert all(options["freezing"] for options in asked)


def test_wrong_numbers_leave_no_artifact(aoti, model, tmp_path, monkeypatch) -> None:
    """The steps that take long give what they gave before; the model's weights are others."""

    def earlier_build(request: Any, folder: Path, scratch: Path) -> dict[str, Any]:
        shutil.copytree(aoti.path, folder, dirs_exist_ok=True)
        found = manifest.read_manifest(aoti.path)
        return {name: getattr(found, name) for name in ("code", "problems", "requires")}

    monkeypatch.setitem(compiler._ROUTES, "aoti", earlier_build)
    arguments = {"example_input": torch.zeros(1, 3, SIZE, SIZE), "output": tmp_path / "x.artifact"}
    other = small_model(seed=2, backend="auto").train()
    with pytest.raises(RuntimeError, match=r"required outputs within 1e-04 of the eager reference, got "):
        tvm_na.compile(other, **arguments)
    assert other.training and other.levels[0].blocks[0].attn.backend == "auto"  # as it was
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        assert tvm_na.compile(model, **arguments, overwrite=True).manifest.model["weights"] is None
    assert [file.name for file in tmp_path.iterdir()] == ["x.artifact"]
    with pytest.raises(ValueError, match="output: required a path where nothing is"):
        tvm_na.compile(model, **arguments)


# --- the command line


def test_run_and_bench_take_an_artifact(either, photo, tmp_path) -> None:
    (tmp_path / "labels.txt").write_text("".join(f"label {i}\n" for i in range(CLASSES)))
    result = invoke("run", either.path, photo, "--labels", tmp_path / "labels.txt", "--top", 3)
    assert photo.name in result.stdout and len(re.findall(r"label \d .*\d\.\d\d%", result.stdout)) == 3
    said = invoke("bench", "artifact", either.path, "--rounds", 2, "--batch", 2).stdout
    assert all(word in said for word in ("verify", "load", "first call", "call, median", "batch 2"))


def test_run_refuses_options_of_models(aoti, photo) -> None:
    for option, value in (("weights", "w.pth"), ("backend", "reference"), ("input_size", 64), ("num_classes", 3)):
        said = invoke("run", aoti.path, photo, f"--{option.replace('_', '-')}", value, code=2).stderr
        assert f"{option}: required" in said


def test_run_says_what_is_wrong(aoti, aoti_copy, photo, tmp_path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    labels = invoke("run", aoti.path, photo, "--labels", tmp_path / "labels.txt", code=2).stderr
    assert f"labels: required {CLASSES}, one per class, got 2" in labels
    assert "required an existing folder" in invoke("run", tmp_path / "no.artifact", photo, code=2).stderr
    seal(aoti_copy, model={**manifest.read_manifest(aoti_copy).model, "weights": None})
    assert "RANDOM" in invoke("run", aoti_copy, photo).stderr
    seal(aoti_copy, preprocessing=None)
    assert "artifact: required one that knows its preprocessing" in invoke("run", aoti_copy, photo, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nat_huge", "-o", "x"), "name: required one of"),
        (("nat_tiny", "-o", "x", "--batch", "many"), "batch: required dynamic"),
        (("nat_tiny", "-o", "x", "--weights", "none.pth"), "none.pth"),
        (("nat_mini", "-o", "x", "--target", "cuda"), "target: required"),
    ],
)
def test_compile_refuses(tmp_path, monkeypatch, arguments, says) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in invoke("compile", *arguments, code=2).stderr
    assert not list(tmp_path.iterdir())
