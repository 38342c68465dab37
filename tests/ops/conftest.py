"""Fixtures of tests of operators."""

from __future__ import annotations

import pytest

from tests.ops.pretended_gpu import PretendedGpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PretendedGpu:
    return PretendedGpu(monkeypatch)
