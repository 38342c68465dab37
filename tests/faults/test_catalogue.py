"""The list of planted faults does not rot: ``python -m tests.faults`` plants them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.catalogue import FAULTS, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_still_be_planted(fault: Fault) -> None:
    assert fault.file().is_file()
    assert fault.planted != fault.text


def test_a_fault_is_planted_in_the_one_file_that_has_its_text(tmp_path: Path) -> None:
    fault = Fault("some", "room", "x = 1", "x = 2", ())
    (tmp_path / "room" / "deeper").mkdir(parents=True)
    file = tmp_path / "room" / "deeper" / "a.py"
    for text, times in (("", 0), ("x = 1\nx = 1\n", 2)):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=f"text: required 'x = 1' in room once, got it {times} times"):
            fault.plant(tmp_path)
    file.write_text("x = 1\n", encoding="utf-8")
    fault.plant(tmp_path)
    assert file.read_text(encoding="utf-8") == "x = 2\n"
    with pytest.raises(ValueError, match="tests: required files, got tests/gone.py"):
        Fault("some", "room", "x = 2", "x = 1", ("tests/gone.py",)).plant(tmp_path)
