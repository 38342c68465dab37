"""The benchmark of training on GPUs, without one: what it compares, and with what."""

from __future__ import annotations

import io
import statistics

import pytest
import torch
from rich.console import Console

from benchmarks import cuda, cuda_training
from tvm_na.measure.timing import CpuClock
from tvm_na.problems.attention import NAProblem

SMALL = NAProblem.make((9, 8), 7, 2, 32)


def test_cases_are_those_of_the_stages() -> None:
    found = cuda_training.cases()
    assert len(found) == 8 and {batch for batch, _ in found} == {128}
    assert [problem.spatial[0] for _, problem in found[:4]] == [56, 28, 14, 7]
    half = NAProblem.make((7, 7), 7, 16, 32, dtype="float16")
    assert cuda_training.bytes_of(half, 3) == 2 * cuda.bytes_of(half, 3)


def test_candidates_are_right_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_training, "copies_for", lambda _: 2)
    monkeypatch.setattr(cuda, "CudaClock", CpuClock)
    monkeypatch.setattr(cuda, "_SAMPLE_SECONDS", 1e-4)
    calls, errors, unavailable = cuda_training.candidates_of(SMALL, 3, "cpu")
    ours = {cuda_training.OURS, cuda_training.BIASED}
    assert ours <= errors.keys() and all(errors[name] <= cuda_training.BUDGET["float32"] for name in ours)
    assert errors.keys() | unavailable.keys() == ours | {peer.name for peer in cuda_training.PEERS}
    seconds = cuda.measure(cuda_training.right_ones(calls, errors, "float32"), 2)
    medians = {name: statistics.median(samples) for name, samples in seconds.items()}
    assert ours | {cuda_training.FORWARD, cuda_training.BACKWARD} <= medians.keys()
    assert all(len(samples) == 2 and min(samples) > 0 for samples in seconds.values())


def test_wrong_gradients_get_no_time() -> None:
    leaves, d_out = cuda_training.make_sets(SMALL, 3, 1, "cpu")[0]
    right = cuda_training.expected(SMALL, [t[:2] for t in leaves], d_out[:2])
    found = [torch.cat([t, t[:1]]).float() for t in right]
    assert cuda_training.error_of(found, right) < 1e-6
    found[1][1, 0, 0, 0, 0] += right[1].abs().max()
    assert cuda_training.error_of(found, right) > 0.9
    calls = dict.fromkeys((cuda_training.OURS, "flex", cuda_training.BACKWARD), print)
    assert cuda_training.right_ones(calls, {"tvm_na": 1e-6, "flex": 1e-3}, "float32").keys() == {
        cuda_training.OURS,
        cuda_training.BACKWARD,
    }
    assert not cuda_training.right_ones(calls, {"tvm_na": float("nan"), "flex": 1e-3}, "float32")


def test_results_are_told_beside_the_best_peer() -> None:
    medians = {cuda_training.OURS: 3e-6, cuda_training.FORWARD: 1e-6, cuda_training.BACKWARD: 2e-6, "flex": 6e-6}
    refused = {"case": "y", "medians": {"flex": 6e-6}, "unavailable": {}}
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(cuda_training.table_of([{"case": "x", "medians": medians, "unavailable": {}}, refused]))
    text = console.export_text()
    assert text.count("2.00x") == 2 and "refused" in text
