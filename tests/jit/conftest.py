"""What several files on the cache of kernels start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvm_na.jit import build


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a process that has not loaded a kernel from it yet."""
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_kernels", {})
    return tmp_path / "cache"
