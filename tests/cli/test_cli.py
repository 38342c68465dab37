"""The commands about kernels and models: run, info, bench, cache; and what importing the command line costs."""

from __future__ import annotations

import datetime
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.cli.invoking import TINY, error_of, invoke
from tests.helpers import run_python
from tvm_na import __version__
from tvm_na.cli.classifiers import read_labels
from tvm_na.compilers import cxx
from tvm_na.models import create_model, registry

ON_REFERENCE = ("--backend", "reference")


def run(*arguments: object, command=invoke):
    return command("run", TINY.name, *arguments, "--input-size", 32)


# --- about itself


def test_the_module_runs_and_imports_nothing_slow_for_help():
    said = run_python("""
        import runpy, sys; sys.argv = ["tvm-na", "--help"]
        try: runpy.run_module("tvm_na", run_name="__main__")
        except SystemExit as end: assert not end.code
        slow = {"torch", "tvm", "tvm_ffi", "numpy", "matplotlib", "PIL"} & set(sys.modules)
        assert not slow, slow
    """)
    assert "compiled by TVM for the hardware at hand" in said
    assert invoke("--version").stdout == f"tvm-na {__version__}\n"


def test_info(cache):
    out = invoke("info").stdout
    for wanted in (__version__, torch.__version__, "tvm_ffi", "TVM_NA_", str(cache)):
        assert wanted in out
    assert re.search(r"kernels +0, 0 B", out)
    assert re.search(r"user's +none +.*shipped +", out, re.DOTALL)
    assert re.search(r"target +(llvm|cuda)-", out)


# --- run


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_run_with_weights_and_labels(photo, tmp_path, suffix):
    model = create_model(TINY.name, num_classes=3)
    model.head.weight.data.zero_()
    model.head.bias.data = torch.tensor([0.0, 5.0, 1.0])
    weights = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), weights)
    else:
        pytest.importorskip("safetensors.torch").save_file(model.state_dict(), weights)
    (tmp_path / "labels.txt").write_text("cat\n[red]dog[/red]\nfox\n")
    result = run(photo, photo, *ON_REFERENCE, "--weights", weights, "--labels", tmp_path / "labels.txt")
    shown = re.findall(r"(cat|\[red\]dog\[/red\]|fox) .*?([\d.]+)%", result.stdout)
    expected = torch.tensor([5.0, 1.0, 0.0]).softmax(0) * 100
    assert [name for name, _ in shown] == ["[red]dog[/red]", "fox", "cat"] * 2
    assert [float(p) for _, p in shown[:3]] == pytest.approx(expected.tolist(), abs=0.006)
    assert result.stderr == ""


def test_run_says_what_of_the_weights_is_random(photo, tmp_path):
    result = run(photo, *ON_REFERENCE, "--top", 3)
    assert photo.name in result.stdout and "RANDOM" in result.stderr
    assert len(re.findall(r"class \d+ .*\d\.\d\d%", result.stdout)) == 3
    torch.save(create_model(TINY.name, num_classes=3).state_dict(), tmp_path / "w.pth")
    result = run(photo, *ON_REFERENCE, "--weights", tmp_path / "w.pth", "--num-classes", 7)
    assert "warning: " in result.stderr
    assert "3 classes came, the model has 7: dropped and initialised again" in result.stderr


def test_run_errors(photo, tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "w.pth").write_bytes(b"nothing")
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "none.png"], "image: required an existing file"),
        ([tmp_path], "image: required an existing file"),
        ([tmp_path / "text.png"], "image: required JPEG, PNG, "),
        ([photo, "--weights", tmp_path / "none.pth"], "path: required an existing file"),
        ([photo, "--weights", tmp_path / "w.pth"], "path: required a file that torch.load"),
        ([photo, "--weights", photo], "path: required a file ending in"),
        ([photo, "--labels", tmp_path / "none.txt"], "labels: required an existing file"),
        ([photo, "--labels", tmp_path / "gap.txt"], "labels: required one label per line"),
        ([photo, "--labels", tmp_path / "bytes.txt"], "labels: required a text file in UTF-8"),
        ([photo, "--labels", tmp_path / "two.txt", "--num-classes", 3], "labels: required 3 labels"),
    ]
    for arguments, message in cases:
        assert run(*arguments, command=error_of).startswith(message)
    assert "did you mean 'nat_mini'" in error_of("run", "nat_min", photo)


@pytest.mark.parametrize("arguments", [["--backend", "fast"], ["--top", 0], ["--input-size", 31]])
def test_options_out_of_range(photo, arguments):
    assert arguments[0] in invoke("run", TINY.name, photo, *arguments, code=2).stderr


def test_no_compiler_is_an_error(photo, cache, monkeypatch):
    monkeypatch.setattr(cxx.shutil, "which", lambda name: None)
    assert run(photo, "--backend", "compiled", command=error_of).startswith("required a C++ compiler")


# --- compiled: kernels, benchmarks, the cache


def test_compiled_run_fills_the_cache_and_agrees(photo, cache):
    outputs = [run(photo, *backend).stdout for backend in (ON_REFERENCE, ("--backend", "compiled"), ())]
    assert ["building kernels" in out for out in outputs] == [False, True, False]
    assert len(re.findall(r"heads \d+ dim 8 k 3 float32 rpb", invoke("cache", "ls").stdout)) == 2
    expected, *shown = [[float(percent) for percent in re.findall(r"class \d+ .*?([\d.]+)%", out)] for out in outputs]
    assert len(expected) == 5
    assert shown == [pytest.approx(expected, abs=0.011)] * 2
    assert re.search(r"kernels +2, ", invoke("info").stdout)
    assert "Aborted" in invoke("cache", "clear", code=1, stdin="n\n").output
    assert invoke("cache", "clear", "--yes").stdout == "2 kernels deleted\n"
    assert "no kernels in" in invoke("cache", "ls").stdout
    assert invoke("cache", "clear").stdout == "0 kernels deleted\n"


OP = ("bench", "op", "--size", 6, 7, "--heads", 2, "--head-dim", 4, "--kernel-size", 3, "--rounds", 2)
MODEL = ("bench", "model", TINY.name, "--input-size", 32, "--rounds", 2)


@pytest.mark.parametrize(
    "command",
    [OP, (*OP, "--rpb", "--stride", 2, "--dtype", "float64"), (*OP, "--causal", "--batch", 2), MODEL],
    ids=["plain", "float64", "causal", "model"],
)
def test_bench(command):
    out = invoke(*command).stdout
    assert re.search(r"compiled .* ms .*\n.*reference .* ms", out)
    assert re.search(r"speedup \d+\.\d\dx", out)
    assert "relative error" in out


def test_bench_refuses_wrong_numbers(monkeypatch):
    from tvm_na import functional

    right = functional.na2d

    def wrong(*args, backend, **options):
        out = right(*args, backend="reference", **options)
        return out * 1.001 if backend == "compiled" else out

    monkeypatch.setattr(functional, "na2d", wrong)
    out = invoke(*OP, code=1).stdout
    assert "wrong numbers: no speedup" in out
    assert not re.search(r"speedup \d", out)


def test_bench_model_refuses_wrong_logits(monkeypatch):
    from tvm_na.functional import Backend
    from tvm_na.jit import progress
    from tvm_na.models import NAT

    def set_wrong(self: NAT, backend: str) -> None:
        set_backend(self, backend)
        self.head.bias.data += 0.1  # called for one of the two models

    set_backend = NAT.set_backend
    monkeypatch.setattr(NAT, "set_backend", set_wrong)
    monkeypatch.setattr(progress, "build_kernels", lambda problems, console: 0)
    on_reference = replace(TINY, architecture=lambda **k: NAT(**{**k, "backend": Backend.REFERENCE}))
    monkeypatch.setitem(registry.SPECS, TINY.name, on_reference)
    assert "wrong numbers" in invoke(*MODEL, code=1).stdout


def test_bench_op_errors():
    assert error_of(*OP, "--dilation", 4).startswith("kernel_size: required kernel_size * dilation")
    assert error_of(*OP, "--heads", 0) == "heads: required an integer >= 1, got 0"


def test_a_models_own_size_is_taken_where_none_is_given(monkeypatch):
    monkeypatch.setitem(registry.SPECS, TINY.name, replace(TINY, preprocessing=registry.SMALL_32))
    out = invoke("info", "--model", TINY.name).stdout
    assert f"{TINY.name}, 32x32" in out and "8x8 heads 1" in out
    assert "16x16 heads 1" in invoke("info", "--model", TINY.name, "--input-size", 64).stdout


# --- parts


def test_labels_keep_order_and_spaces_inside(tmp_path):
    (tmp_path / "labels.txt").write_text("a cat\r\n dog \nçà\n", encoding="utf-8")
    assert read_labels(tmp_path / "labels.txt") == ("a cat", "dog", "çà")


def test_cache_listing_is_sorted(monkeypatch):
    modified = datetime.datetime(2026, 1, 2, 3, 4)
    entries = [
        SimpleNamespace(path=Path(p), bytes=n, modified=modified, problem=p, target="t")
        for p, n in (("b", 1500), ("a", 20))
    ]
    monkeypatch.setattr("tvm_na.jit.cache.entries", lambda: entries)
    out = invoke("cache", "ls").stdout
    assert re.search(r"a +│ t +│ 20 B +│ 2026-01-02 03:04.*\n.*b +│ t +│ 1\.5 kB", out)
