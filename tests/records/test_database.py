"""Tuning records on disk: written one by one, read without TVM, whole after a crash, merged, pruned, repaired."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT, run_python
from tests.records.tuned import commit_drawn, drawn, edit_line, edit_meta
from tvm_na import fingerprint
from tvm_na.problems.attention import NAProblem
from tvm_na.records import maintain
from tvm_na.records.files import COMPACT, META, RECORDS, WORKLOADS, lines_of, shipped_folder, user_folder
from tvm_na.records.read import records_in
from tvm_na.records.write import TuningDatabase, structural_hash
from tvm_na.targets.target import detect_target, list_targets, parse_target

PROBLEM = NAProblem.make((9, 9), 3, 1, 8)
OTHER = NAProblem.make((9, 9), 3, 1, 8, bias=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three records of PROBLEM with one thread, one with two threads, and one of OTHER."""
    folder = tmp_path_factory.mktemp("records")
    commit_drawn(folder, PROBLEM, (2, 1, 3))
    commit_drawn(folder, PROBLEM, (0.5,), threads=2)
    commit_drawn(folder, OTHER, (4,))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """The same in a folder of this test's own."""
    return Path(shutil.copytree(original, tmp_path / "records"))


def foreign() -> str:
    return next(name for name in list_targets() if name != detect_target().name)


def open_and_close(folder: Path, target: str = "native") -> None:
    with TuningDatabase(folder, parse_target(target)):
        pass


def by_tvm(folder: Path) -> list[Any]:
    """The records that TVM reads, once a writer has opened the folder."""
    from tvm.s_tir.meta_schedule.database import JSONDatabase

    open_and_close(folder)
    return list(JSONDatabase(str(folder / WORKLOADS), str(folder / RECORDS)).get_all_tuning_records())


def milliseconds(folder: Path) -> list[float]:
    return [round(record.seconds * 1e3, 6) for record in records_in(folder)]


# --- writing and reading


def test_what_is_committed_is_read(tmp_path: Path) -> None:
    import tvm

    func, scheduled = drawn(PROBLEM)
    mod, trace = tvm.IRModule({"main": func}), scheduled.schedule.trace
    with TuningDatabase(tmp_path / "a" / "b", detect_target()) as database:
        workload = database.register(mod)
        database.commit(workload, trace, [3e-3, 1e-3, 2e-3], threads=3)
        (record,) = records_in(database.folder)  # before the writer has ended
    for read in by_tvm(record.folder):
        tvm.ir.assert_structural_equal(read.workload.mod, mod)
        assert str(read.trace) == str(trace)
        assert [float(s) for s in read.run_secs] == [3e-3, 1e-3, 2e-3]
    assert (record.problem, record.target, record.threads, record.line) == (PROBLEM, detect_target().name, 3, 1)
    assert record.formulation == str(func.attrs["tvm_na.formulation"])
    assert record.workload == structural_hash(mod)
    assert record.workload == json.loads(lines_of(record.folder / WORKLOADS)[0])[0]
    assert record.run_secs == (3e-3, 1e-3, 2e-3)
    assert (record.seconds, record.spread) == (2e-3, pytest.approx(0.5))
    replayed = tvm.s_tir.Schedule(mod)
    tvm.s_tir.schedule.Trace.apply_json_to_schedule(record.trace, replayed)
    tvm.ir.assert_structural_equal(replayed.mod, scheduled.schedule.mod)
    assert record.tvm == (fingerprint.versions()["apache-tvm"],)
    assert record.date > "2020"


def test_the_digest_names_the_schedule_and_not_its_times(folder: Path) -> None:
    before = [record.digest for record in records_in(folder)]
    assert len(set(before)) >= 3
    edit_line(folder, 1, lambda record: record[1].__setitem__(1, [7.0]))
    assert [record.digest for record in records_in(folder)] == before
    edit_line(folder, 1, lambda record: record[1][2].__setitem__("num-cores", 9))
    assert records_in(folder)[0].digest != before[0]


def test_reading_needs_no_tvm(folder: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from tvm_na.records.read import records_in
        print(len(records_in(Path(sys.argv[1]))))
        assert not {"tvm", "tvm_ffi", "torch"} & set(sys.modules)
    """
    assert run_python(code, str(folder)) == "5\n"


def test_opening_replays_no_trace(folder: Path) -> None:
    append(folder / RECORDS, (folder / RECORDS).read_bytes() * 200)
    start = time.perf_counter()
    open_and_close(folder)
    assert time.perf_counter() - start < 5  # by JSONDatabase half a minute


def test_sessions_are_kept(tmp_path: Path) -> None:
    for number in (0, 1):
        with TuningDatabase(tmp_path, detect_target()) as database:
            assert database.begin_session(seed=number, trials=64) == number
            database.end_session(measured=12)
    first, second = json.loads((tmp_path / META).read_text(encoding="utf-8"))["sessions"]
    assert (first["seed"], second["seed"], second["trials"], second["measured"]) == (0, 1, 64, 12)
    assert second["versions"] == fingerprint.versions()
    assert {"date", "end", "cpu", "cores"} <= set(second)


@pytest.mark.parametrize("run_secs", [[], [0.0], [1e-3, float("nan")], [float("inf")], [-1.0]])
def test_times_that_cannot_be_are_refused(tmp_path: Path, run_secs: list[float]) -> None:
    with TuningDatabase(tmp_path, detect_target()) as database, pytest.raises(ValueError, match="run_secs: required"):
        database.commit(None, None, run_secs, 1)


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(tmp_path))
    assert user_folder("llvm-x86-avx2") == tmp_path / "llvm-x86-avx2"
    assert shipped_folder("llvm-x86-avx2") == ROOT / "tuning_logs" / "llvm-x86-avx2"
    monkeypatch.delenv("TVM_NA_RECORDS_DIR")
    assert user_folder("t").name == "t" and user_folder("t").parent.name == "records"
    assert records_in(tmp_path / "none") == []


# --- damage


def append(file: Path, data: bytes) -> None:
    with file.open("ab") as out:
        out.write(data)


def tear_record(folder: Path) -> None:
    whole = (folder / RECORDS).read_bytes()
    append(folder / RECORDS, whole[: len(whole) // 7])


def tear_workload(folder: Path) -> None:
    append(folder / WORKLOADS, lines_of(folder / WORKLOADS)[0][:1000])


def lose_the_last_end(folder: Path) -> None:
    (folder / RECORDS).write_bytes((folder / RECORDS).read_bytes()[:-1])


@pytest.mark.parametrize(("harm", "torn"), [(tear_record, 1), (tear_workload, 1), (lose_the_last_end, 0)])
@pytest.mark.parametrize("problem", [PROBLEM, NAProblem.make((7, 9), 3, 1, 8)], ids=["known", "new"])
def test_a_torn_end_is_left_out_and_cut_off(
    folder: Path, caplog: pytest.LogCaptureFixture, harm: Any, torn: int, problem: NAProblem
) -> None:
    caplog.set_level(logging.WARNING)
    harm(folder)
    assert len(records_in(folder)) == 5
    assert not caplog.messages  # its writer may be at it
    commit_drawn(folder, problem, (9,))
    assert milliseconds(folder) == [2, 1, 3, 0.5, 4, 9]
    assert caplog.text.count("cut off 1 torn lines") == torn


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b"null", b'[0,["trace"]]', b"[99,[[[],[]],[1.0],{},[]]]"])
def test_damage_inside_is_left_out_and_named(folder: Path, caplog: pytest.LogCaptureFixture, line: bytes) -> None:
    lines = (folder / RECORDS).read_bytes().splitlines()
    (folder / RECORDS).write_bytes(b"\n".join([*lines[:2], line, *lines[2:], b""]))
    assert len(records_in(folder)) == 5
    assert f"{folder / RECORDS}, line 3: skipped" in caplog.text
    assert len(by_tvm(folder)) == 5  # it would crash on some of these


def test_a_damaged_workload_inside_is_an_error(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = (folder / WORKLOADS).read_bytes().splitlines()
    (folder / WORKLOADS).write_bytes(b"\n".join([lines[0][:500], *lines[1:], b""]))
    assert milliseconds(folder) == [4]
    assert "line 1: skipped, workload 0 is missing" in caplog.text
    with pytest.raises(ValueError, match="got line 1 of"):
        open_and_close(folder)


def test_a_workload_that_is_there_twice_is_an_error(folder: Path, tmp_path: Path) -> None:
    """TVM would give the records of the next workload the number of another."""
    lines = (folder / WORKLOADS).read_bytes().splitlines(keepends=True)
    (folder / WORKLOADS).write_bytes(b"".join([*lines, lines[0]]))
    with pytest.raises(ValueError, match="required every workload once"):
        open_and_close(folder)
    maintain.merge([folder], tmp_path / "new")
    open_and_close(tmp_path / "new")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda entry: entry.__setitem__(1, None), ""),
        (lambda entry: entry.__setitem__(1, []), ""),
        (lambda entry: entry.__setitem__(1, [1e10]), ""),
        (lambda entry: entry[2].__setitem__("mcpu", "z80"), "line 2: skipped, an unknown target"),
    ],
    ids=["none", "empty", "failed", "unknown target"],
)
def test_what_is_no_record_is_left_out(folder: Path, caplog: pytest.LogCaptureFixture, change: Any, says: str) -> None:
    edit_line(folder, 2, lambda record: change(record[1]))
    assert milliseconds(folder) == [2, 3, 0.5, 4]
    assert says in caplog.text and bool(says) == bool(caplog.messages)


@pytest.mark.parametrize("harm", [lambda f: f.unlink(), lambda f: f.write_text("{", encoding="utf-8")])
def test_a_bare_database_is_named_and_repaired(folder: Path, caplog: pytest.LogCaptureFixture, harm: Any) -> None:
    before = records_in(folder)
    harm(folder / META)
    assert records_in(folder) == []
    assert f"tvm-na records repair {folder}" in caplog.text
    assert maintain.repair(folder) == (2, 0)
    about = [[(r.problem, r.formulation, r.digest) for r in found] for found in (before, records_in(folder))]
    assert about[0] == about[1]
    assert maintain.repair(folder) == (0, 0)


def test_repair_refuses_what_it_cannot_know(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="required a JSONDatabase"):
        maintain.repair(tmp_path / "none")
    other = parse_target(foreign())
    edit_line(folder, 1, lambda record: record[1][2].update(mcpu=other.cpu, mattr=list(other.features)))
    (folder / META).unlink()
    with pytest.raises(ValueError, match="records of one known target"):
        maintain.repair(folder)


@pytest.mark.parametrize("module", ['"AAAA"', "7", "[" * 100_000 + "]" * 100_000])
def test_repair_refuses_what_tvm_cannot_read(folder: Path, module: str) -> None:
    (folder / META).unlink()
    lines = (folder / WORKLOADS).read_text(encoding="utf-8").splitlines()
    (folder / WORKLOADS).write_text(f'["123", {module}]\n{lines[1]}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="required workloads that TVM can read in .*, got 123"):
        maintain.repair(folder)


# --- one writer


def test_a_second_writer_is_refused(folder: Path) -> None:
    with TuningDatabase(folder, detect_target()):
        for write in (open_and_close, lambda folder: maintain.prune(folder, 1)):
            with pytest.raises(ValueError, match="nobody else writes"):
                write(folder)
    open_and_close(folder)


def test_a_killed_writer_loses_nothing(tmp_path: Path) -> None:
    code = f"""
        import sys, time
        from pathlib import Path
        from tests.records.tuned import drawn
        from tvm_na.problems.attention import NAProblem
        from tvm_na.records.write import TuningDatabase
        from tvm_na.targets.target import detect_target
        import tvm
        func, scheduled = drawn(NAProblem.make((9, 9), 3, 1, 8))
        database = TuningDatabase(Path({str(tmp_path)!r}), detect_target()).__enter__()
        workload = database.register(tvm.IRModule({{"main": func}}))
        database.commit(workload, scheduled.schedule.trace, [5e-3], 1)
        print("committed", flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "committed\n"
        with pytest.raises(ValueError, match="nobody else writes"):
            open_and_close(tmp_path)
        process.kill()
    assert milliseconds(tmp_path) == [5]
    assert len(by_tvm(tmp_path)) == 1


def test_another_target_is_refused(folder: Path, tmp_path: Path) -> None:
    open_and_close(tmp_path / "foreign", foreign())
    for write in (
        lambda: open_and_close(folder, foreign()),
        lambda: maintain.merge([folder, tmp_path / "foreign"], tmp_path / "into"),
        lambda: maintain.merge([folder], tmp_path / "foreign"),
    ):
        with pytest.raises(ValueError, match=r"required records of .*, got llvm-"):
            write()
    edit_meta(folder, lambda meta: meta["features"].update(vector_registers=7))
    for write in (lambda: open_and_close(folder), lambda: maintain.merge([folder], tmp_path / "into")):
        with pytest.raises(ValueError, match="other features"):
            write()


# --- merging and pruning


def test_merging_keeps_each_schedule_once_with_its_shortest_time(folder: Path, tmp_path: Path) -> None:
    into, again = tmp_path / "into", tmp_path / "again"
    shutil.copytree(folder, again)
    edit_line(again, 1, lambda record: record[1].__setitem__(1, [0.25e-3]))
    commit_drawn(into, OTHER, (8,), formulation=0)
    known = {record.digest for record in [*records_in(folder), *records_in(into)]}
    added, refused = maintain.merge([folder, again], into)
    assert (added, refused) == (len(records_in(into)) - 1, [])
    assert len({record.digest for record in records_in(into)}) == len(records_in(into)) == len(known)
    assert min(milliseconds(into)) == 0.25
    assert {record.problem for record in records_in(into)} == {PROBLEM, OTHER}
    assert all(record.is_compact for record in records_in(into))
    assert maintain.merge([again], into) == (0, []) == maintain.merge([into], into)
    with pytest.raises(ValueError, match="required a folder of records"):
        maintain.merge([tmp_path / "none"], into)


def test_what_does_not_apply_is_told_and_not_merged(folder: Path, tmp_path: Path) -> None:
    edit_line(folder, 2, lambda record: record[1][0][0].append(["Parallel", ["l1"], [], []]))
    added, (refused,) = maintain.merge([folder], tmp_path / "into")
    assert added == 4 and f"{folder / RECORDS}, line 2, {PROBLEM}: left out, its trace has Parallel" in refused


def test_pruning_keeps_the_best_of_each_problem_and_number_of_threads(folder: Path) -> None:
    edit_line(folder, 5, lambda record: record[1].__setitem__(1, [1e10]))  # OTHER has a failure alone
    append(folder / RECORDS, b"[0,[[")
    planned = maintain.prune(folder, 2, dry_run=True)
    assert milliseconds(folder) == [2, 1, 3, 0.5]
    removed = maintain.prune(folder, 2)
    assert removed == planned
    assert [round(record.seconds * 1e3, 6) for record in removed.records] == [3]
    assert removed.lines == 2
    assert milliseconds(folder) == [2, 1, 0.5]
    assert {f.name for f in folder.iterdir()} == {COMPACT, META, ".lock"}
    assert not maintain.prune(folder, 2).records


def test_what_was_pruned_is_tuned_further(folder: Path) -> None:
    maintain.prune(folder, 1, is_current=lambda record: record.problem == OTHER)
    (record,) = records_in(folder)
    assert (record.problem, record.line) == (OTHER, 1)
    commit_drawn(folder, PROBLEM, (9,))
    assert [record.problem for record in records_in(folder)] == [PROBLEM, OTHER]
    assert len(by_tvm(folder)) == 1
    with pytest.raises(ValueError, match="keep: required"):
        maintain.prune(folder, 0)


@pytest.mark.parametrize("step", range(4))
def test_a_pruning_that_is_cut_short_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Killed before its n-th removal, what is kept is there, and the next one ends it."""
    original, removals = Path.unlink, []

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if len(removals) == step:
            raise KeyboardInterrupt
        removals.append(self)
        original(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with suppress(KeyboardInterrupt):
            maintain.prune(folder, 1)
    assert {0.5, 1, 4} <= set(milliseconds(folder))
    maintain.prune(folder, 1)
    assert sorted(milliseconds(folder)) == [0.5, 1, 4]
    assert {f.name for f in folder.iterdir()} == {COMPACT, META, ".lock"}
