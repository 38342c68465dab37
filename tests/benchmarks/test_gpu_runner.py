"""The orchestrator of the nine-minute run, with steps that are made up."""

from __future__ import annotations

import json
import os
import signal
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.folder import RunFolder
from benchmarks.gpu.results import ARCHIVE, SUMMARY, Results
from benchmarks.gpu.runner import run
from benchmarks.gpu.steps import Item, Step
from tvm_na.reference.case import WrongNumbers

DEVICE = "tests.benchmarks.pretended:Pretended"
_NOTES = "calls.txt"


def act(what: str, number: int, notes: str) -> dict[str, Any]:
    """What an item does, in a worker."""
    with open(notes, "a", encoding="utf-8") as file:
        file.write(f"{what} {number}\n")
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what in ("sleep", "hang"):
        time.sleep(0.4 if what == "sleep" else 1000)
    if what == "wrong":
        raise WrongNumbers("out: required another number")
    if what == "raise":
        raise ValueError("argument: required another")
    return {"number": number}


def items(*whats: str) -> Callable[..., Sequence[Item]]:
    def of(folder: RunFolder, results: Results) -> Sequence[Item]:
        notes = str(folder.path / _NOTES)
        return [Item(f"{what} {number}", (what, number, notes)) for number, what in enumerate(whats)]

    return of


def unknown(folder: RunFolder, results: Results) -> Sequence[Item]:
    raise LookupError("package: required a kernel, got none")


STEPS = (
    Step("beside", 0.0, items("sleep", "work"), act, beside=2),
    Step("cut", 1.5, items(*["sleep"] * 9), act),
    Step("first", 30.0, items("work", "crash", "wrong", "hang", "raise", "work"), act, patience=0.5),
    Step("unknown", 0.0, unknown, act),
    Step("last", 20.0, items("work"), act),
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """A folder, in which a run was carried out; what it said, and what was bad."""
    folder, said = tmp_path_factory.mktemp("run"), list[str]()
    bad = run(RunFolder(folder), folder / "out", folder / "work", STEPS, DEVICE, 120.0, said.append)
    return folder, said, bad


def steps_in(output: Path, folder: Path) -> dict[str, Any]:
    with tarfile.open(output / ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


def test_what_goes_wrong_is_named_and_the_rest_goes_on(ran: Any, tmp_path: Path) -> None:
    folder, said, bad = ran
    found = steps_in(folder / "out", tmp_path)
    first = found["first"]["items"]
    assert first["work 0"] == {"value": {"number": 0}} and first["work 5"] == {"value": {"number": 5}}
    assert first["crash 1"] == {"failure": "crash", "message": "the process ended with SIGSEGV"}
    assert first["wrong 2"] == {"wrong": "out: required another number"}
    assert first["hang 3"]["failure"] == "timeout"
    assert (
        first["raise 4"]["failure"] == "error"
        and "ValueError: argument: required another" in first["raise 4"]["message"]
    )
    assert found["first"]["ended"] == found["last"]["ended"] == found["beside"]["ended"] == "done"
    assert found["unknown"]["ended"] == "failed: LookupError: package: required a kernel, got none"
    assert [line.split(":")[1].strip() for line in bad] == ["crash 1", "wrong 2", "hang 3", "raise 4", "failed"]
    assert bad[3].endswith("error: ValueError: argument: required another")
    assert [line.partition(":")[0] for line in said if "beside" not in line] == ["cut", "first", "unknown", "last"]


def test_a_step_that_runs_out_of_its_time_keeps_what_it_had(ran: Any, tmp_path: Path) -> None:
    folder, _, _ = ran
    cut = steps_in(folder / "out", tmp_path)["cut"]
    assert 1 <= len(cut["items"]) < 9
    assert cut["ended"] == f"cut: {9 - len(cut['items'])} of 9 items are not done"


def test_each_file_says_device_driver_date_versions_and_seconds(ran: Any, tmp_path: Path) -> None:
    folder, _, _ = ran
    for content in steps_in(folder / "out", tmp_path).values():
        assert (
            content["about"]["device"] == "NVIDIA Pretended H200"
            and {"driver", "date", "versions"} <= content["about"].keys()
        )
        assert content["seconds"] >= 0
    assert sorted(file.name for file in (folder / "out").iterdir()) == sorted([ARCHIVE, SUMMARY])
    summary = json.loads((folder / "out" / SUMMARY).read_text())
    assert summary["steps"]["first"]["bad"]["crash 1"] == "crash: the process ended with SIGSEGV"
    assert summary["steps"]["first"]["items"] == 6


def test_what_is_done_is_not_done_again(ran: Any, tmp_path: Path) -> None:
    folder, _, bad = ran
    notes = (folder / _NOTES).read_text().splitlines()
    before, said = steps_in(folder / "out", tmp_path / "before"), list[str]()
    again = run(RunFolder(folder), folder / "out", tmp_path / "work", STEPS, DEVICE, 120.0, said.append)
    more = (folder / _NOTES).read_text().splitlines()[len(notes) :]
    assert again == bad
    assert more and {line.split()[0] for line in more} == {"sleep"}  # those that were cut
    assert "sleep 0" not in more and {"first: done before", "last: done before"} <= {*said}
    after = steps_in(folder / "out", tmp_path / "after")
    assert {name: after[name] for name in ("first", "last")} == {name: before[name] for name in ("first", "last")}


def test_whatever_hangs_the_run_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, statuses = threading.Event(), list[int]()

    class Idle:
        def __init__(self, *_: Any) -> None: ...
        def run(self, *_: Any) -> None: ...
        def close(self) -> None: ...

    def leave(status: int) -> None:
        statuses.append(status)
        ended.set()

    def stuck(*_: Any) -> Sequence[Item]:
        assert ended.wait(20)
        return []

    monkeypatch.setattr("benchmarks.gpu.runner.Pool", Idle)
    monkeypatch.setattr(os, "_exit", leave)
    run(RunFolder(tmp_path), tmp_path / "out", tmp_path / "work", [Step("stuck", 1.0, stuck, act)], DEVICE, 0.3)
    assert statuses == [3]


def test_a_device_that_does_not_work_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a worker process could not start"):
        run(
            RunFolder(tmp_path),
            tmp_path / "out",
            tmp_path / "work",
            STEPS[-1:],
            "tests.benchmarks.pretended:None_",
            60.0,
        )
