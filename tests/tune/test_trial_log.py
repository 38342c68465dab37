"""The journal: whole lines, whatever happened to its writer."""

from __future__ import annotations

import json
import logging
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tvm_na.tune.trial_log import TRIAL_LOG, Trial, TrialLog, trials_in

TRIAL = Trial("2026-01-01T00:00:00+00:00", 0, "{}", "{}", 2, 0, None, 1e-3, None, {"rows": 2, "keys": 4}, "plain")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert trials_in(tmp_path) == []
    failed = replace(TRIAL, trial=1, predicted=0.5, seconds=None, failure="crash")
    with TrialLog(tmp_path) as journal:
        journal.write(TRIAL)
        assert trials_in(tmp_path) == [TRIAL]  # at once
        journal.write(failed)
    with TrialLog(tmp_path) as journal:
        journal.write(TRIAL)
    assert trials_in(tmp_path) == [TRIAL, failed, TRIAL]
    line = json.loads((tmp_path / TRIAL_LOG).read_text().splitlines()[0])
    assert line.keys() == {f.name for f in fields(Trial)}


def test_a_torn_line_costs_itself_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with TrialLog(tmp_path) as journal:
        journal.write(TRIAL)
    with (tmp_path / TRIAL_LOG).open("ab") as file:
        file.write(b'{"time": "20')
    with TrialLog(tmp_path) as journal:
        journal.write(TRIAL)
    with caplog.at_level(logging.WARNING):
        assert trials_in(tmp_path) == [TRIAL, TRIAL]
    assert "line 2" in caplog.text


def test_equal_points_have_equal_names() -> None:
    assert TRIAL.point == replace(TRIAL, seconds=2.0, trial=7).point
    assert TRIAL.point != replace(TRIAL, structure="other").point
    assert TRIAL.point != replace(TRIAL, choices={"rows": 2, "keys": 8}).point
    assert len({TRIAL.point, replace(TRIAL, session=3).point}) == 1
