"""Compact records: names in place of traces, in one line that says all; refused where a name is gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tvm

from tests.helpers import run_python
from tests.records.tuned import as_users, commit_drawn, edit_compact
from tvm_na import fingerprint
from tvm_na.jit import build
from tvm_na.problems.attention import NAProblem
from tvm_na.records import maintain, select
from tvm_na.records.compact import line_of_record, record_of_line
from tvm_na.records.files import COMPACT, lines_of
from tvm_na.records.read import records_in
from tvm_na.records.record import Machine, five_numbers
from tvm_na.records.rejections import InapplicableError
from tvm_na.records.replay import change_since, describe_record, noted, point_of, replayed, transferred
from tvm_na.targets.target import detect_target

PROBLEM, NEAR = NAProblem.make((9, 9), 3, 1, 8), NAProblem.make((9, 9), 3, 1, 8, bias=True)
NATIVE = detect_target()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two records of PROBLEM as the tuner writes them."""
    folder = tmp_path_factory.mktemp("records")
    commit_drawn(folder, PROBLEM, (2, 1))
    return folder


@pytest.fixture(scope="module")
def original(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, compact."""
    folder = tmp_path_factory.mktemp("compact")
    assert maintain.merge([tuned], folder) == (2, [])
    return folder


@pytest.fixture
def user(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """These as the user's, of a process that knows nothing yet."""
    return as_users(original, tmp_path, monkeypatch)


def test_names_say_what_the_trace_did(tuned: Path, original: Path) -> None:
    assert [file.name for file in original.iterdir() if file.name != ".lock"] == [COMPACT]
    for old, new in zip(records_in(tuned), records_in(original), strict=True):
        assert new.is_compact and not old.is_compact and point_of(new, NATIVE) == point_of(old, NATIVE)
        tvm.ir.assert_structural_equal(replayed(new, PROBLEM, NATIVE), replayed(old, PROBLEM, NATIVE))
        tvm.ir.assert_structural_equal(transferred(new, NEAR, NATIVE), transferred(old, NEAR, NATIVE))
        same = ("problem", "formulation", "workload", "target", "threads", "tvm", "date", "batch")
        assert [getattr(old, name) for name in same] == [getattr(new, name) for name in same]
        assert old.run_secs == pytest.approx(new.run_secs)
        assert change_since(new) is None and describe_record(new) == describe_record(old)


def test_a_line_is_the_record(original: Path) -> None:
    first, _ = records_in(original)
    known = replace(
        first,
        run_secs=tuple(n * 1e-6 + 1e-12 for n in range(400, 800)),
        default_seconds=2e-3,
        machine=Machine("AMD EPYC", 2, "", tuple(fingerprint.versions().items())),
    )
    line = line_of_record(known)
    read = record_of_line(line, known.file, known.line)
    assert len(line) < 1500 and len(read.run_secs) == 5
    assert read == replace(known, run_secs=read.run_secs) and read.digest == known.digest
    assert (read.seconds, read.spread) == pytest.approx((known.seconds, known.spread), rel=1e-3)
    assert five_numbers(read.run_secs) == read.run_secs and line_of_record(read) == line


def test_reading_needs_neither_tvm_nor_meta(original: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from tvm_na.records.read import records_in
        print(len(records_in(Path(sys.argv[1]))))
        assert not {"tvm", "tvm_ffi", "torch"} & set(sys.modules)
    """
    assert run_python(code, str(original)) == "2\n"


def of_both(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: [edit_compact(folder, number, change) for number in (1, 2)] and None


def first_parameter(record: dict[str, Any], name: str | None, value: int) -> None:
    old = next(iter(record["parameters"]))
    if name is not None:
        record["parameters"].pop(old)
    record["parameters"][name or old] = value


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.update(formulation={"formulation": "gone"}), "has no formulation"),
        (lambda r: r.update(sketch="gone"), "sketch: required one of .*, got gone"),
        (lambda r: first_parameter(r, None, 99), "required one of .*, got 99"),
        (lambda r: first_parameter(r, "another name", 1), "required a value for .*, got none"),
        (lambda r: r["parameters"].update(more=1), "required .* values, got"),
    ],
)
def test_what_the_space_no_longer_has_is_refused(
    user: Path, caplog: pytest.LogCaptureFixture, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    of_both(change)(user)
    for record in records_in(user):
        with pytest.raises(InapplicableError, match=f"^the search space has changed: .*{says}"):
            replayed(record, PROBLEM, NATIVE)
        assert "it no longer applies" in (change_since(record) or "")
        assert "it no longer applies" in describe_record(record)
    selection = select.select(PROBLEM, NATIVE, 1)
    assert selection.record is not None and selection.record.seconds == 1e-3
    assert build.kernel_for(PROBLEM).schedule.kind == "default"
    assert "the search space has changed" in caplog.text


def test_another_kernel_than_the_measured_one_is_told_and_used(user: Path, caplog: pytest.LogCaptureFixture) -> None:
    of_both(lambda record: record.update(kernel="0" * 16, workload="1"))(user)
    assert {change_since(r) for r in records_in(user)} == {"the kernel is another than the one measured; remeasure"}
    kernel = build.kernel_for(PROBLEM)
    assert (kernel.schedule.kind, kernel.schedule.record and kernel.schedule.record.seconds) == ("record", 1e-3)
    assert not caplog.messages
    assert maintain.repair(user) == (0, 2)  # whoever knows better
    assert [change_since(r) for r in records_in(user)] == [None, None]
    assert records_in(user) == [noted(record) for record in records_in(user)]


def test_the_tuners_and_compact_records_lie_beside_each_other(user: Path) -> None:
    commit_drawn(user, PROBLEM, (0.5,))
    assert [record.is_compact for record in records_in(user)] == [False, True, True]
    for seconds in (0.5e-3, 1e-3):
        selection = select.select(PROBLEM, NATIVE, 1)
        assert selection.record is not None and selection.record.seconds == seconds
        record = selection.record.load()
        assert record is not None and record.digest == selection.record.digest
        select.reject(selection, PROBLEM, NATIVE, InapplicableError("it is slow"))


def test_a_torn_end_is_left_out(user: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, last = lines_of(user / COMPACT)
    (user / COMPACT).write_bytes(first + b"\n" + last[:-40])
    caplog.set_level("WARNING")
    assert [record.line for record in records_in(user)] == [1] and not caplog.messages
    (user / COMPACT).write_bytes(json.dumps({}).encode() + b"\n" + first + b"\n")
    assert [record.line for record in records_in(user)] == [2] and "line 1: skipped" in caplog.text
