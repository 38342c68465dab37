"""What a result is read with."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import machine


def test_the_driver_is_known_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.driver_version() is None
    for answer, expected in (("echo 580.159.03; echo 580.159.03", "580.159.03"), ("exit 9", None), ("true", None)):
        tool.write_text(f"#!/bin/sh\n{answer}\n")
        tool.chmod(0o755)
        assert machine.driver_version() == expected
