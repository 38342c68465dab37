"""Real runs of the tuner measure less often than for users."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from tvm_na.measure.local import Conditions


@pytest.fixture(autouse=True, scope="session")
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tvm_na.tune.run.Conditions", functools.partial(Conditions, repeats=6, budget=0.05))
        yield
