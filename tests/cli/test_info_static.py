"""``tvm-na info --model --target`` of a GPU that is not here: tables of estimates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.invoking import TINY, error_of, invoke
from tests.cuda.cuda_funcs import needs_compiler
from tvm_na.cuda.static import facts
from tvm_na.jit import estimates

OF_TINY = ("info", "--model", TINY.name, "--input-size", 32, "--target", "cuda-sm_90")


@needs_compiler
def test_kernels_are_estimated_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = invoke(*OF_TINY, "--gpu", "h200", "--batch", 4).stdout
    assert f"{TINY.name}, 32x32, batch 4, H200: estimated from the code, not run on a GPU" in first
    for row in (r"8x8 heads 1 dim 8 k 3 float32 rpb +\d+ +0 +\d", r"4x4 heads 2 dim 8 k 3 float32 rpb +\d+ +0 +\d"):
        assert len(re.findall(row, first)) == 1
    assert re.search(r"all layers together: \d+ us, estimated", first)
    assert len(list((cache / estimates.FOLDER).glob("*.json"))) == 2
    monkeypatch.setattr(facts, "facts_of", None)
    assert invoke(*OF_TINY, "--gpu", "h200", "--batch", 4).stdout == first
    (damaged, _) = (cache / estimates.FOLDER).glob("*.json")
    damaged.write_text('[{"name": 1}]')
    assert error_of(*OF_TINY, "--gpu", "h200", "--batch", 4) == "'NoneType' object is not callable"
    invoke("cache", "clear", "--yes")
    assert not list((cache / estimates.FOLDER).glob("*.json"))


def test_a_gpu_without_rates_is_told() -> None:
    out = invoke(*OF_TINY[:-1], "cuda-sm_75").stdout
    assert "heads 1 dim 8 k 3 float32 rpb" in out and "cuda-gather" in out
    assert "not estimated: gpu: required one of A100 (sm_80), H100 (sm_90), H200 (sm_90)" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", TINY.name, "--target", "cuda-sm_80", "--gpu", "H200"), "gpu: required one of A100 (sm_80)"),
        (("--model", TINY.name, "--target", "llvm-x86-avx2", "--batch", 2), "batch: required a GPU's --target"),
        (("--model", TINY.name, "--target", "llvm-x86-avx2", "--gpu", "H200"), "gpu: required a GPU's --target"),
        (("--target", "cuda-sm_90"), "target: required --model with it, got none"),
        (("--dtype", "float16"), "dtype: required --model with it, got none"),
    ],
)
def test_options_that_do_not_go_together(options: tuple[object, ...], message: str) -> None:
    assert error_of("info", *options).startswith(message)
