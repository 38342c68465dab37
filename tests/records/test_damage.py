"""Folders of records that hold anything: a warning and no records, never an exception where a schedule is chosen."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.invoking import invoke
from tests.records.tuned import as_users, commit_drawn, edit_compact, edit_line, edit_meta, forget
from tvm_na.problems.attention import NAProblem
from tvm_na.records import maintain, select
from tvm_na.records.checksums import CHECKSUMS, begin_checksums
from tvm_na.records.files import COMPACT, META, RECORDS, WORKLOADS, indexes_dir, rejections_dir
from tvm_na.records.read import records_in
from tvm_na.records.rejections import InapplicableError, Rejections
from tvm_na.targets.target import detect_target

PROBLEM, NEAR = NAProblem.make((9, 9), 3, 1, 8), NAProblem.make((9, 9), 3, 1, 8, bias=True)
NATIVE = detect_target()
DEEP = "[" * 200_000 + "]" * 200_000


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two records of PROBLEM."""
    folder = tmp_path_factory.mktemp("records")
    commit_drawn(folder, PROBLEM, (2, 1))
    return folder


@pytest.fixture
def user(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the user's, of a process that knows nothing yet."""
    return as_users(original, tmp_path, monkeypatch)


def replace(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8") and None


def in_record(change: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        for number in (1, 2):
            edit_line(folder, number, lambda record: change(record))

    return harm


def in_meta(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit_meta(folder, change)


def of_all(**values: Any) -> Callable[[Path], None]:
    return in_meta(lambda meta: [about.update(values) for about in meta["workloads"].values()])


def in_place_of(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return harm


def raw(old: str, new: str) -> Callable[[Path], None]:
    """Change the text of all lines, as if they had been written so."""

    def harm(folder: Path) -> None:
        text = (folder / RECORDS).read_text(encoding="utf-8")
        assert old in text
        (folder / RECORDS).write_text(text.replace(old, new), encoding="utf-8")
        begin_checksums(folder, anew=True)

    return harm


def in_compact(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change all compact records, which are what there is then."""

    def harm(folder: Path) -> None:
        maintain.prune(folder, 9)
        for number in (1, 2):
            edit_compact(folder, number, change)

    return harm


def compact_is(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        maintain.prune(folder, 9)
        in_place_of(COMPACT, make)(folder)

    return harm


def folder_is(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        shutil.rmtree(folder)
        make(folder)

    return harm


def loop(path: Path) -> None:
    path.symlink_to(path)


HUGE = 10**4000
PROBLEM_OF_HUGE = json.dumps({**json.loads(PROBLEM.to_json()), "spatial": [HUGE, HUGE]})
HARMS: dict[str, Callable[[Path], None]] = {
    "nested records": replace(RECORDS, DEEP + "\n" + DEEP + "\n"),
    "nested trace": raw('[[["', '[[["x",' + "[" * 50_000 + "]" * 50_000 + '],["'),
    "nested meta": replace(META, DEEP),
    "nested problem": of_all(problem=DEEP),
    "digits": raw('"num-cores":1', '"num-cores":' + "9" * 100_000),
    "huge threads": in_record(lambda r: r[1][2].__setitem__("num-cores", HUGE)),
    "threads by word": in_record(lambda r: r[1][2].__setitem__("num-cores", "1")),
    "huge batch": in_record(lambda r: r[1][3][0][2].__setitem__(0, HUGE)),
    "huge time": in_record(lambda r: r[1].__setitem__(1, [-HUGE])),
    "infinite time": raw('"num-cores":1', '"num-cores":Infinity'),
    "time by word": in_record(lambda r: r[1].__setitem__(1, "soon")),
    "a target of lists": in_record(lambda r: r[1][2].update(kind=[], mcpu={}, mattr=7)),
    "huge problem": of_all(problem=PROBLEM_OF_HUGE),
    "mistyped problem": of_all(problem=["9x9"]),
    "a problem that is a list": of_all(problem="[]"),
    "mistyped versions": of_all(tvm=[{}]),
    "versions that are a number": of_all(tvm=7),
    "mistyped workloads": in_meta(lambda m: m.update(workloads=[1])),
    "workloads of lists": in_meta(lambda m: m.update(workloads={k: [] for k in m["workloads"]})),
    "meta of another kind": replace(META, '["format"]'),
    "meta that is a folder": in_place_of(META, Path.mkdir),
    "meta that is a pipe": in_place_of(META, os.mkfifo),
    "records that are a folder": in_place_of(RECORDS, Path.mkdir),
    "records that are a pipe": in_place_of(RECORDS, os.mkfifo),
    "records in a loop": in_place_of(RECORDS, loop),
    "workloads in a loop": in_place_of(WORKLOADS, loop),
    "workloads of nothing": replace(WORKLOADS, "\n" * 1000),
    "checksums that are a folder": in_place_of(CHECKSUMS, Path.mkdir),
    "compact problem of huge sizes": in_compact(lambda r: r["problem"].update(spatial=[HUGE, HUGE])),
    "compact problem that is a list": in_compact(lambda r: r.update(problem=[])),
    "compact parameters by word": in_compact(lambda r: r["parameters"].update({"rows per task": "9"})),
    "compact parameters that are a list": in_compact(lambda r: r.update(parameters=[1])),
    "compact time that is none": in_compact(lambda r: r.update(seconds=[float("nan")])),
    "compact default by word": in_compact(lambda r: r.update(default_seconds="soon")),
    "compact threads of none": in_compact(lambda r: r.update(threads=0)),
    "compact target of another kind": in_compact(lambda r: r["target"].update(vector_registers=7)),
    "compact target that nobody knows": in_compact(lambda r: r["target"].update(name="native")),
    "compact record without a sketch": in_compact(lambda r: r.pop("sketch")),
    "compact versions that are a number": in_compact(lambda r: r.update(versions=7)),
    "compact records nested": compact_is(lambda file: file.write_text(DEEP + "\n" + DEEP + "\n")),
    "compact records that are a folder": compact_is(Path.mkdir),
    "compact records that are a pipe": compact_is(os.mkfifo),
    "a folder that is a file": folder_is(Path.touch),
    "a folder that is a loop": folder_is(loop),
}


@pytest.mark.parametrize("name", HARMS)
def test_choosing_a_schedule_goes_on(user: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    HARMS[name](user)
    for problem in (PROBLEM, NEAR):
        assert select.select(problem, NATIVE, 1).kind == "default"
    assert str(user) in caplog.text
    assert sum(map(len, caplog.messages)) < 4000
    output = invoke("info").output
    assert "tuning records" in output and "Traceback" not in output


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_may_not_be_read_is_skipped(
    user: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """As by chmod 0, which does not keep root out."""
    place, original = (user if what == "folder" else user / RECORDS), (os.stat, os.open)

    def refuse(real: Any) -> Any:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(path, (str, Path)) and (Path(path) == place or place in Path(path).parents):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *arguments, **options)

        return call

    monkeypatch.setattr(os, "stat", refuse(original[0]) if what == "folder" else original[0])
    monkeypatch.setattr(os, "open", refuse(original[1]))
    assert [select.select(problem, NATIVE, 1).kind for problem in (PROBLEM, PROBLEM, NEAR)] == ["default"] * 3
    (message,) = caplog.messages
    assert str(user) in message and "Permission denied" in message


# --- what is remembered


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, loop, lambda file: file.write_bytes(b"\xff\n")])
def test_a_remembered_choice_that_cannot_be_read_is_made_anew(
    user: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any]
) -> None:
    found = select.select(PROBLEM, NATIVE, 1)
    assert found.record is not None
    Rejections(PROBLEM, NATIVE).add(found.record, InapplicableError("it is slow"))
    for folder in (indexes_dir(), rejections_dir()):
        for file in folder.iterdir():
            file.unlink()
            make(file)
    forget(monkeypatch)
    again = select.select(PROBLEM, NATIVE, 1)
    assert again.record is not None and again.record.seconds in (1e-3, 2e-3)


# --- checksums


def test_a_damaged_line_is_told_by_its_checksum(user: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (user / RECORDS).read_text(encoding="utf-8")
    (user / RECORDS).write_text(text.replace("0.0022", "0.0012"), encoding="utf-8")
    assert [record.line for record in records_in(user)] == [2]
    assert f"{user / RECORDS}, line 1: skipped, not as it was written" in caplog.text
    maintain.repair(user)
    assert [record.run_secs[0] for record in records_in(user)] == [pytest.approx(0.0012), pytest.approx(0.0011)]


def test_a_damaged_compact_line_is_told_by_its_own_checksum(user: Path, caplog: pytest.LogCaptureFixture) -> None:
    maintain.prune(user, 9)
    file = user / COMPACT
    file.write_bytes(file.read_bytes().replace(b"0.0022", b"0.0012")[:-5])
    caplog.set_level(logging.WARNING)
    assert records_in(user) == []
    (message,) = caplog.messages  # that of the torn end would be information
    assert f"{file}, line 1: skipped, not as it was written" in message
    assert maintain.repair(user) == (0, 0)
    assert [max(record.run_secs) for record in records_in(user)] == [0.002]


def test_a_line_of_another_workload_is_told(user: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Workloads files of two folders, mixed up."""
    commit_drawn(user, NEAR, (4,))
    lines = (user / WORKLOADS).read_bytes().splitlines(keepends=True)
    (user / WORKLOADS).write_bytes(b"".join(reversed(lines)))
    assert records_in(user) == []
    assert caplog.text.count("not as it was written") == 3


def test_whatever_is_written_can_be_checked(user: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (user / CHECKSUMS).unlink()  # as folders were
    assert len(records_in(user)) == 2
    maintain.merge([user], tmp_path / "merged")
    commit_drawn(user, NEAR, (4,))
    maintain.prune(tmp_path / "merged", 1)
    assert len(records_in(tmp_path / "merged")) == 1
    assert len(records_in(user)) == 3 == len((user / CHECKSUMS).read_text(encoding="ascii").splitlines())
    with (user / CHECKSUMS).open("ab") as torn:
        torn.write(b"0123")  # its writer was killed
    commit_drawn(user, NEAR, (5,))
    assert len(records_in(user)) == 4
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_warnings_are_bounded(user: Path, caplog: pytest.LogCaptureFixture) -> None:
    (user / RECORDS).write_text("{}\n" * 5000, encoding="utf-8")
    assert records_in(user) == []
    assert len(caplog.messages) == 6 and "skipped 4995 more lines" in caplog.text
