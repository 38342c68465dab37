"""The nine-minute run from end to end, without a GPU: its real steps on a pretended one, with kernels that go wrong."""

from __future__ import annotations

import json
import sys
import tarfile
import textwrap
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import estimated
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.folder import KERNELS, RunFolder
from benchmarks.gpu.plan import PLANS
from benchmarks.gpu.results import ARCHIVE
from benchmarks.gpu.schedule import STEPS
from tests.benchmarks import pretended
from tests.cuda.static.test_bounds import FACTS
from tests.packages.made_up import library_of, made_up
from tvm_na.cuda.static.bounds import estimate
from tvm_na.targets.gpus import gpu_of

DEVICE = "tests.benchmarks.pretended:Pretended"

SAMPLES = Path(__file__).parent / "samples"


def script(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    file.chmod(0o755)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A prepared folder whose libraries were never compiled, with kernels that do not do what they should."""
    path = tmp_path_factory.mktemp("prepared")
    plan = PLANS["rehearsed"]()
    made_up(path / KERNELS, *plan.searched, *plan.defaults())
    nat, other = plan.searched[0], plan.checked[0]
    faults = {library_of(nat, 2): "wrong", library_of(other, 1): "crash", library_of(other, 2): "lose"}
    (path / pretended.FAULTS).write_text(json.dumps({library.decode(): what for library, what in faults.items()}))
    until = 'while [ "$1" != {} ]; do shift; done'
    script(path / "tools" / "ncu", f"{until.format('--log-file')}; cat {SAMPLES}/ncu.csv > $2")
    program = f"""
        if [ $2 = racecheck ]; then cat {SAMPLES}/racecheck.txt; exit 9; fi
        {until.format(sys.executable)}
        "$@" && echo "========= ERROR SUMMARY: 0 errors"
    """
    script(path / "tools" / "compute-sanitizer", textwrap.dedent(program))
    known = {"problem": nat.to_json(), "batch": pretended.Pretended.batch, "functions": [FACTS.to_dict()]}
    (path / estimated.FILE).write_text(json.dumps([known]))
    return RunFolder.describe(path, "rehearsed")


@pytest.fixture(scope="module")
def ran(folder: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results by step."""
    output = tmp_path_factory.mktemp("out")
    status = main([str(folder.path), "--output", str(output), "--seconds", "300", "--device", DEVICE])
    assert status == 1
    assert len(list(output.iterdir())) <= 8
    into = output.parent / "unpacked"
    with tarfile.open(output / ARCHIVE) as archive:
        archive.extractall(into, filter="data")
    return {file.stem: json.loads(file.read_text()) for file in into.glob("*.json")}


def test_every_step_is_done(ran: dict[str, Any]) -> None:
    assert {step: found["ended"] for step, found in ran.items()} == {step.name: "done" for step in STEPS}
    assert [step.seconds for step in STEPS[1:]] == [15, 60, 20, 80, 20, 5, 110, 70, 60, 60, 40]


def test_every_kernel_that_goes_wrong_is_named_and_left_out(ran: dict[str, Any], folder: RunFolder) -> None:
    right = ran["right"]["items"]
    assert len(right) == len(folder.package.kernels)
    bad = {name: found for name, found in right.items() if found != {"value": {}}}
    wrong, crashed, lost = bad.values()
    assert all(f" {folder.plan.checked[0]}; " in name or f" {folder.plan.searched[0]}; " in name for name in bad)
    assert wrong["wrong"].startswith("out: required a relative error <= 2e-03, got 1.0e-01")
    assert (crashed["failure"], crashed["message"]) == ("crash", "the process ended with SIGSEGV")
    assert lost["failure"] == "crash" and "illegal memory access" in lost["message"]
    assert not bad.keys() & ran["points"]["items"].keys() and ran["points"]["items"].keys() < right.keys()


def test_times_stand_beside_estimates(ran: dict[str, Any], folder: RunFolder) -> None:
    known = [found["value"] for found in ran["table"]["items"].values() if found["value"]["estimated"]]
    (found,) = known
    assert found["problem"] == str(folder.plan.searched[0]) and found["batch"] == pretended.Pretended.batch
    wanted = estimate(FACTS, gpu_of(folder.package.target, "H200"))
    assert found["estimated"] == wanted.to_dict()
    assert found["ours_over_estimated"] == found["tvm_na"]["median"] / wanted.seconds


def test_large_windows_are_compared_too(ran: dict[str, Any], folder: RunFolder) -> None:
    large = [found["value"] for found in ran["table"]["items"].values() if "copy" not in found["value"]]
    assert [found["problem"] for found in large] == [str(folder.plan.timed[1])] and large[0]["batch"] == 1


def test_peers_that_do_not_run_say_why(ran: dict[str, Any]) -> None:
    of_peer = {name.rpartition("; ")[2]: found["value"] for name, found in ran["peers"]["items"].items()}
    assert of_peer["broken"]["unavailable"] == "NotImplementedError: this peer is never there"
    for name in ("SDPA", "gather"):
        found = of_peer[name]
        assert found["relative_error"] < 2e-3
        assert {"tvm_na", name, "copy", "peer_over_ours", "ours_over_copy"} <= found.keys()


def test_tools_are_asked_and_heard(ran: dict[str, Any], folder: RunFolder) -> None:
    (profile,) = ran["ncu"]["items"].values()
    assert len(profile["value"]["launches"]) == 2
    memcheck, racecheck = (ran["sanitizer"]["items"][tool] for tool in ("memcheck", "racecheck"))
    assert memcheck["value"]["summary"] == "ERROR SUMMARY: 0 errors"
    assert len(memcheck["value"]["kernels"]) == len(folder.plan.tiny)
    assert racecheck["wrong"].startswith(
        "racecheck: RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings): 3: right"
    )


def test_the_model_and_launches_are_compared(ran: dict[str, Any]) -> None:
    assert ran["nat"]["items"]["forward"]["value"]["errors"].keys() == {"eager", "graph"}
    assert {name: found["value"]["calls"] for name, found in ran["launches"]["items"].items()} == {
        "plain": 1,
        "offset views": 4,
        "side stream": 1,
        "two streams": 16,
        "graph": 2,
    }


def test_a_folder_that_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--output", str(tmp_path / "out"), "--device", DEVICE]) == 2
    assert "package: required a manifest.json" in capsys.readouterr().out


def test_a_package_that_was_built_elsewhere_gives_no_records(ran: dict[str, Any]) -> None:
    (found,) = ran["records"]["items"].values()
    assert (
        found["failure"] == "error"
        and "package: required one that was built with the versions, expressions and schedules at hand"
        in found["message"]
    )
