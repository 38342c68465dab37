"""``tvm-na records`` and what ``tvm-na info`` says of them, run in this process."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.invoking import TINY, error_of, invoke
from tests.records.tuned import commit_drawn, edit_compact, edit_line, edit_meta
from tvm_na.measure import local as measure
from tvm_na.measure.timing import Timing
from tvm_na.problems.attention import NAProblem
from tvm_na.records.checksums import begin_checksums
from tvm_na.records.files import META
from tvm_na.records.read import records_in
from tvm_na.records.replay import describe_record
from tvm_na.reference import case
from tvm_na.targets.target import detect_target, list_targets
from tvm_na.tune import verify

PROBLEM = NAProblem.make((9, 9), 3, 1, 8)
OTHER = NAProblem.make((9, 9), 3, 1, 8, bias=True)
NATIVE = detect_target().name


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    commit_drawn(folder, PROBLEM, (2, 1, 3))
    commit_drawn(folder, OTHER, (4,))
    return folder


@pytest.fixture
def user(original: Path, tmp_path: Path) -> Path:
    """The user's folder, which commands take by themselves."""
    return Path(shutil.copytree(original, tmp_path / "user" / NATIVE))


def records(*arguments: object, code: int = 0) -> str:
    return invoke("records", *arguments, code=code).stdout


# --- looking


def test_ls(user: Path, tmp_path: Path) -> None:
    out = records("ls")
    assert str(user) in out
    assert re.search(r"9x9 heads 1 dim 8 k 3 float32 +│ 1 +│ 3 +│ 1.00 ms +│ 10% +│ \? +│ 20\d\d-", out)
    assert re.search(r"9x9 heads 1 dim 8 k 3 float32 rpb +│ 1 +│ 1 +│ 4.00 ms", out)
    shutil.copytree(user, tmp_path / "more")
    assert records("ls", user, tmp_path / "more").count("1.00 ms") == 2


def test_without_records(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for command in ("ls", "best", "verify"):
        assert records(command, tmp_path / "empty").startswith("no tuning records in ")
    assert error_of("records", "ls", tmp_path / "none").startswith("records: required an existing folder")
    assert error_of("records", "prune").startswith("records: required an existing folder")


def test_best_describes_the_schedule(user: Path) -> None:
    out = records("best")
    best = min(records_in(user), key=lambda record: record.seconds)
    assert "9x9 heads 1 dim 8 k 3 float32, 1 thread: 1.00 ms" in out
    assert re.search(rf"record +{best.digest}, .*line 2", out)
    for part in describe_record(best).split("; "):
        assert part in out
    assert out.count("schedule ") == 2


def test_best_of_what_no_longer_applies(user: Path) -> None:
    def rename(meta: dict[str, Any]) -> None:
        for about in meta["workloads"].values():
            about["formulation"] = '{"formulation": "gone"}'

    edit_meta(user, rename)
    assert records("best").count("it no longer applies") == 2


def test_info_shows_folders_and_counts(user: Path) -> None:
    out = invoke("info").stdout
    assert re.search(rf"user's +4 of 2 problems +last tuned 20\d\d-\d\d-\d\d +{user}", out)
    assert re.search(r"TVM_NA_RECORDS +user", out)


def test_info_shows_the_schedules_of_a_model(user: Path, cache: Path) -> None:
    from tvm_na.models import create_model, problems_of

    first, *others = problems_of(create_model(TINY.name), 36)
    assert first == OTHER
    out = invoke("info", "--model", TINY.name, "--input-size", 36).stdout
    assert re.search(rf"1 layer +{first} +cpu-lanes, user's record [0-9a-f]{{8}} \(4 ms with 1 thread", out)
    for other in others:
        assert str(other) in out
    assert out.count("kernel not built yet") == 2
    missing = rf"tuning +1 of 2 problems have no record of their own +tvm-na tune {TINY.name} --input-size 36 --target "
    assert re.search(missing, out)
    assert "machine" not in out
    assert invoke("info", "--model", "nat_min", code=2).stderr.startswith("error: ")


# --- changing


def test_merge(user: Path, tmp_path: Path) -> None:
    into = tmp_path / "into"
    assert records("merge", user, "--into", into) == f"4 records added to {into}\n"
    assert records("merge", user, "--into", into) == f"0 records added to {into}\n"
    assert [r.is_compact for r in records_in(into)] == [True] * 4
    assert records("ls", "--check", into).count("│ ok") == 2
    edit_compact(into, 2, lambda record: record.update(kernel="0" * 16))
    assert "the kernel is another than the one measured" in " ".join(records("ls", "--check", into).split())
    (user / META).unlink()
    assert "tvm-na records repair" in error_of("records", "merge", user, "--into", into)


def test_prune_asks(user: Path) -> None:
    out = invoke("records", "prune", "--keep", 1, code=1, stdin="n\n").output
    assert "9x9 heads 1 dim 8 k 3 float32: 2 records would be removed" in out
    assert "Aborted" in out
    assert len(records_in(user)) == 4
    assert "in all 2 records, 0 lines" in records("prune", "--keep", 1, "--yes")
    assert [(record.seconds, record.is_compact) for record in records_in(user)] == [(1e-3, True), (4e-3, True)]
    assert records("prune", user) == f"nothing to remove from {user}\n"


def test_prune_of_what_is_stale(user: Path) -> None:
    stale = "12345"
    first = records_in(user)[0].workload
    file = user / "database_workload.json"
    file.write_text(file.read_text(encoding="utf-8").replace(first, stale), encoding="utf-8")
    edit_meta(user, lambda meta: meta["workloads"].update({stale: meta["workloads"].pop(first)}))
    begin_checksums(user, anew=True)
    assert "3 records removed" in records("prune", "--stale", "--yes")
    assert [record.problem for record in records_in(user)] == [OTHER]


def test_repair(user: Path) -> None:
    (user / META).unlink()
    assert records("repair").startswith(f"2 workloads of {user} are known now that were not, 0 records ")
    assert len(records_in(user)) == 4


# --- verify


def measured(monkeypatch: pytest.MonkeyPatch, seconds: float, failure: str | None = None) -> list[int]:
    """Let every kernel take ``seconds``; the threads that each was measured with."""
    from tvm_na import settings

    threads: list[int] = []

    def run_kernel(kernel: measure.Kernel, conditions: measure.Conditions) -> measure.Measured:
        assert kernel.file.is_file()
        assert settings.num_threads() == conditions.threads
        threads.append(conditions.threads)
        return measure.Measured(
            () if failure else (2 * seconds, 0.9 * seconds, seconds), failure, "1e-3 instead of 2e-6"
        )

    monkeypatch.setattr(measure, "run_kernel", run_kernel)
    return threads


def test_verify_measures_the_best_again(user: Path) -> None:
    """For real: these kernels take microseconds, and so less than the invented milliseconds."""
    out = records("verify")
    assert "2 measured, 0 wrong" in out
    assert out.count(" ok ") == 2


def test_verify_finds_drift_and_wrong_numbers(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = measured(monkeypatch, 1.4e-3)
    out = records("verify", "--threshold", 1.3, code=1)
    assert re.search(r"9x9 heads 1 dim 8 k 3 float32 +│ 1 .*│ 1.00 ms +│ 1.40 ms +│ 1.40 +│ too slow", out)
    assert re.search(r"rpb +│ 1 .*│ 4.00 ms +│ 1.40 ms +│ 0.35 +│ ok", out)
    assert threads == [1, 1]
    assert "0 wrong" in records("verify")
    measured(monkeypatch, 0, "wrong numbers")
    assert records("verify", code=1).count("wrong numbers: 1e-3 instead of 2e-6") == 2


def test_verify_draws_and_finds_what_does_not_apply(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 1e-6)
    assert "1 measured" in records("verify", "--sample", 1)
    commit_drawn(user, PROBLEM, (1,), threads=4096)
    edit_line(user, 2, lambda record: record[1][0][0][0].__setitem__(2, ["no_such_block", "main"]))
    result = invoke("records", "verify", code=1)
    assert "2 measured" in result.stdout
    assert "does not apply" in result.stdout and "no_such_block" in result.stdout
    assert "warning: 1 records with more threads" in result.stderr


def test_verify_finds_another_kernel_than_the_measured_one(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 1e-6)
    records("prune", "--keep", 1, "--yes")
    assert "2 measured, 0 wrong" in records("verify")
    edit_compact(user, 1, lambda record: record.update(kernel="0" * 16))
    out = " ".join(records("verify", code=1).replace("│", " ").split())
    assert "2 measured, 1 wrong, changed" in out and "remeasure" in out


def test_verify_refuses_another_target(user: Path) -> None:
    from tvm_na.targets.target import parse_target

    other = parse_target(next(name for name in list_targets() if name != NATIVE))

    def move(record: list[Any]) -> None:
        record[1][2].update(mcpu=other.cpu, mattr=list(other.features))

    for line in range(1, 5):
        edit_line(user, line, move)
    assert error_of("records", "verify").startswith(
        f"records: required records of {NATIVE} to measure here, got {other.name}"
    )


def test_verify_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TVM_NA_NUM_THREADS", raising=False)
    for before in (None, "3"):
        if before:
            monkeypatch.setenv("TVM_NA_NUM_THREADS", before)
        with verify.running_on(7):
            assert os.environ["TVM_NA_NUM_THREADS"] == "7"
        assert os.environ.get("TVM_NA_NUM_THREADS") == before


# --- remeasure


def test_remeasure_keeps_the_winners_with_their_times(user: Path, tmp_path: Path) -> None:
    before = {record.digest for record in records_in(user)}
    report = tmp_path / "times.json"
    out = records("remeasure", "--count", "2", "--rounds", "5", "--yes", "--output", str(report))
    assert "2 records kept" in out and out.count("by default") == 2
    after = records_in(user)
    assert {record.problem for record in after} == {PROBLEM, OTHER}
    assert all(len(record.run_secs) == 5 and record.seconds < 1e-3 for record in after)  # invented ones are longer
    assert all(record.is_compact and record.machine.cpu and record.default_seconds for record in after)
    assert re.search(r"rpb +│ 1 +│ 1 +│ .* │ \d+\.\d\dx +│ 20\d\d-", records("ls"))
    outcomes = json.loads(report.read_text(encoding="utf-8"))
    # The fastest two and the first, (1 ms, 2 ms) of which one is the first, and the only one there is; and the default.
    own = [[record["record"] for record in outcome["records"] if record["record"] in before] for outcome in outcomes]
    assert sorted(map(len, own)) == [1, 2]
    assert all(len(outcome["records"]) <= len(of_it) + 1 for outcome, of_it in zip(outcomes, own, strict=True))
    best = [outcome["records"][0]["median"] for outcome in outcomes]
    assert sorted(best) == pytest.approx(sorted(record.seconds for record in after), rel=1e-3)


@pytest.mark.parametrize("faster", [True, False])
def test_a_default_that_is_faster_is_kept(user: Path, monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    from tvm_na.records.replay import point_of
    from tvm_na.tune import remeasure
    from tvm_na.tune.tasks import formulations_of

    target = detect_target()
    times = {"default": Timing((1.0 if faster else 3.0,) * 3)}
    monkeypatch.setattr(remeasure, "measure", lambda calls, **_: {name: Timing((2.0,) * 3) for name in calls} | times)
    records("remeasure", "--count", "1", "--rounds", "3", "--yes")
    for record in records_in(user):
        formulation = formulations_of(record.problem, target)[0]
        point = point_of(record, target)
        is_default = (point.formulation, point.sketch) == (formulation.text, formulation.default.sketch)
        is_default &= dict(point.parameters) == formulation.default.values
        assert is_default == faster
        assert record.seconds == (1.0 if faster else 2.0)


def test_remeasure_asks_and_leaves_wrong_numbers_out(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Replace all records" in records("remeasure", code=1)
    right = case.Case.check
    seen = []

    def check(self: Any, outputs: Any, budget: float) -> None:
        right(self, outputs, budget)
        seen.append(budget)
        if len(seen) == 2:  # the default is the first
            raise case.WrongNumbers("out: off")

    monkeypatch.setattr(case.Case, "check", check)
    result = invoke("records", "remeasure", "--count", "1", "--rounds", "3", "--yes")
    assert "wrong numbers: out: off" in result.stderr
    assert len(records_in(user)) == 2  # of the one that is wrong the default is kept
