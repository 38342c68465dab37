"""NVIDIA's tools in the nine-minute run: their commands, and what is read of what they print."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import profiled, sanitized, tools, worker
from benchmarks.gpu.folder import RunFolder
from benchmarks.gpu.plan import full_plan
from benchmarks.gpu.worker import Place
from tests.benchmarks.pretended import Pretended
from tests.helpers import run_python
from tvm_na.cuda.library import generated
from tvm_na.jit.build import scheduled_module
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.targets.target import parse_target

SAMPLES = Path(__file__).parent / "samples"
SM_90 = parse_target("cuda-sm_90")


def sample(name: str) -> str:
    return (SAMPLES / name).read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = Place("module:Device", Pretended(), RunFolder(tmp_path / "folder"), tmp_path / "results")
    monkeypatch.setattr(worker, "_here", [place])
    return place


def test_metrics_are_read_launch_by_launch() -> None:
    first, second = profiled.parsed(sample("ncu.csv"))
    assert first["kernel"] == second["kernel"] == "na2d_8x8_kernel"
    assert (first["grid"], first["block"], second["block"]) == ("(512, 1, 1)", "(128, 1, 1)", "(64, 1, 1)")
    assert first["sections"] == {
        "GPU Speed Of Light Throughput": {"Memory Throughput": "41.20 %", "Elapsed Cycles": "1234567 cycle"},
        "Occupancy": {"Achieved Occupancy": "24.9 %"},
    }
    assert first["rules"] == ["Stalls, mostly."] and second["rules"] == []


@pytest.mark.parametrize("text", ["", "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n"])
def test_no_metrics_are_none(text: str) -> None:
    assert profiled.parsed(text) == []


@pytest.mark.parametrize(
    ("file", "summary", "found"),
    [
        ("memcheck.txt", "ERROR SUMMARY: 2 errors", {"4: wrong, 8x8": ["Invalid __global__ read of size 4 bytes"] * 2}),
        ("racecheck.txt", "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", {"3: right": [...]}),
    ],
)
def test_what_a_sanitizer_finds_has_the_kernels_name(file: str, summary: str, found: dict[str, list[str]]) -> None:
    told, kernels = sanitized.parsed(sample(file))
    assert told == summary and kernels.keys() == found.keys()
    for name, messages in found.items():
        assert messages == [...] or kernels[name] == messages
        assert all(message.startswith(("Invalid", "Error: Race reported")) for message in kernels[name])


def test_a_sanitizer_that_did_not_end_has_no_summary() -> None:
    assert sanitized.parsed(sample("memcheck.txt").partition("========= ERROR SUMMARY")[0])[0] is None


def test_commands(place: Place) -> None:
    program = [
        sys.executable,
        "-m",
        "benchmarks.gpu.launch",
        "module:Device",
        str(place.folder.path),
        str(place.results),
    ]
    words = sanitized.command(Path("/cuda/compute-sanitizer"), "racecheck", [4, 7])
    assert words[:5] == ["/cuda/compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9"]
    assert words[-9:] == [*program, "3", "4", "7"]
    words = profiled.command(Path("/cuda/ncu"), Path("report.csv"), [5], 128)
    assert words[0] == "/cuda/ncu" and words[-8:] == [*program, "128", "5"]
    sections = [word for before, word in itertools.pairwise(words) if before == "--section"]
    assert {"SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats", "Occupancy"} <= set(sections)
    assert words[words.index("--log-file") + 1] == "report.csv"


def test_a_tool_that_does_not_end_is_ended_with_what_it_started(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    status, said = tools.run(["sh", "-c", "echo begun; sleep 1000 & echo $!; wait"], log, 0.5)
    begun, process = said.split()
    assert status is None and begun == "begun"
    until = time.monotonic() + 5
    while Path(f"/proc/{process}").exists() and "Z" not in Path(f"/proc/{process}/stat").read_text().split()[2]:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_tool_ends_with_the_worker_that_started_it(tmp_path: Path) -> None:
    code = """
        import os, sys
        from pathlib import Path
        import threading
        from benchmarks.gpu import tools

        threading.Timer(0.5, os._exit, (0,)).start()
        tools.run(["sh", "-c", "echo $$; exec sleep 1000"], Path(sys.argv[1]), 100.0)
    """
    run_python(code, str(tmp_path / "log.txt"))
    process = (tmp_path / "log.txt").read_text().strip()
    until = time.monotonic() + 5
    while Path(f"/proc/{process}").exists() and "Z" not in Path(f"/proc/{process}/stat").read_text().split()[2]:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("strips", "tvm_na_write_bias"),
        ("strips of groups", "tvm_na_load_pair"),
        ("one pass", "tvm_na_copy_16"),
        ("TF32", ".tf32"),
        ("gather", None),
        ("gradients", None),
        ("gradients on tensor cores", "tvm_na_add_diagonals"),
        ("unfused", None),
    ],
)
def test_the_sanitizer_sees_one_of_each(name: str, has: str | None) -> None:
    tiny = full_plan().tiny
    module, space = scheduled_module(tiny[name], SM_90)
    source, _ = generated(module, SM_90)
    if has is not None:
        assert has in source and "mma.sync" in source
    elif name == "gather":
        assert space.name == "cuda-gather"
    else:
        assert isinstance(tiny[name], BackwardProblem if name == "gradients" else UnfusedProblem)
    assert len(tiny) == 8
