"""The benchmark of training, on a GPU without one: what it compares, and with what."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from benchmarks import case as cases
from benchmarks import training
from benchmarks.training import BACKWARD, BIASED, BUDGET, FORWARD, OURS, TrainingCase
from tvm_na.measure.timing import Timing
from tvm_na.problems.attention import NAProblem

SMALL = NAProblem.make((9, 8), 7, 2, 32)


def test_cases_are_those_of_the_stages() -> None:
    found = training.all_cases("cuda")
    assert len(found) == 8 and {case.batch for case in found} == {128}
    assert [case.problem.spatial[0] for case in found[:4]] == [56, 28, 14, 7]


def test_candidates_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: sets rotate, and there is a bias."""
    draw = TrainingCase.draw
    monkeypatch.setattr(TrainingCase, "draw", lambda self, *n, **how: draw(self, *n, **how) * 2)
    monkeypatch.setitem(cases.PEERS, "cpu", cases.PEERS["cpu"][:2])  # the other one takes long to compile
    case = TrainingCase(SMALL, 3)
    training.run_case(case, 2, biased=True)
    ours = {OURS, BIASED}
    assert ours <= case.errors.keys() and all(case.errors[name] <= BUDGET["float32"] for name in ours)
    assert case.errors.keys() | case.unavailable.keys() == ours | {"gather", "SDPA"}
    assert case.timings.keys() >= ours | {FORWARD, BACKWARD}
    assert all(len(timing.samples) == 2 and timing.minimum > 0 for timing in case.timings.values())


def test_wrong_gradients_get_no_time() -> None:
    tensors = TrainingCase(SMALL, 3).draw(4, differentiated=True)[0]
    right = training.expected(SMALL, *(t[:2] for t in tensors))
    found = [torch.cat([t, t[:1]]).float() for t in right]
    assert cases.error_of(found, right) < 1e-6
    found[1][1, 0, 0, 0, 0] += right[1].abs().max()
    assert cases.error_of(found, right) > 0.9
    calls = dict.fromkeys((OURS, "flex", BACKWARD), lambda: None)
    for error, timed in ((1e-6, {OURS, BACKWARD}), (float("nan"), set())):
        case = TrainingCase(SMALL, errors={OURS: error, "flex": 1e-3})
        case.measure(calls, 1)
        assert case.timings.keys() == timed


def test_results_are_told_beside_the_best_peer() -> None:
    good, refused = training.all_cases("cuda")[:2]
    times = {OURS: 3e-5, FORWARD: 1e-5, BACKWARD: 2e-5, "flex": 6e-5}
    good.timings, good.errors = {n: Timing((t,)) for n, t in times.items()}, {OURS: 0.0, "flex": 0.0}
    refused.timings, refused.errors = {"flex": Timing((6e-5,))}, {"flex": 0.0, OURS: 1.0}
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(training.table_of([good, refused]))
    text = console.export_text()
    assert text.count("2.00x") == 2 and "refused" in text
    assert good.to_dict()["over_peers"] == {"flex": pytest.approx(2.0)}
