"""Linear layers of artifacts that run with PyTorch: whose kernels compute them, and with which weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import tvm_na
from tests.deploy.artifacts import CLASSES, SIZE
from tvm_na.deploy import manifest
from tvm_na.deploy.aoti import linear
from tvm_na.deploy.request import Request, checked_autotune
from tvm_na.measure.linear import LIBRARY, OURS
from tvm_na.measure.timing import Timing
from tvm_na.problems.dense import DenseProblem
from tvm_na.records.select import Selection
from tvm_na.targets.target import detect_target, parse_target

FIRST, SECOND = DenseProblem.make(6, 12, 21, activation="gelu"), DenseProblem.make(6, 21, 12, residual=True)


def request_for(autotune: bool, batch: int | None = None, **others: Any) -> Request:
    unused: dict[str, Any] = dict.fromkeys(("model", "reference", "example", "precision", "weights_dtype", "runtime"))
    unused |= {"runs_here": True, "format": "aoti", "folder": Path()}
    fixed = {**unused, "target": detect_target(), "records": "off", "report": lambda line: None}
    return Request(**{**fixed, **others}, batch=batch, autotune=autotune)


def test_the_faster_one_is_taken(monkeypatch) -> None:
    pretended = {FIRST: ((0.001, 0.003, 0.002), (0.002, 0.004, 0.001)), SECOND: ((0.002,), (0.0015,))}
    monkeypatch.setattr(
        linear, "times", lambda p, _: dict(zip((OURS, LIBRARY), map(Timing, pretended[p]), strict=True))
    )
    said: list[str] = []
    found = linear.decide(pretended, request_for(True, report=said.append))
    assert found[FIRST] == linear.Decision(True, "ours 2.00 ms, the library's 2.00 ms")  # in two rounds of three
    assert found[SECOND] == linear.Decision(False, "ours 2.00 ms, the library's 1.50 ms")
    assert said == [f"measuring the linear layer {problem}" for problem in pretended]


def test_where_nothing_is_measured_tuned_ones_are_taken(monkeypatch) -> None:
    def selected(problem: DenseProblem, target: Any, mode: str) -> Selection:
        assert mode == "user"
        return Selection("record" if problem == FIRST else "nearest", None, "")

    monkeypatch.setattr(linear, "select", selected)
    found = linear.decide([FIRST, SECOND], request_for(False, records="user"))
    assert found[FIRST] == linear.Decision(True, "not measured; a tuning record of it")
    assert found[SECOND] == linear.Decision(False, "not measured; no tuning record of it")


@pytest.mark.parametrize(
    ("target", "wanted", "measured"),
    [("native", True, True), ("native", False, False), ("llvm-aarch64-neon", True, False)],
)
def test_what_is_not_this_machine_is_not_measured(target: str, wanted: bool, measured: bool) -> None:
    assert checked_autotune(wanted, parse_target(target)) is measured


def test_int8_weights_have_kernels_of_ours_where_nothing_is_measured() -> None:
    narrow = dataclasses.replace(FIRST, weight_dtype="int8")
    reason = "not measured; the library has no kernel for int8 weights"
    assert linear.decide([narrow], request_for(False)) == {narrow: linear.Decision(True, reason)}


@pytest.mark.parametrize("weight_dtype", [None, "int8"])
@pytest.mark.parametrize("batch", [None, 3])
def test_both_are_timed(monkeypatch, batch: int | None, weight_dtype: str | None) -> None:
    """In turns, and they compute the whole layer for the artifact's batch."""
    seen: list[torch.Size] = []

    def timed(functions: dict[str, Any], **options: Any) -> dict[str, Timing]:
        seen.extend(function().shape for function in functions.values())
        return {name: Timing((1.0,)) for name in functions}

    monkeypatch.setattr("tvm_na.measure.linear.measure", timed)
    found = linear.times(dataclasses.replace(FIRST, weight_dtype=weight_dtype), request_for(True, batch))
    assert found.keys() == {OURS, LIBRARY}
    assert seen == [(batch or 1, 6, 21), (6 * (batch or 1), 21)]


def test_linear_layers_with_kernels_of_ours(aoti, model) -> None:
    """The manifest and the command say which and why; the model has the weights that kernels read, those alone."""
    found = manifest.read_manifest(aoti.path)
    ours = {p["text"]: p["layers"] for p in found.problems if "heads" not in p["problem"]}
    assert ours == {about["text"]: about["layers"] for about in found.code["linear"] if about["ours"]}
    assert ours["64 channels 16->32 float32 bias gelu"] == ours[f"1 channels 32->{CLASSES} float32 bias"] == 1
    left = {about["text"]: about["layers"] for about in found.code["linear"] if not about["ours"]}
    assert all(text in aoti.said[0] for text in (*ours, "3 layers, AOTInductor; as the test wants it"))
    assert left == {"64 channels 16->16 float32 bias": 3, "16 channels 32->32 float32 bias": 3}
    content = b"".join(file.read_bytes() for file in (aoti.path / "model").rglob("*") if file.is_file())
    weight = model.levels[0].blocks[0].mlp.fc1.weight.detach()
    assert content.count(weight[:4, 0].numpy().tobytes()) == 1  # a few channels of a block
    assert content.count(weight[0, :4].numpy().tobytes()) == 0


def test_weights_are_read_where_they_lie(aoti) -> None:
    """Aligned for kernels of ours: operators copy no tensor of a model."""
    artifact, images = tvm_na.load(aoti.path), torch.randn(1, 3, SIZE, SIZE)
    with torch.profiler.profile() as profile:
        artifact(images)
    counts = {event.key: event.count for event in profile.key_averages()}
    namespace = artifact.manifest.code["namespace"]
    assert counts[f"{namespace}::dense"] == 7 and counts[f"{namespace}::attend"] == 2
    assert "aten::clone" not in counts and "aten::copy_" not in counts
