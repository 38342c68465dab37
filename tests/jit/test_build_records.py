"""Which schedule a kernel gets, and what happens to records that do not apply."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import run_forked, run_python
from tests.jit.kernels import check
from tests.records.tuned import commit_drawn, edit_line, edit_meta
from tvm_na import fingerprint, settings
from tvm_na.jit import build, cache
from tvm_na.problems.attention import NAProblem
from tvm_na.records import index as record_index
from tvm_na.records import read as records
from tvm_na.records import rejections, select
from tvm_na.records.checksums import begin_checksums
from tvm_na.records.files import RECORDS
from tvm_na.records.read import records_in
from tvm_na.schedules import spaces_for
from tvm_na.targets.target import detect_target, list_targets, parse_target

PROBLEM = NAProblem.make((9, 9), 3, 1, 8)
NEAR = NAProblem.make((9, 9), 3, 1, 8, return_lse=True)
FAR = NAProblem.make((9, 9), 9, 1, 64)
NATIVE = detect_target()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two formulations of PROBLEM: 2, 1 and 3 ms in the first, 4 in the second; 0.5 ms with 4 threads."""
    folder = tmp_path_factory.mktemp("records")
    commit_drawn(folder, PROBLEM, (2, 1, 3))
    commit_drawn(folder, PROBLEM, (4,), formulation=1)
    commit_drawn(folder, PROBLEM, (0.5,), threads=4)
    return folder


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what this process remembers."""
    for owner, name in ((build, "_kernels"), (rejections, "_rejected"), (record_index, "_loaded")):
        monkeypatch.setattr(owner, name, {})


@pytest.fixture(autouse=True)
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache, records and a memory of this test's own; kernels run on one thread."""
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("TVM_NA_RECORDS", "all")
    monkeypatch.setenv("TVM_NA_NUM_THREADS", "1")
    monkeypatch.setattr(select, "shipped_folder", lambda name: tmp_path / "shipped" / name)
    another_process(monkeypatch)
    monkeypatch.setattr(record_index, "_warned", set())


def place(original: Path, tmp_path: Path, whose: str) -> Path:
    return Path(shutil.copytree(original, tmp_path / whose / NATIVE.name))


@pytest.fixture
def user(original: Path, tmp_path: Path) -> Path:
    return place(original, tmp_path, "user")


@pytest.fixture
def shipped(original: Path, tmp_path: Path) -> Path:
    return place(original, tmp_path, "shipped")


def selected(problem: NAProblem = PROBLEM, threads: int = 1, mode: str = "all") -> tuple[str, float | None]:
    found = select.select(problem, NATIVE, threads, mode)
    return found.kind, None if found.record is None else round(found.record.seconds * 1e3, 6)


# --- the choice


def test_without_records_it_is_the_default(tmp_path: Path) -> None:
    assert selected() == ("default", None)
    assert f"no tuning records for {NATIVE.name}" in build.explain(PROBLEM)
    assert not (tmp_path / "cache").exists()


def test_the_fastest_record_with_as_many_threads_is_chosen(user: Path) -> None:
    assert selected(threads=1) == selected(threads=2) == ("record", 1)
    assert selected(threads=3) == selected(threads=4) == selected(threads=16) == ("record", 0.5)
    assert "none with 16" in select.select(PROBLEM, NATIVE, 16).reason
    edit_line(user, 4, lambda record: record[1].__setitem__(1, [0.9e-3]))  # the other formulation
    assert selected(threads=1) == ("record", 0.9)


def test_the_users_records_come_before_the_shipped(user: Path, shipped: Path, tmp_path: Path) -> None:
    for number in range(1, 6):
        edit_line(shipped, number, lambda record: record[1].__setitem__(1, [1e-9]))
    found = select.select(PROBLEM, NATIVE, 1)
    assert found.record is not None
    assert (found.record.folder, found.record.shipped) == (user, False)
    assert str(found).startswith("user's record ")
    assert selected(mode="user") == ("record", 1)
    assert selected(mode="shipped") == ("record", 1e-6)
    assert selected(mode="off") == ("default", None)
    shutil.rmtree(user)
    found = select.select(PROBLEM, NATIVE, 1)
    assert found.record is not None and found.record.shipped
    assert str(found).startswith("shipped record ")


def test_the_mode_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="records: required one of all, user, shipped, off, got 'none'"):
        build.kernel_for(PROBLEM, records="none")
    monkeypatch.setenv("TVM_NA_RECORDS", "on")
    with pytest.raises(ValueError, match="TVM_NA_RECORDS: required one of"):
        settings.records_mode()


def test_the_nearest_problem_stands_in(user: Path) -> None:
    assert selected(NEAR) == ("nearest", 1)
    assert selected(FAR) == ("default", None)
    assert "of this problem or one near it" in build.explain(FAR)
    commit_drawn(user, NAProblem.make((9, 18), 3, 1, 8, return_lse=True), (7,))
    assert selected(NEAR) == ("nearest", 1)
    commit_drawn(user, NAProblem.make((10, 9), 3, 1, 8, return_lse=True), (8,))
    assert selected(NEAR) == ("nearest", 8)


def test_slow_records_do_not_stand_in(user: Path) -> None:
    times = [
        c.record.seconds for c in select.candidates(NEAR, NATIVE, 1) if c.kind == "nearest" and c.record is not None
    ]
    assert [round(t * 1e3, 6) for t in times] == [1, 0.5]


def test_the_distance_of_problems() -> None:
    def between(**changes: Any) -> float | None:
        base = {"spatial": (28, 28), "kernel_size": 7, "heads": 4, "head_dim": 32}
        one, other = NAProblem.make(**base), NAProblem.make(**{**base, **changes})
        there, back = one.distance(other), other.distance(one)
        assert there == back
        return there

    assert between() == 0
    assert between(dtype="float64") is None
    assert between(spatial=28) is None
    order = [
        between(bias=True),
        between(spatial=(28, 56)),
        between(head_dim=64),
        between(kernel_size=3),
        between(spatial=(7, 7), heads=16, kernel_size=3),
    ]
    assert order == sorted(order, key=lambda far: far or 0)
    assert order[3] < select.FARTHEST < order[4]
    # In the coordinates of a dilation group these are the same.
    assert between(dilation=2, spatial=(56, 56)) < between(spatial=(56, 56))


# --- kernels


def test_a_kernel_is_built_with_the_record(user: Path) -> None:
    best = min((r for r in records_in(user) if r.threads == 1), key=lambda r: r.seconds)
    assert "kernel not built yet" in build.explain(PROBLEM)
    kernel = build.kernel_for(PROBLEM)
    assert kernel.schedule.kind == "record"
    assert kernel.schedule.record is not None and kernel.schedule.record.digest == best.digest
    check(kernel.problem, kernel.function, 2)
    assert best.digest[:8] in build.explain(PROBLEM)
    assert "kernel on disk" in build.explain(PROBLEM)
    request = fingerprint.request_digest(PROBLEM, NATIVE, kernel.schedule.key)
    entry = settings.cache_dir() / "index" / f"{request}.json"
    assert best.digest[:8] in json.loads(entry.read_text(encoding="utf-8"))["schedule"]


def test_the_default_stays_at_hand(user: Path) -> None:
    tuned, default = build.kernel_for(PROBLEM), build.kernel_for(PROBLEM, records="off")
    assert tuned.file != default.file
    assert default.schedule.kind == "default"
    check(PROBLEM, default.function, 2)
    assert build.kernel_for(PROBLEM) is tuned
    assert build.is_cached(PROBLEM, records="off")
    assert "switched off" in build.explain(PROBLEM, records="off")


def test_the_trace_is_replayed_with_a_symbolic_batch(user: Path) -> None:
    import tvm
    from tvm import s_tir

    record = select.select(PROBLEM, NATIVE, 1)
    assert record.record is not None
    loaded = record.record.load()
    assert loaded is not None
    (space,) = spaces_for(PROBLEM, NATIVE)
    func = space.formulations(PROBLEM, NATIVE)[0]
    schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
    s_tir.schedule.Trace.apply_json_to_schedule(loaded.trace, schedule)
    module, _ = build.scheduled_module(PROBLEM, NATIVE, record)
    tvm.ir.assert_structural_equal(module, schedule.mod)


def test_decisions_are_transferred_to_the_nearest_problem(user: Path) -> None:
    from tvm_na.records.replay import point_of
    from tvm_na.schedules.base import Plan

    found = select.select(NEAR, NATIVE, 1)
    assert found.record is not None
    record = found.record.load()
    assert record is not None
    point = point_of(record, NATIVE)
    (space,) = spaces_for(NEAR, NATIVE)
    func = next(f for f in space.formulations(NEAR, NATIVE) if str(f.attrs["tvm_na.formulation"]) == record.formulation)
    expected = space.apply(func, NATIVE, Plan(point.sketch, like=point.parameters))
    module, _ = build.scheduled_module(NEAR, NATIVE, found)
    import tvm

    assert expected is not None
    tvm.ir.assert_structural_equal(module, expected.schedule.mod)
    kernel = build.kernel_for(NEAR)
    assert kernel.schedule.kind == "nearest"
    check(kernel.problem, kernel.function, 2)


# --- records that do not apply


LLVM = "pragma_import_llvm"


def break_trace(record: list[Any]) -> None:
    instructions = record[1][0][0]
    instructions.append(["Annotate", [next(i for i in instructions if i[0] == "GetLoops")[3][0], '"code"'], [LLVM], []])


def test_the_first_kernel_without_a_record_tells_once_of_tuning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_told", set())
    with caplog.at_level("INFO", logger="tvm_na.jit.build"):
        build.kernel_for(PROBLEM)
        build.kernel_for(NEAR)
    (message,) = caplog.messages
    assert str(PROBLEM) in message and NATIVE.name in message and "tvm-na tune" in message


def test_a_trace_that_fails_is_named_and_the_next_best_taken(
    user: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_line(user, 2, break_trace)
    broken = records_in(user)[1].digest
    kernel = build.kernel_for(PROBLEM)
    assert kernel.schedule.kind == "record"
    assert kernel.schedule.record is not None and kernel.schedule.record.seconds == 2e-3
    check(kernel.problem, kernel.function, 2)
    (message,) = caplog.messages
    assert broken in message and "line 2" in message and LLVM in message
    caplog.clear()
    another_process(monkeypatch)
    assert selected() == ("record", 2)
    assert build.is_cached(PROBLEM)
    assert f"record {broken[:8]} (1 ms with 1 thread) does not apply" in build.explain(PROBLEM)
    assert not caplog.messages
    cache.clear()
    assert selected() == ("record", 1)


def test_another_expression_rejects_its_records_at_once(user: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The workload's hash is that of the expression as it was."""
    first = records_in(user)[0].workload
    stale = str(int(first) ^ 1)
    file = user / "database_workload.json"
    file.write_text(file.read_text(encoding="utf-8").replace(first, stale), encoding="utf-8")
    edit_meta(user, lambda meta: meta["workloads"].update({stale: meta["workloads"].pop(first)}))
    begin_checksums(user, anew=True)
    kernel = build.kernel_for(PROBLEM)
    assert kernel.schedule.record is not None and kernel.schedule.record.seconds == 4e-3  # the other formulation
    check(kernel.problem, kernel.function, 2)
    (message,) = caplog.messages
    assert "expression has changed" in message


def test_a_formulation_that_is_gone_gives_way_to_the_default(user: Path, caplog: pytest.LogCaptureFixture) -> None:
    def rename(meta: dict[str, Any]) -> None:
        for about in meta["workloads"].values():
            about["formulation"] = '{"formulation": "gone"}'

    edit_meta(user, rename)
    kernel = build.kernel_for(PROBLEM)
    assert kernel.schedule.kind == "default"
    check(kernel.problem, kernel.function, 2)
    assert "has no formulation" in caplog.text
    caplog.clear()
    kernel = build.kernel_for(NEAR)  # that others cannot be transferred is nothing to warn of
    assert kernel.schedule.kind == "default"
    check(kernel.problem, kernel.function, 2)
    assert not caplog.messages


def test_records_of_another_tvm_are_skipped(user: Path, caplog: pytest.LogCaptureFixture) -> None:
    def age(meta: dict[str, Any]) -> None:
        for about in meta["workloads"].values():
            about["tvm"] = ["0.1"]

    edit_meta(user, age)
    assert selected() == selected() == selected(NEAR) == ("default", None)
    (message,) = caplog.messages
    assert str(user) in message and "0.1" in message and fingerprint.versions()["apache-tvm"] in message
    edit_meta(
        user, lambda meta: next(iter(meta["workloads"].values()))["tvm"].append(fingerprint.versions()["apache-tvm"])
    )
    assert selected() == ("record", 1)


def test_records_of_another_target_are_skipped(user: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = next(name for name in list_targets() if name != NATIVE.name)
    user.rename(user.parent / other)
    assert select.select(PROBLEM, parse_target(other), 1).kind == "default"
    assert "skipped 5 records of other targets" in caplog.text


def test_a_schedule_that_does_not_compile_is_rejected(
    user: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import tvm

    compile_, calls = tvm.compile, []

    def fail_once(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("LLVM gave up")
        return compile_(*arguments, **options)

    monkeypatch.setattr(tvm, "compile", fail_once)
    kernel = build.kernel_for(PROBLEM)
    assert kernel.schedule.record is not None and kernel.schedule.record.seconds == 2e-3
    assert "LLVM gave up" in caplog.text
    monkeypatch.setattr(tvm, "compile", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("LLVM is gone")))
    with pytest.raises(RuntimeError, match="LLVM is gone"):
        build.kernel_for(NEAR, records="off")


def test_a_record_that_is_removed_meanwhile(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = select.select(PROBLEM, NATIVE, 1)
    lines = (user / RECORDS).read_text(encoding="utf-8").splitlines(keepends=True)
    (user / RECORDS).write_text("".join(reversed(lines)), encoding="utf-8")
    assert found.record is not None
    assert build.kernel_with(found, PROBLEM, NATIVE).schedule == found  # it is found on its new line
    another_process(monkeypatch)
    cache.clear()
    (user / RECORDS).write_text("".join(line for line in lines if "0.001" not in line), encoding="utf-8")
    with pytest.raises(rejections.InapplicableError, match="no more") as caught:
        build.kernel_with(found, PROBLEM, NATIVE)
    assert not caught.value.lasting


# --- the index


def test_records_are_read_once(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert selected() == ("record", 1)
    another_process(monkeypatch)
    monkeypatch.setattr(records, "records_in", lambda folder: pytest.fail("read again"))
    assert selected() == ("record", 1)
    monkeypatch.undo()


def test_the_index_follows_the_records(user: Path, tmp_path: Path) -> None:
    assert selected() == ("record", 1)
    commit_drawn(user, PROBLEM, (0.1,))
    assert selected() == ("record", 0.1)
    (index,) = (tmp_path / "cache" / "records").iterdir()
    assert index.stat().st_size < 4000


def test_a_damaged_index_is_made_anew(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert selected() == ("record", 1)
    (index,) = (tmp_path / "cache" / "records").iterdir()
    whole = index.read_bytes()
    for damage in (whole[:-10], b"", b"\xff\xfe", whole.replace(b"0.001", b"0.002")):
        index.write_bytes(damage)
        another_process(monkeypatch)
        assert selected() == ("record", 1)
        assert index.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_time_only(
    user: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("", encoding="utf-8")
    assert selected() == ("record", 1)
    assert "cannot keep the index" in caplog.text


# --- processes


def test_a_warm_process_needs_no_tvm_and_no_compiler(user: Path) -> None:
    build.kernel_for(PROBLEM)
    code = """
        import sys, torch
        from tvm_na import na2d
        from tvm_na.jit import build
        q = torch.rand(1, 9, 9, 1, 8)
        assert na2d(q, q, q, 3, backend="compiled").isfinite().all()
        assert "tvm" not in sys.modules and "platformdirs" not in sys.modules
        (kernel,) = build._kernels.values()
        print(kernel.schedule.kind, {"tvm_na.compilers", "tvm_na.jit.library"} & set(sys.modules))
    """
    run_python(code)  # may compile the launcher
    assert run_python(code) == "record set()\n"


def test_two_processes_with_a_broken_record(user: Path) -> None:
    edit_line(user, 2, break_trace)
    before = """
        import torch
        from tvm_na import na2d
        from tvm_na.jit import build
    """
    code = """
        q = torch.rand(1, 9, 9, 1, 8)
        assert na2d(q, q, q, 3, backend="compiled").isfinite().all()
        (kernel,) = build._kernels.values()
        print(kernel.schedule.record.seconds)
    """
    assert run_forked(before, code, 2, at_once=True) == ["0.002"] * 2
    assert len(cache.entries()) == 1
