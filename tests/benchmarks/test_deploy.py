"""What the benchmark of artifacts concludes from what it measured."""

from __future__ import annotations

import pytest

from benchmarks.deploy import ARTIFACT, EAGER, GOALS, PEERS, WITHOUT_TORCH, Deployed
from tvm_na.measure.timing import Timing


def deployed(errors: dict[str, float] | None = None) -> Deployed:
    samples = {EAGER: (2.0, 4.0), ARTIFACT: (1.0, 3.0), WITHOUT_TORCH: (1.5, 3.0)}
    samples |= {peer: (seconds, seconds) for peer, seconds in zip(PEERS, (8.0, 5.0, 4.0), strict=True)}
    timings = {name: Timing(seconds) for name, seconds in samples.items()}
    return Deployed(timings, {**dict.fromkeys(samples, 1e-6), **(errors or {})}, {}, {})


def test_ratios_are_those_of_the_rounds():
    found = deployed()
    assert found.ratio(EAGER) == pytest.approx((0.5 + 0.75) / 2)
    assert found.best_peer == PEERS[2]
    assert found.ratio(found.best_peer) == pytest.approx((0.25 + 0.75) / 2)


def test_every_goal_has_a_ratio():
    ratios = deployed().ratios()
    assert set(ratios) == set(GOALS)
    assert ratios["without_torch"] == pytest.approx((1.5 + 1.0) / 2)


def test_wrong_numbers_do_not_count():
    found = deployed({PEERS[2]: 0.5})
    assert found.best_peer == PEERS[1] and found.ratio(PEERS[2]) is None
    assert deployed(dict.fromkeys(PEERS, 1.0)).best_peer is None
    assert deployed().ratio(None) is None
    assert deployed({ARTIFACT: 0.1}).ratio(EAGER) is None
