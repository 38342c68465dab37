"""Tuning from end to end: once for real, otherwise with kernels whose times are invented."""

from __future__ import annotations

import errno
import functools
import json
import logging
import math
import random
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.records.tuned import edit_line
from tests.tune.runs import FakeBuilder, FakeDevice, run
from tvm_na.measure.local import Kernel, Measured
from tvm_na.measure.worker_pool import Outcome
from tvm_na.problems.attention import NAProblem
from tvm_na.records import meta as records_meta
from tvm_na.records import write as records_write
from tvm_na.records.files import META
from tvm_na.records.maintain import prune
from tvm_na.records.meta import read_meta
from tvm_na.records.read import records_in
from tvm_na.records.write import TuningDatabase
from tvm_na.targets.target import detect_target, list_targets, parse_target
from tvm_na.tune import metaschedule
from tvm_na.tune import session as tune_session
from tvm_na.tune.builder import Builder, Built, Source
from tvm_na.tune.features import Features, Mutator, read_point
from tvm_na.tune.logs import logging_to
from tvm_na.tune.options import SearchOptions
from tvm_na.tune.run import TuneResult, tune
from tvm_na.tune.session import Candidate, Session
from tvm_na.tune.state import TuneState
from tvm_na.tune.tasks import Formulation, formulations_of
from tvm_na.tune.trial_log import TrialLog, trials_in

PROBLEM = NAProblem.make((9, 9), 3, 1, 8)
TARGET = detect_target()


#: Scheduling all sketches takes a second, which every run would need.
KNOWN_FORMULATIONS = functools.lru_cache(formulations_of)


@pytest.fixture(scope="module")
def formulations() -> list[Formulation]:
    return KNOWN_FORMULATIONS(PROBLEM, TARGET)


# --- for real


#: Phase and trials at each call of the observer of the real run.
STATES: list[tuple[str, int]] = []


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, formulations: Any) -> TuneResult:
    """A run with the defaults of all formulations, those of the sketches of one, and six more."""

    def observe(state: TuneState) -> None:
        STATES.append((state.phase, state.trials))

    folder = tmp_path_factory.mktemp("real")
    trials = len(formulations) + len(formulations[0].spaces) - 1 + 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tvm_na.tune.state.KEPT", 1)
        return run(PROBLEM, TARGET, trials=trials, output=folder, threads=1, candidates=3, observer=observe)


def test_every_trial_is_recorded(real: TuneResult) -> None:
    trials, records = trials_in(real.folder), records_in(real.folder)
    assert len(trials) == real.state.trials == real.state.measured == real.state.limit
    assert [t.trial for t in trials] == list(range(len(trials)))
    assert {(t.problem, t.threads, t.session) for t in trials} == {(PROBLEM.to_json(), 1, 0)}
    measured = [t for t in trials if t.failure is None]
    assert [t.seconds for t in measured] == [r.seconds for r in records]
    assert [t.formulation for t in measured] == [r.formulation for r in records]
    assert all(len(r.run_secs) >= 3 and r.threads == 1 and r.problem == PROBLEM for r in records)
    assert len({t.point for t in trials}) == len(trials)


def test_the_default_of_each_formulation_comes_first(real: TuneResult, formulations: list[Formulation]) -> None:
    first = {t.formulation: t for t in trials_in(real.folder)[: len(formulations)]}  # in whatever order they ended
    assert first.keys() == {f.text for f in formulations}
    for formulation in formulations:
        trial = first[formulation.text]
        assert trial.structure == formulation.default.sketch
        assert dict(trial.choices) == {c.name: c.value for c in formulation.default.parameters}
        assert trial.predicted is None
    problem = real.state.problems[0]
    assert problem.default == first[formulations[0].text].seconds
    assert problem.best == min(t.seconds for t in trials_in(real.folder) if t.seconds is not None)
    assert problem.improvement is not None and problem.improvement >= 1.0


def test_the_default_of_each_sketch_of_those_that_are_kept_comes_next(
    real: TuneResult, formulations: list[Formulation]
) -> None:
    trials = trials_in(real.folder)
    defaults, rest = trials[: len(formulations)], trials[len(formulations) :]
    kept = min(defaults, key=lambda t: t.seconds or math.inf).formulation
    spaces = next(f for f in formulations if f.text == kept).spaces
    assert {t.structure for t in rest[: len(spaces) - 1]} == set(list(spaces)[1:])
    assert {t.formulation for t in rest} == {kept}
    for trial in rest[: len(spaces) - 1]:
        assert dict(trial.choices) == {c.name: c.value for c in spaces[trial.structure].parameters}


def test_the_cost_model_predicts_once_it_has_learnt(real: TuneResult) -> None:
    predicted = [t.predicted for t in trials_in(real.folder)]
    assert all(score is not None and math.isfinite(score) for score in predicted[-3:])


def test_a_session_says_how_it_went(real: TuneResult) -> None:
    meta = read_meta(real.folder)
    assert meta is not None
    session = meta.sessions[0]
    assert session["ending"] == real.state.ending == "all trials are done"
    assert (session["seed"], session["threads"], session["strategy"]) == (0, 1, "evolutionary")
    assert {"building", "measuring", "searching"} <= session["seconds"].keys()
    assert 0 < session["first_measurement"] <= session["elapsed"]
    assert {phase for phase, _ in STATES} >= {"starting", "building", "measuring", "searching", "done"}
    assert [count for _, count in STATES] == sorted(count for _, count in STATES)
    assert "TaskScheduler picks Task" in (real.folder / "tune.log").read_text()


def test_the_same_command_continues(real: TuneResult) -> None:
    before = trials_in(real.folder)
    again = run(PROBLEM, TARGET, trials=len(before), output=real.folder, threads=1)
    assert (again.state.measured, again.state.ending) == (0, "all trials are done")
    assert again.state.problems[0].default == real.state.problems[0].default
    assert again.state.problems[0].best == real.state.problems[0].best
    more = run(PROBLEM, TARGET, trials=len(before) + 2, output=real.folder, threads=1, seed=1)
    trials = trials_in(real.folder)
    assert more.state.measured == 2
    assert trials[: len(before)] == before
    assert [t.trial for t in trials] == list(range(len(before) + 2))
    assert [t.session for t in trials[-2:]] == [2, 2]
    assert len({t.point for t in trials}) == len(trials)


def test_a_record_that_says_more_than_its_space_is_not_learnt_from(real: TuneResult, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(real.folder, tmp_path / "forged"))
    edit_line(folder, 1, lambda record: record[1][0][0].append(["Parallel", ["l1"], [], []]))
    again = run(PROBLEM, TARGET, trials=1, output=folder, threads=1)
    assert again.state.measured == 0
    assert "line 1: skipped, its trace has Parallel" in (folder / "tune.log").read_text()


def test_what_was_made_compact_is_learnt_from(
    real: TuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(real.folder, tmp_path / "compact"))
    prune(folder, 2)
    known: list[float] = []
    monkeypatch.setattr(Session, "remember", lambda self, slot, trace, seconds, about: known.append(seconds))
    again = run(PROBLEM, TARGET, trials=1, output=folder, threads=1)
    assert again.state.measured == 0
    assert sorted(known) == sorted(record.seconds for record in records_in(folder)) and len(known) == 2


# --- with invented times

Cost = Callable[[Candidate], "float | str"]


def invent(monkeypatch: pytest.MonkeyPatch, device: FakeDevice) -> None:
    monkeypatch.setattr("tvm_na.tune.run.Builder", FakeBuilder)
    monkeypatch.setattr("tvm_na.tune.run.formulations_of", KNOWN_FORMULATIONS)
    monkeypatch.setattr("tvm_na.tune.run.LocalDevice.measurer", lambda _, *how: device.measurer(*how))
    monkeypatch.setattr("tvm_na.tune.run.workers.start_server", lambda: None)


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> Callable[[Cost], None]:
    """Replaces building and measuring by a function of the candidate: seconds, or a failure."""

    def install(cost: Cost) -> None:
        def measure(self: Session, candidates: Sequence[Candidate], files: Sequence[Path]) -> None:
            with self.state.during("measuring"):
                for candidate in candidates:
                    found = "stopped" if self.state.stopped() else cost(candidate)
                    self._ended(candidate, Measured((), found) if isinstance(found, str) else Measured((found,)))

        invent(monkeypatch, FakeDevice())
        monkeypatch.setattr(tune_session.Session, "measure", measure)

    return install


def smooth(candidate: Candidate) -> float:
    """A cost that depends on each parameter, on the sketch and on the formulation."""
    rng = random.Random(candidate.slot.state.text + candidate.sketch)
    cost = 1.0 + 0.2 * rng.random()
    for parameter in candidate.slot.formulation.spaces[candidate.sketch].parameters:
        wanted = random.Random(parameter.name).choice(parameter.options)
        cost *= 1.0 + 0.3 * abs(math.log2(candidate.parameters[parameter.name] / wanted))
    return cost * 1e-3


def test_failures_are_counted_by_reason_and_not_recorded(tmp_path: Path, invented: Any) -> None:
    def cost(candidate: Candidate) -> float | str:
        drawn = random.Random(str(candidate.point)).random()
        return "crash" if drawn < 0.3 else "wrong numbers" if drawn < 0.5 else 1e-3

    invented(cost)
    result = run(PROBLEM, TARGET, trials=16, output=tmp_path)
    trials = trials_in(tmp_path)
    failures = Counter(t.failure for t in trials if t.failure)
    assert result.state.problems[0].failures == failures
    assert failures.keys() == {"crash", "wrong numbers"}
    assert len(trials) == 16
    assert len(records_in(tmp_path)) == 16 - failures.total()
    assert "wrong numbers: 9x9" in (tmp_path / "tune.log").read_text()
    # What failed is not tried again, and still counts.
    more = run(PROBLEM, TARGET, trials=20, output=tmp_path, seed=1)
    assert more.state.measured == 4
    assert len({t.point for t in trials_in(tmp_path)}) == 20
    assert more.state.problems[0].failures.total() >= failures.total()


def test_a_problem_whose_default_fails_is_still_tuned(tmp_path: Path, invented: Any) -> None:
    invented(lambda c: "crash" if c.sketch == next(iter(c.slot.formulation.spaces)) else 1e-3)
    state = run(PROBLEM, TARGET, trials=14, output=tmp_path).state
    assert state.problems[0].default is None
    assert state.problems[0].best == 1e-3


def test_hopeless_formulations_get_no_trials(tmp_path: Path, invented: Any, formulations: list[Formulation]) -> None:
    chosen = formulations[-1].text
    invented(lambda c: smooth(c) * (1.0 if c.slot.state.text == chosen else 1000.0))
    state = run(PROBLEM, TARGET, trials=len(formulations) + 4, output=tmp_path).state
    by_text = {f.text: f.trials for f in state.problems[0].formulations}
    assert by_text.pop(chosen) == 5
    assert set(by_text.values()) == {1}
    assert state.problems[0].leader is not None and state.problems[0].leader.text == chosen


def best_of(tmp_path: Path, strategy: Any, seed: int) -> float:
    options = {"strategy": strategy, "jobs": 1, "defaults_first": False, "only_default_formulation": True}
    state = run(PROBLEM, TARGET, trials=32, output=tmp_path / f"{strategy}{seed}", seed=seed, **options)
    best = state.state.problems[0].best
    assert best is not None
    return best


@pytest.mark.slow
def test_the_search_beats_random_points(tmp_path: Path, invented: Any) -> None:
    invented(smooth)
    assert best_of(tmp_path, "evolutionary", 0) < best_of(tmp_path, "random", 0)


def test_equal_seeds_draw_equal_points(tmp_path: Path, invented: Any) -> None:
    invented(smooth)

    def points(name: str, seed: int, strategy: Any) -> list[tuple[object, ...]]:
        options = {"jobs": 1, "only_default_formulation": True, "strategy": strategy}
        run(PROBLEM, TARGET, trials=6, output=tmp_path / name, seed=seed, **options)
        return [t.point for t in trials_in(tmp_path / name)]

    assert points("a", 3, "evolutionary") == points("b", 3, "evolutionary")
    assert points("c", 3, "random") == points("d", 3, "random") != points("e", 4, "random")


def test_other_threads_count_for_themselves(tmp_path: Path, invented: Any, formulations: list[Formulation]) -> None:
    invented(smooth)
    trials = len(formulations)
    run(PROBLEM, TARGET, trials=trials, output=tmp_path, threads=1)
    state = run(PROBLEM, TARGET, trials=trials, output=tmp_path, threads=2).state
    assert state.measured == trials
    assert sorted(r.threads for r in records_in(tmp_path)) == [1] * trials + [2] * trials


def test_a_small_space_is_searched_to_its_end(
    tmp_path: Path, invented: Any, formulations: list[Formulation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the default is known to fail, so that no batch has anything new."""
    invented(smooth)

    def known(self: Session, candidates: Sequence[Candidate]) -> list[Built]:
        for candidate in candidates:
            candidate.failure = "failed before"
        return [Built(None, "failed before") for _ in candidates]

    monkeypatch.setattr(tune_session.Session, "build", known)
    options = {"candidates": 4, "defaults_first": False, "only_default_formulation": True}
    for strategy in ("random", "evolutionary"):
        state = run(PROBLEM, TARGET, output=tmp_path / strategy, strategy=strategy, **options).state
        assert (state.measured, state.ending) == (0, "nothing is left to try")


def test_the_time_limit_ends_it(tmp_path: Path, invented: Any) -> None:
    states: list[TuneState] = []

    def cost(candidate: Candidate) -> float:
        states[-1].deadline = 0.0
        return 1e-3

    invented(cost)
    state = run(PROBLEM, TARGET, output=tmp_path, time_limit=600.0, observer=states.append).state
    assert (state.measured, state.ending) == (1, "the time is up")
    assert len(trials_in(tmp_path)) == 1


@pytest.mark.parametrize("after", [2, 9])
def test_ctrl_c_ends_it_in_good_order(tmp_path: Path, invented: Any, after: int) -> None:
    count = []

    def cost(candidate: Candidate) -> float:
        count.append(1)
        if len(count) == after:
            signal.raise_signal(signal.SIGINT)
        return smooth(candidate)

    invented(cost)
    before = signal.getsignal(signal.SIGINT)
    state = run(PROBLEM, TARGET, trials=64, output=tmp_path).state
    assert signal.getsignal(signal.SIGINT) is before
    assert (state.measured, state.ending) == (after, "interrupted")
    assert len(records_in(tmp_path)) == len(trials_in(tmp_path)) == after
    meta = read_meta(tmp_path)
    assert meta is not None and meta.sessions[-1]["ending"] == "interrupted"
    with TuningDatabase(tmp_path, TARGET):  # nobody holds it any more
        pass


def test_an_error_of_ours_comes_through_the_search(tmp_path: Path, invented: Any) -> None:
    def cost(candidate: Candidate) -> float:
        if candidate.predicted is not None:
            raise RuntimeError("rpc: required devices, got none")
        return smooth(candidate)

    invented(cost)
    with pytest.raises(RuntimeError, match="rpc: required devices, got none"):
        run(PROBLEM, TARGET, trials=64, output=tmp_path)
    assert records_in(tmp_path)


@pytest.mark.parametrize(
    ("owner", "name"), [(records_write, "append"), (records_meta, "write_atomically"), (TrialLog, "write")]
)
def test_a_full_disk_is_a_sentence(
    tmp_path: Path, invented: Any, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """From some trial on, in the search, only half of what is written goes into one of the files."""
    real, full, options = getattr(owner, name), False, {"candidates": 3, "only_default_formulation": True}

    def write(*arguments: Any) -> Any:
        if not full:
            return real(*arguments)
        if name == "append":
            real(arguments[0], arguments[1][: len(arguments[1]) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def cost(candidate: Candidate) -> float:
        nonlocal full
        full = candidate.predicted is not None
        return smooth(candidate)

    invented(cost)
    monkeypatch.setattr(owner, name, write)
    with pytest.raises(
        RuntimeError, match=f"records: required room .*{tmp_path}.*No space left.*is kept, and the same"
    ):
        run(PROBLEM, TARGET, trials=9, output=tmp_path, **options)
    full = False
    before = len(records_in(tmp_path))
    assert before >= len(trials_in(tmp_path)) >= 3
    with TuningDatabase(tmp_path, TARGET):  # as the next run opens it
        assert len(records_in(tmp_path)) == before


def test_a_log_goes_without_what_there_is_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(handler: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with logging_to(tmp_path / "tune.log"):
        with monkeypatch.context() as patch:
            patch.setattr(logging.StreamHandler, "flush", full)
            logging.getLogger("tvm_na.tune").warning("there is no room for this")
        logging.getLogger("tvm_na.tune").warning("%d", "a mistake of ours")
    said = capsys.readouterr()
    assert "No space" not in said.err and "a mistake of ours" in said.err


@pytest.mark.parametrize("outcome", [Outcome(("build", "ld: no space")), Outcome(None, "crash", "LLVM ERROR")], ids=str)
def test_a_build_that_fails_for_want_of_room_is_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome
) -> None:
    class Pool:
        def __init__(self, *_: object) -> None:
            pass

        def run(self, function: Any, calls: Any, timeout: float, done: Any, stopped: Any) -> None:
            done(0, outcome)

    monkeypatch.setattr("tvm_na.tune.builder.workers.Pool", Pool)
    builder = Builder(1, TARGET, tmp_path, tmp_path / "log")
    assert builder.build([Source("")])[0].failure in ("build", "build crash")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            builder.build([Source("")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_times_are_for_one_speed_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However fast the machine is while a candidate is measured, in whichever session."""
    speed = 1.0

    def times(kernel: Kernel) -> Measured:
        nonlocal speed
        run_secs, reference = (3.0 / speed, 4.0 / speed), (2.0 / speed, 2.0 / speed)
        speed *= 0.7
        return Measured(run_secs, reference_secs=reference if kernel.reference else ())

    invent(monkeypatch, FakeDevice(times))
    for count in (3, 6):
        run(PROBLEM, TARGET, trials=count, output=tmp_path, threads=1)
        speed = 0.1
    trials = trials_in(tmp_path)
    assert [trial.reference for trial in trials] == [3.5] * 6  # when it was measured for the first time, alone
    assert [trial.seconds for trial in trials] == pytest.approx([3.5 / 2 * 3.5] * 6)
    assert all(record.run_secs == pytest.approx((3.5 / 2 * 3, 3.5 / 2 * 4)) for record in records_in(tmp_path))


def test_without_a_reference_candidates_are_measured_alone(tmp_path: Path, invented: Any) -> None:
    invented(smooth)
    run(PROBLEM, TARGET, trials=3, output=tmp_path, threads=1)
    assert [trial.reference for trial in trials_in(tmp_path)] == [None] * 3
    assert "measured without a reference, its default kernel fails: run" in (tmp_path / "tune.log").read_text()


def test_logging_is_as_before(tmp_path: Path, invented: Any, capfd: pytest.CaptureFixture[str]) -> None:
    invented(smooth)
    logger = logging.getLogger("tvm.s_tir.meta_schedule")
    before = (logger.level, logger.propagate, list(logger.handlers))
    run(PROBLEM, TARGET, trials=12, output=tmp_path)
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
    assert capfd.readouterr() == ("", "")


# --- points


def test_mutations_are_points_of_the_space(formulations: list[Formulation]) -> None:
    import tvm
    from tvm import s_tir

    formulation = formulations[0]
    default = formulation.default
    features = Features(formulations)
    mutate = Mutator(formulation, lambda *point: features.of(0, *point), lambda rows: None, seed=0)
    names = [c.name for c in default.parameters]
    options = {c.name: c.options for c in default.parameters}
    seen = set()
    for _ in range(20):
        trace = mutate(default.schedule.trace)
        sketch, parameters = read_point(formulation, trace)
        assert (sketch, list(parameters)) == (default.sketch, names)
        assert all(parameters[name] in options[name] for name in names)
        changed = [c.name for c in default.parameters if parameters[c.name] != c.value]
        assert 1 <= len(changed) <= 3
        seen.add(tuple(parameters.values()))
    assert len(seen) > 10
    replayed = s_tir.Schedule(tvm.IRModule({"main": formulation.func}))
    trace.apply_to_schedule(replayed, remove_postproc=True)
    assert read_point(formulation, replayed.trace) == (sketch, parameters)


def test_the_mutation_that_the_model_likes_is_proposed(formulations: list[Formulation]) -> None:
    formulation = formulations[0]
    names = [c.name for c in formulation.default.parameters if len(c.options) > 1]
    features = Features(formulations)
    wanted = features.of(0, "", {names[0]: 7777}).index(7777.0)

    def score(rows: Sequence[Sequence[float]]) -> list[float]:
        return [row[wanted] for row in rows]

    def drawn(scores: Any) -> float:
        mutate = Mutator(formulation, lambda *point: features.of(0, *point), scores, seed=1)
        values = [read_point(formulation, mutate(formulation.default.schedule.trace))[1][names[0]] for _ in range(20)]
        return sum(values) / len(values)

    assert drawn(score) > drawn(lambda rows: None)


def test_features_have_columns_by_name(formulations: list[Formulation]) -> None:
    features = Features(formulations)
    first = features("0", formulations[0].default.schedule.trace)
    second = features("1", formulations[1].default.schedule.trace)
    assert len(first) == len(second)
    parameters = [float(c.value) for c in formulations[0].default.parameters]
    assert set(parameters) <= set(first)
    assert first != second
    assert any(math.isnan(value) for value in first)


# --- what is refused


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"trials": 0}, ValueError, "trials: required an integer >= 1, got 0"),
        ({"trials": 1.5}, TypeError, "trials: required an integer, got float 1.5"),
        ({"jobs": -1}, ValueError, "jobs: required an integer >= 0, got -1"),
        ({"candidates": -1}, ValueError, "candidates: required an integer >= 0, got -1"),
        ({"batch": -1}, ValueError, "batch: required an integer >= 0, got -1"),
        ({"batch": 2.0}, TypeError, "batch: required an integer, got float 2.0"),
        ({"batch": 2**31}, ValueError, "batch: required at most .* for .*, got 2147483648"),
        ({"seed": "a"}, TypeError, "seed: required an integer, got str 'a'"),
        ({"time_limit": 0.0}, ValueError, "time_limit: required seconds > 0, got 0.0"),
        ({"strategy": "grid"}, ValueError, "strategy: required evolutionary or random, got 'grid'"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        run(PROBLEM, TARGET, **options)


def test_no_tasks_and_foreign_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tasks: required one task or more, got none"):
        tune([], TARGET)
    foreign = parse_target(next(name for name in list_targets() if name.partition("-x86")[1] == ""))
    with pytest.raises(ValueError, match="target: required one that this CPU can run"):
        run(PROBLEM, foreign, output=tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_folder_has_one_tuner(tmp_path: Path, invented: Any) -> None:
    invented(smooth)
    with TuningDatabase(tmp_path, TARGET), pytest.raises(ValueError, match="records: required a folder that nobody"):
        run(PROBLEM, TARGET, output=tmp_path)


def test_records_of_another_target_are_refused(tmp_path: Path, invented: Any) -> None:
    invented(smooth)
    with TuningDatabase(tmp_path, TARGET):
        pass
    meta = json.loads((tmp_path / META).read_text())
    (tmp_path / META).write_text(json.dumps({**meta, "target": "llvm-x86-other"}))
    with pytest.raises(ValueError, match="records: required records of"):
        run(PROBLEM, TARGET, output=tmp_path)


def test_crashing_versions_and_missing_packages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metaschedule.metadata, "version", lambda _: "0.1.15")
    with pytest.raises(RuntimeError, match="tuning: required apache-tvm-ffi 0.1.14.post1 .*, got 0.1.15"):
        metaschedule.check_packages()
    monkeypatch.setattr(metaschedule.importlib.util, "find_spec", lambda name: None if name == "xgboost" else name)
    with pytest.raises(RuntimeError, match=r"the extra tvm_na\[tune\], missing xgboost"):
        metaschedule.check_packages()


def test_batches_grow_with_the_trials() -> None:
    assert [SearchOptions(trials).completed(1, 2).candidates for trials in (8, 64, 1000)] == [4, 8, 16]
    assert SearchOptions(1000).completed(20, 2).candidates == 6
    given = SearchOptions(8, candidates=5, jobs=3, threads=2)
    assert given.completed(1, 2) == given
