"""The journal: whole lines, whatever happened to its writer."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, fields, replace
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


@pytest.mark.parametrize(
    "change",
    [
        *({"problem": [1]}, {"choices": [1]}, {"choices": {"rows": "2"}}, {"threads": "2"}, {"threads": 10**400}),
        *(
            {"seconds": -1.0},
            {"seconds": "1"},
            {"reference": float("nan")},
            {"seconds": 10**400},
            {"batch": 0},
            {"predicted": float("inf")},
        ),
        *({"session": True}, {"structure": None}, {"failure": 1}, {"more": 1}, {"reason": {}}),
    ],
    ids=str,
)
def test_mistyped_lines_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, object]
) -> None:
    with TrialLog(tmp_path) as journal:
        journal.write(TRIAL)
    with (tmp_path / TRIAL_LOG).open("a") as file:
        file.write(json.dumps({**asdict(TRIAL), **change}) + "\n")
    assert trials_in(tmp_path) == [TRIAL]
    assert "line 2: skipped" in caplog.text


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: file.write_text("{}\n" * 5000), "of which no line is a trial"),
        (lambda file: file.write_bytes(b"[" * 100_000 + b"\n\xff\x00\n"), "of which no line is a trial"),
        (Path.mkdir, "required a trial log that can be read"),
        (os.mkfifo, "required a trial log that can be read"),
        (lambda file: file.symlink_to(file), "required a trial log that can be read"),
    ],
    ids=["objects", "bytes", "a folder", "a pipe", "a loop"],
)
def test_a_file_of_another_kind_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path], None], says: str
) -> None:
    make(tmp_path / TRIAL_LOG)
    with pytest.raises(ValueError, match=f"records: .*{says}"):
        trials_in(tmp_path)
    assert len(caplog.messages) <= 6


def test_equal_points_have_equal_names() -> None:
    assert TRIAL.point == replace(TRIAL, seconds=2.0, trial=7).point
    assert TRIAL.point != replace(TRIAL, structure="other").point
    assert TRIAL.point != replace(TRIAL, choices={"rows": 2, "keys": 8}).point
    assert len({TRIAL.point, replace(TRIAL, session=3).point}) == 1
