"""Where tuning stands: which formulation and which problem come next, what is left, where the time went."""

from __future__ import annotations

import math
import time

import pytest

from tvm_na.problems.attention import NAProblem
from tvm_na.tune.state import HOPELESS, KEPT, FormulationState, ProblemState, TuneState

PROBLEM = NAProblem.make((9, 9), 3, 1, 8)


def formulation(best: float | None, trials: int = 1, default: float | None = None) -> FormulationState:
    return FormulationState("{}", "", trials, best if default is None else default, best)


def problem(*formulations: FormulationState, weight: float = 1.0) -> ProblemState:
    return ProblemState(PROBLEM, weight, list(formulations))


def test_the_best_formulation_leads_and_the_first_is_the_default() -> None:
    state = problem(formulation(4.0), formulation(2.0), formulation(None, 3))
    assert (state.best, state.default, state.improvement, state.trials) == (2.0, 4.0, 2.0, 5)
    assert state.leader is state.formulations[1]
    nothing = problem(formulation(None))
    assert (nothing.best, nothing.default, nothing.improvement, nothing.leader) == (None, None, None, None)


def test_hopeless_formulations_are_dropped_and_only_some_are_kept() -> None:
    state = problem(formulation(1.0), formulation(HOPELESS * 1.01), formulation(HOPELESS * 0.99), formulation(None))
    state.drop_hopeless()
    assert [f.open for f in state.formulations] == [True, False, True, False]
    many = problem(*(formulation(1.0 + index / 100) for index in range(KEPT + 2)))
    many.drop_hopeless()
    assert [f.open for f in many.formulations] == [True] * KEPT + [False] * 2


def test_a_slow_default_that_a_search_has_mended_is_not_hopeless() -> None:
    mended = formulation(0.9, trials=40, default=0.95 * HOPELESS)
    state = problem(formulation(1.0), mended)
    state.drop_hopeless()
    assert mended.open


def test_where_every_default_fails_the_first_formulation_is_searched() -> None:
    state = problem(formulation(None), formulation(None))
    state.drop_hopeless()
    assert [f.open for f in state.formulations] == [True, False]
    assert state.next_formulation() == 0


def test_the_search_stays_with_the_leader_at_first_and_tries_the_others_later() -> None:
    leader, other = formulation(1.0), formulation(1.2)
    state = problem(leader, other)
    turns = []
    for _ in range(12):
        turn = state.next_formulation()
        assert turn is not None
        turns.append(turn)
        state.formulations[turn].trials += 8
    assert turns[0] == 0
    assert 1 in turns
    assert turns.count(0) > turns.count(1)
    leader.open = False
    assert state.next_formulation() == 1
    other.open = False
    assert state.next_formulation() is None


def test_every_problem_gets_a_batch_before_any_gets_two_and_then_what_promises_most() -> None:
    cheap, dear = problem(formulation(1.0, 8)), problem(formulation(10.0, 8))
    state = TuneState([cheap, dear], 100)
    for p in state.problems:
        p.note_round()
    assert state.next_problem() == 0
    cheap.formulations[0].trials = 16
    cheap.note_round()
    assert cheap.promise() < math.inf
    assert state.next_problem() == 1
    dear.formulations[0].trials = 16
    dear.note_round()
    assert state.next_problem() == 1
    cheap.weight = 20.0
    assert state.next_problem() == 0


def test_what_improves_promises_more_than_what_stands_still() -> None:
    still, moving = problem(formulation(1.0, 32)), problem(formulation(1.0, 32))
    still.rounds = [(8, 1.0), (16, 1.0), (24, 1.0), (32, 1.0)]
    moving.rounds = [(8, 2.0), (16, 1.6), (24, 1.2), (32, 1.0)]
    assert moving.promise() > still.promise()
    tired = problem(formulation(1.0, 320))
    tired.rounds = [(8, 1.0), (320, 1.0)]
    assert tired.promise() < still.promise()


def test_nothing_is_next_where_all_is_exhausted() -> None:
    state = TuneState([problem(formulation(1.0))], 10)
    state.problems[0].formulations[0].open = False
    assert state.next_problem() is None


def test_time_counts_for_the_innermost_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    state = TuneState([], 10, started=0.0)
    with state.during("searching"):
        clock[0] += 1.0
        with state.during("building"):
            assert state.phase == "building"
            clock[0] += 2.0
        with state.during("measuring"):
            clock[0] += 4.0
        assert state.phase == "searching"
        clock[0] += 1.0
    assert dict(state.seconds) == {"searching": 2.0, "building": 2.0, "measuring": 4.0}


def test_the_time_left_is_that_of_the_trials_or_that_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    state = TuneState([problem(formulation(1.0, 10))], 30, started=0.0)
    assert state.seconds_left() is None
    state.first, state.measured, clock[0] = 10.0, 10, 20.0
    assert state.seconds_left() == pytest.approx(20.0)  # 10 trials in 10 s, 20 are left
    state.deadline = 25.0
    assert state.seconds_left() == pytest.approx(5.0)
    clock[0] = 40.0
    assert state.seconds_left() == 0.0
