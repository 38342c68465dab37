"""Timing, errors and the refusal of speedups."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.conftest import TOLERANCE
from tvm_na.measure.timing import Timing, format_speedup, format_time, measure, speedup, versions
from tvm_na.reference.accuracy import ERROR_BUDGET, relative_error


def test_timing_statistics():
    timing = Timing((4.0, 1.0, 2.0, 3.0, 10.0))
    assert (timing.median, timing.minimum, timing.maximum, timing.spread) == (3.0, 1.0, 10.0, 2.0)
    assert json.loads(json.dumps(timing.to_dict()))["samples"] == [4.0, 1.0, 2.0, 3.0, 10.0]
    assert Timing((1.0,)).spread == 0.0
    with pytest.raises(ValueError, match="samples: required at least one"):
        Timing(())


def test_candidates_are_interleaved():
    order: list[str] = []
    functions = {name: (lambda name=name: order.append(name)) for name in "abc"}
    timings = measure(functions, rounds=4, sample_time=0.0, warmup_time=0.0)
    assert list(timings) == ["a", "b", "c"]
    assert all(len(t.samples) == 4 and t.calls == 1 and t.minimum > 0 for t in timings.values())
    # Two calls of warm-up each; then, per round, one untimed and one timed call of each, another one first.
    assert "".join(order) == "aabbcc" + "aabbcc" + "bbccaa" + "ccaabb" + "aabbcc"


def test_a_sample_lasts_long_enough():
    timing = measure({"f": lambda: None}, rounds=2, sample_time=1e-3, warmup_time=1e-3)["f"]
    assert timing.calls > 100


@pytest.mark.parametrize(
    ("functions", "options", "message"),
    [
        ({}, {}, "functions: required at least one"),
        ({"f": int}, {"rounds": 0}, "rounds: required an integer >= 1, got 0"),
        ({"f": int}, {"rounds": True}, "rounds: required an integer >= 1, got True"),
        ({"f": int}, {"sample_time": -1.0}, "sample_time: required seconds >= 0, got -1"),
        ({"f": int}, {"warmup_time": math.nan}, "warmup_time: required seconds >= 0, got nan"),
    ],
)
def test_measure_refuses(functions, options, message):
    with pytest.raises(ValueError, match=message):
        measure(functions, **options)


# --- numbers


@pytest.mark.parametrize(
    ("out", "right", "error"),
    [
        ([1.5, -4.0], [1.0, -4.0], 0.125),  # of the largest
        ([1.0, math.nan], [1.0, 1.0], math.inf),
        ([1.0, math.inf], [1.0, 1.0], math.inf),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1.0, 1.0], [0.0, 0.0], math.inf),
        ([], [], 0.0),
    ],
)
def test_relative_error(out, right, error):
    assert relative_error(torch.tensor(out), torch.tensor(right, dtype=torch.float64)) == error


def test_relative_error_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"out: required the reference's shape \(2,\), got \(3,\)"):
        relative_error(torch.zeros(3), torch.zeros(2))


def test_the_budget_is_that_of_the_tests():
    assert ERROR_BUDGET == TOLERANCE


def test_no_speedup_for_wrong_numbers():
    fast, slow = Timing((1.0,)), Timing((3.0,))
    assert speedup(fast, slow, 1e-6, 2e-6) == 3.0
    assert speedup(fast, slow, 3e-6, 2e-6) is None
    assert speedup(fast, slow, math.nan, 2e-6) is None
    assert (format_speedup(3.0), format_speedup(None)) == ("3.00x", "wrong numbers")


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.53e-3, "1.53 ms"), (0.0237, "23.7 ms"), (0.2, "200 ms"), (3e-6, "0.0030 ms")]
)
def test_times_for_people(seconds, text):
    assert format_time(seconds) == text


def test_versions_are_known():
    assert versions()["torch"] == torch.__version__
    assert set(versions()) == {"python", "tvm_na", "torch", "tvm", "tvm_ffi"}
