"""What the tests of the commands start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.invoking import TINY
from tvm_na.jit import build
from tvm_na.models import registry
from tvm_na.records import index, rejections


@pytest.fixture(autouse=True)
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of this test's own, nothing remembered, and a small model. Kernels on disk are shared."""
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("TVM_NA_RECORDS", "user")
    monkeypatch.setitem(registry.SPECS, TINY.name, TINY)
    for owner, name in ((build, "_kernels"), (rejections, "_rejected"), (index, "_loaded")):
        monkeypatch.setattr(owner, name, {})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"
