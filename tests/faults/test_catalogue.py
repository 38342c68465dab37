"""The list of planted faults does not rot: ``python -m tests.faults`` plants them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.catalogue import FAULTS, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_still_be_planted(fault: Fault) -> None:
    assert fault.problem() is None
    assert fault.planted != fault.text


def test_a_fault_whose_text_is_gone_is_told(tmp_path: Path) -> None:
    fault = Fault("some", "a.py", "x = 1", "x = 2", ())
    assert fault.problem(tmp_path) == "a.py is no file"
    (tmp_path / "a.py").write_text("x = 1\n", encoding="utf-8")
    assert fault.problem(tmp_path) is None
    fault.plant(tmp_path)
    assert (tmp_path / "a.py").read_text(encoding="utf-8") == "x = 2\n"
    assert fault.problem(tmp_path) == "required 'x = 1' in a.py once, got it 0 times"
