"""The benchmark of the tuner, without tuning."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import tuning
from benchmarks.tuning import DEFAULT, MODEL, RANDOM, TASKS, Found, Outcome, SearchTask
from tests.records.tuned import commit_drawn, edit_meta
from tvm_na.measure.timing import Timing
from tvm_na.problems.attention import NAProblem
from tvm_na.records.read import records_in
from tvm_na.records.write import TuningDatabase
from tvm_na.targets.target import detect_target
from tvm_na.tune.trial_log import Trial, TrialLog

TASK = SearchTask("tiny", NAProblem.make((9, 9), 3, 1, 8), 3)


def make_searched(folder: Path, ending: str = "all trials are done", trials: int = 2) -> Path:
    """A folder of records as a search leaves it."""
    commit_drawn(folder, TASK.problem, (2.0, 1.0))
    with TuningDatabase(folder, detect_target()) as database:
        database.begin_session()
        database.end_session(ending=ending)
    with TrialLog(folder) as journal:
        for number in range(trials):
            seconds = None if number else 2e-3
            journal.write(
                Trial("", 0, TASK.problem.to_json(), "{}", 1, number, None, seconds, None if seconds else "build")
            )
    return folder


def outcome_with(model: Timing, random: Timing, folder: Path, same: bool = False) -> Outcome:
    slower, faster = records_in(folder)
    found = {MODEL: Found(faster, (), 1), RANDOM: Found(faster if same else slower, (), 1)}
    return Outcome(TASK, found, {MODEL: model, RANDOM: random, DEFAULT: model})


def test_ten_different_tasks_with_seeds_of_their_own() -> None:
    assert len(TASKS) == 10
    for name in ("name", "problem", "seed"):
        assert len({getattr(task, name) for task in TASKS}) == 10
    assert {max(task.problem.dilation) for task in TASKS} == {1, 2, 4, 8}


def test_who_wins(tmp_path: Path) -> None:
    folder = make_searched(tmp_path)
    fast, slow = Timing((1.0, 3.0, 5.0)), Timing((2.0, 4.0, 5.0))
    outcomes = [outcome_with(fast, slow, folder), outcome_with(slow, fast, folder)]
    assert [outcome.advantage for outcome in outcomes] == [pytest.approx(4 / 3), pytest.approx(3 / 4)]
    assert tuning.wins(outcomes) == 1
    same = outcome_with(fast, slow, folder, same=True)
    assert same.advantage == 1.0 and tuning.wins([same]) == 0


def test_a_finished_search_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = detect_target()
    folder = make_searched(tuning.folder_of(TASK, MODEL, 2, tmp_path, target))
    monkeypatch.setattr(tuning, "tune", lambda *args, **options: pytest.fail("tuned"))
    found = tuning.search(TASK, MODEL, 2, tmp_path, target, lambda state: None)
    assert (found.best.seconds, found.sessions, found.to_dict()["failed"]) == (1e-3, 1, 1)
    assert not tuning.is_finished(tmp_path / "none", 2)
    assert tuning.is_finished(folder, 9)  # nothing is left to try
    edit_meta(folder, lambda meta: meta["sessions"][0].update(ending="interrupted"))
    assert tuning.is_finished(folder, 2) and not tuning.is_finished(folder, 9)


def test_other_trials_or_schedules_have_another_folder(tmp_path: Path) -> None:
    target = detect_target()
    given = [(TASK, MODEL, 2), (TASK, RANDOM, 2), (TASK, MODEL, 3), (replace(TASK, seed=4), MODEL, 2)]
    assert len({tuning.folder_of(task, strategy, trials, tmp_path, target) for task, strategy, trials in given}) == 4


def test_what_was_found_is_measured_interleaved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NA_NUM_THREADS", "1")
    slower, faster = records_in(make_searched(tmp_path))
    found = {MODEL: Found(faster, (), 1), RANDOM: Found(slower, (), 1)}
    outcome = tuning.compare(TASK, found, detect_target(), rounds=2)
    assert all(len(outcome.timings[name].samples) == 2 for name in (MODEL, RANDOM, DEFAULT))
    json.dumps(outcome.to_dict())
    assert tuning._search_table([outcome]).row_count == 1


def test_a_tuner_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RuntimeError, match="tune nat_tiny --trials 4 .* ended with 1"):
        tuning._tune_in_a_process("nat_tiny", 4, tmp_path)
