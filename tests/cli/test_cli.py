"""The command line, run in this process; what must be quick or must not import, in a fresh one."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")

from typer.testing import CliRunner

from tvm_na import __version__
from tvm_na.cli import app
from tvm_na.cli.classifiers import read_labels
from tvm_na.jit import build, openmp
from tvm_na.models import create_model, registry

TINY = registry.ModelSpec("tiny_for_tests", 16, (1, 1), (2, 4), 2.0, 0.0, parameters=0, kernel_size=3)


@pytest.fixture(autouse=True)
def _private(monkeypatch, tmp_path):
    """A cache, kernels and a model of this test's own; output wide enough not to wrap."""
    monkeypatch.setattr(build, "_kernels", {})
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(registry.SPECS, TINY.name, TINY)


@pytest.fixture
def photo(tmp_path) -> Path:
    image = pytest.importorskip("PIL.Image").effect_noise((80, 60), 60)
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def invoke(*arguments: object, code: int = 0, stdin: str | None = None):
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def run(*arguments: object, code: int = 0):
    return invoke("run", TINY.name, *arguments, "--input-size", 32, code=code)


def one_error(result) -> str:
    """The only line on standard error that is an error, without its mark; there is no traceback."""
    assert "Traceback" not in result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


# --- about itself


def test_version():
    assert invoke("--version").stdout == f"tvm-na {__version__}\n"


def test_help_imports_nothing_slow():
    script = (
        "import sys; from typer.testing import CliRunner; from tvm_na.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "slow = {'torch', 'tvm', 'tvm_ffi', 'numpy', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_module_is_runnable():
    command = [sys.executable, "-m", "tvm_na", "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == f"tvm-na {__version__}"


def test_info(tmp_path):
    out = invoke("info").stdout
    for wanted in (__version__, torch.__version__, "tvm_ffi", "TVM_NA_", str(tmp_path / "cache")):
        assert wanted in out
    assert re.search(r"kernels +0, 0 B", out)
    assert re.search(r"user's +none +.*shipped +", out, re.DOTALL)
    assert re.search(r"target +(llvm|cuda)-", out)


# --- run


def test_run_classifies(photo):
    result = run(photo, "--backend", "reference", "--top", 3)
    assert photo.name in result.stdout
    assert len(re.findall(r"class \d+ .*\d\.\d\d%", result.stdout)) == 3
    assert "RANDOM" in result.stderr


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
    result = run(photo, photo, "--backend", "reference", "--weights", weights, "--labels", tmp_path / "labels.txt")
    shown = re.findall(r"(cat|\[red\]dog\[/red\]|fox) .*?([\d.]+)%", result.stdout)
    expected = torch.tensor([5.0, 1.0, 0.0]).softmax(0) * 100
    assert [name for name, _ in shown] == ["[red]dog[/red]", "fox", "cat"] * 2
    assert [float(p) for _, p in shown[:3]] == pytest.approx(expected.tolist(), abs=0.006)
    assert result.stderr == ""


def test_run_says_what_of_the_weights_is_random(photo, tmp_path):
    torch.save(create_model(TINY.name, num_classes=3).state_dict(), tmp_path / "w.pth")
    result = run(photo, "--backend", "reference", "--weights", tmp_path / "w.pth", "--num-classes", 7)
    assert "warning: " in result.stderr
    assert "3 classes came, the model has 7: dropped and initialised again" in result.stderr


def test_run_errors(photo, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "w.pth").write_bytes(b"nothing")
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "none.png"], "image: required an existing file"),
        ([tmp_path], "image: required an existing file"),
        ([tmp_path / "text.png"], "image: required an image file"),
        ([photo, "--weights", tmp_path / "none.pth"], "path: required an existing file"),
        ([photo, "--weights", tmp_path / "w.pth"], "path: required a file that torch.load"),
        ([photo, "--weights", photo], "path: required a file ending in"),
        ([photo, "--labels", tmp_path / "none.txt"], "labels: required an existing file"),
        ([photo, "--labels", tmp_path / "gap.txt"], "labels: required one label per line"),
        ([photo, "--labels", tmp_path / "bytes.txt"], "labels: required a text file in UTF-8"),
        ([photo, "--labels", tmp_path / "two.txt", "--num-classes", 3], "labels: required 3 labels"),
    ]
    for arguments, message in cases:
        assert one_error(run(*arguments, code=2)).startswith(message)


def test_an_unknown_model_has_a_hint(photo):
    assert "did you mean 'nat_mini'" in one_error(invoke("run", "nat_min", photo, code=2))


@pytest.mark.parametrize("arguments", [["--backend", "fast"], ["--top", 0], ["--input-size", 31]])
def test_options_out_of_range(photo, arguments):
    assert arguments[0] in invoke("run", TINY.name, photo, *arguments, code=2).stderr


def test_no_compiler_is_an_error(photo, monkeypatch):
    monkeypatch.setattr(openmp.shutil, "which", lambda name: None)
    assert one_error(run(photo, "--backend", "compiled", code=2)).startswith("required a C++ compiler")


# --- compiled: kernels, benchmarks, the cache


def test_compiled_run_fills_the_cache_and_agrees(photo):
    reference = run(photo, "--backend", "reference").stdout
    first = run(photo, "--backend", "compiled").stdout
    assert "building kernels" in first
    listed = invoke("cache", "ls").stdout
    assert len(re.findall(r"heads \d+ dim 8 k 3 float32 rpb", listed)) == 2
    again = run(photo).stdout
    assert "building kernels" not in again
    rows = [re.findall(r"class \d+ .*?([\d.]+)%", out) for out in (reference, first, again)]
    expected, *shown = [[float(percent) for percent in row] for row in rows]
    assert len(expected) == 5
    assert shown == [pytest.approx(expected, abs=0.011)] * 2
    assert re.search(r"kernels +2, ", invoke("info").stdout)
    assert "Aborted" in invoke("cache", "clear", code=1, stdin="n\n").output
    assert invoke("cache", "clear", "--yes").stdout == "2 kernels deleted\n"
    assert "no kernels in" in invoke("cache", "ls").stdout
    assert invoke("cache", "clear").stdout == "0 kernels deleted\n"


OP = ("bench", "op", "--size", 6, 7, "--heads", 2, "--head-dim", 4, "--kernel-size", 3, "--rounds", 2)


@pytest.mark.parametrize(
    "options", [(), ("--rpb", "--stride", 2, "--dtype", "float64"), ("--causal", "--batch", 2)], ids=str
)
def test_bench_op(options):
    out = invoke(*OP, *options).stdout
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


def test_bench_op_errors():
    assert one_error(invoke(*OP, "--dilation", 4, code=2)).startswith("kernel_size: required kernel_size * dilation")
    assert one_error(invoke(*OP, "--heads", 0, code=2)) == "heads: required an integer >= 1, got 0"


def test_bench_model():
    out = invoke("bench", "model", TINY.name, "--input-size", 32, "--rounds", 2).stdout
    assert re.search(r"speedup \d+\.\d\dx", out)


def test_a_models_own_size_is_taken_where_none_is_given(monkeypatch):
    monkeypatch.setitem(registry.SPECS, TINY.name, replace(TINY, preprocessing=registry.SMALL_32))
    out = invoke("info", "--model", TINY.name).stdout
    assert f"{TINY.name}, 32x32" in out and "8x8 heads 2" in out
    assert "16x16 heads 2" in invoke("info", "--model", TINY.name, "--input-size", 64).stdout


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
    out = invoke("bench", "model", TINY.name, "--input-size", 32, "--rounds", 2, code=1).stdout
    assert "wrong numbers" in out


# --- parts


def test_labels_keep_order_and_spaces_inside(tmp_path):
    (tmp_path / "labels.txt").write_text("a cat\r\n dog \nçà\n", encoding="utf-8")
    assert read_labels(tmp_path / "labels.txt") == ("a cat", "dog", "çà")


def test_cache_listing_is_sorted(monkeypatch):
    from types import SimpleNamespace

    from tvm_na.jit import cache

    entries = [
        SimpleNamespace(path=Path(p), bytes=n, modified=datetime.datetime(2026, 1, 2, 3, 4), problem=p, target="t")
        for p, n in (("b", 1500), ("a", 20))
    ]
    monkeypatch.setattr(cache, "entries", lambda: entries)
    out = invoke("cache", "ls").stdout
    assert re.search(r"a +│ t +│ 20 B +│ 2026-01-02 03:04.*\n.*b +│ t +│ 1\.5 kB", out)
