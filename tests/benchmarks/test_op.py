"""What the operator's benchmark concludes, and how it goes on; on a GPU without one."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import common, machine, op
from benchmarks.case import Case
from benchmarks.op_case import OpCase
from tvm_na import settings
from tvm_na.jit import build
from tvm_na.measure.clocks import CudaClock
from tvm_na.measure.timing import Timing
from tvm_na.problems.attention import NAProblem

ROOT = Path(__file__).parents[2]
PEERS = [peer.name for peer in op.PEERS["cpu"]]


def case_with(error: float, peer_error: float = 0.0) -> OpCase:
    case = op.all_cases("cpu")[0]
    fast, slow = Timing((1e-3,)), Timing((6e-3,))
    first, second, _ = PEERS
    case.timings = {op.OURS: fast, op.DEFAULT: slow, first: slow, second: Timing((2e-4,)), op.MATMUL: fast}
    case.errors = {op.OURS: error, op.DEFAULT: 0.0, first: 0.0, second: peer_error}
    return case


def test_a_wrong_peer_does_not_count():
    assert case_with(0.0, peer_error=0.1).over_peer() == pytest.approx(6.0)
    assert case_with(0.0, peer_error=0.0).over_peer() == pytest.approx(0.2)


def test_wrong_numbers_of_ours_are_refused():
    case = case_with(1e-3, peer_error=0.1)
    assert case.over_peer() is None
    assert op.geomean([case]) is None
    assert op._cell(case, op.OURS) == "[red]wrong numbers[/red]"
    assert len(op.failures_of([case])) == 3


def test_the_check_wants_every_stage():
    good, slow = case_with(0.0, peer_error=0.1), case_with(0.0)
    assert op.failures_of([good]) == []
    assert any("slower than" in failure for failure in op.failures_of([good, slow]))


def test_the_check_wants_to_be_faster_in_most_rounds_as_well():
    case = case_with(0.0, peer_error=0.1)
    case.timings[PEERS[0]] = Timing((6e-3, 9e-4, 1e-2))
    case.timings[op.OURS] = Timing((1e-3, 1e-3, 2e-2))
    assert (case.over_peer(), case.over_peer(by_round=True)) == (pytest.approx(6.0), pytest.approx(0.9))
    assert len(op.failures_of([case])) == 2


def test_useful_work_of_the_matrix_product():
    case = case_with(0.0)
    assert case.matmul_time == pytest.approx(1e-3 * case.problem.useful_flops / (2 * 1024**3))


def test_ratios_of_the_default_and_the_matrix_product():
    case = case_with(0.0)
    case.timings[op.DEFAULT] = Timing((5e-4, 2e-3, 2e-3))
    case.timings[op.OURS] = Timing((1e-3, 1e-3, 4e-3))
    assert (case.over_default(), case.over_default(by_round=True)) == (pytest.approx(2.0), pytest.approx(0.5))
    case.duel = {op.OURS: Timing((1e-3,)), op.DEFAULT: Timing((3e-3,))}
    assert case.over_default() == case.over_default(by_round=True) == pytest.approx(3.0)
    assert case.of_matmul() == pytest.approx(2 * 1024**3 / case.problem.useful_flops)
    case.errors[op.DEFAULT] = 1e-3
    assert case.over_default() is None
    assert case_with(1e-3).of_matmul() is None
    assert [op.mean_of([2.0, 8.0]), op.mean_of([2.0, None]), op.mean_of([])] == [pytest.approx(4.0), None, None]


def test_goals_of_tuning_are_named_one_by_one():
    case = case_with(0.0, peer_error=0.1)  # 6x the peer, 6x the default, 55x the matrix product
    goals = op.tuning_goals([case])
    assert [goal.met for goal in goals] == [False, True, False] * 2
    assert (
        str(goals[1])
        == "goal met: default schedule's time over ours, geometric mean, medians: required >= 1.3x, got 6.00x"
    )
    case.timings[op.MATMUL] = Timing((0.1,))
    case.timings[PEERS[0]] = Timing((1.2e-2,))
    assert all(goal.met for goal in op.tuning_goals([case]))
    refused = op.tuning_goals([case, case_with(1e-3)])
    assert not any(goal.met for goal in refused) and "refused" in str(refused[0])


def test_ours_and_the_default_are_different_kernels(monkeypatch):
    asked = []
    kernel_for = build.kernel_for
    monkeypatch.setenv("TVM_NA_RECORDS", "shipped")
    monkeypatch.setattr(build, "kernel_for", lambda *p: asked.append(settings.records_mode()) or kernel_for(*p))
    problem = NAProblem.make((9, 9), 3, 1, 8)
    q = torch.rand(1, 9, 9, 1, 8)
    with torch.inference_mode():
        calls = op.our_calls(problem, q, q, q)
        assert torch.allclose(calls[op.OURS](), calls[op.DEFAULT](), atol=1e-5)
    assert asked == ["shipped", "off"]


def test_ours_and_peers_have_the_bias_of_a_problem(monkeypatch):
    (gather, *_) = op.PEERS["cpu"]
    monkeypatch.setitem(op.PEERS, "cpu", (gather,))
    case = OpCase(NAProblem.make((9, 9), 3, 2, 8, bias=True))
    with torch.inference_mode():
        op.run_case(case, rounds=1)
    assert case.name.endswith("2 heads, bias")
    assert all(map(case.is_right, (op.OURS, op.DEFAULT, gather.name))), (case.errors, case.unavailable)


def test_results_are_json_and_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    case = case_with(0.0, peer_error=0.1)
    json.dumps(case.to_dict())
    op.plot([case, case_with(1.0)], tmp_path / "new" / "op.png")
    assert (tmp_path / "new" / "op.png").stat().st_size > 1000


# --- on a GPU, without one


def test_cases_on_a_gpu_move_what_they_say() -> None:
    cases = op.all_cases("cuda")
    assert len(cases) == len({case.name for case in cases}) == 24 and {case.batch for case in cases} == {1, 128}
    assert sum(case.problem.bias for case in cases) == 8  # NAT's layers have one
    case = Case(NAProblem.make((7, 7), 7, 16, 32, dtype="float16"), 3, "cuda")
    assert case.bytes_of(4) == 4 * 3 * 7 * 7 * 16 * 32 * 2


def test_a_benchmark_on_a_gpu_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "machine_of", lambda device: {"device": "none"})
    ran: list[str] = []
    output = tmp_path / "new" / "op.json"

    def run_case(case: OpCase) -> None:
        ran.append(case.name)
        if len(ran) == 3:
            raise KeyboardInterrupt
        case.timings, case.errors = {op.OURS: Timing((1e-3, 2e-3), 4)}, {op.OURS: 1e-6}

    def write(done: list[OpCase]) -> None:
        common.write_json(output, {"stages": [Case.to_dict(case) | {"schedule": "s"} for case in done]}, "cuda")

    def carry_out(dtype: str | None) -> list[OpCase]:
        return op.carry_out(op.all_cases("cuda"), run_case, write, output, Console(file=io.StringIO()), dtype)

    with pytest.raises(KeyboardInterrupt):
        carry_out(None)
    halves = carry_out("float16")
    names = [case.name for case in op.all_cases("cuda") if case.problem.dtype == "float16"]
    assert ran == [*names[:3], *names[2:]]
    assert [case.name for case in halves] == names
    assert {(case.timings[op.OURS].samples, case.timings[op.OURS].calls) for case in halves} == {((1e-3, 2e-3), 4)}
    both = carry_out("float32")
    assert len(both) == 24 and len(ran) == 3 + 10 + 12
    assert [case["case"] for case in json.loads(output.read_text())["stages"]] == [case.name for case in both]


def test_one_sample_is_timed_by_replays_of_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of everybody; a peer that no graph can capture is told by name."""
    seen: list[tuple[Any, ...]] = []

    class Clock:
        def __init__(self, fewest: int) -> None:
            self.fewest = fewest

        def seconds(self, call: Any, count: int) -> float:
            return float(call())

    def refuse() -> float:
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be")

    monkeypatch.setattr("benchmarks.case.GraphClock", Clock)
    monkeypatch.setattr("benchmarks.case.measure", lambda right, clock, **_: seen.append((*right, clock)) or {})
    problem = NAProblem.make((7, 7), 7, 16, 32, dtype="float16")
    for batch in (1, 128):
        case = OpCase(problem, batch, "cuda")
        case.errors = {op.OURS: 0.0, "flex": 0.0, "SDPA": 0.0}
        case.measure({op.OURS: lambda: 1.0, "flex": refuse, "SDPA": lambda: 2.0}, 1, {op.COPY: lambda: 1.0})
        assert Case.to_dict(case)["replayed"] == (batch == 1)
        told = {"flex": "no CUDA graph: operation not permitted when stream is capturing"}
        assert case.unavailable == (told if batch == 1 else {}) and ("flex" in case.errors) == (batch == 128)
    (*replayed, clock), (*timed, other) = seen
    assert replayed == [op.OURS, "SDPA", op.COPY] and timed == [op.OURS, "flex", "SDPA", op.COPY]
    assert isinstance(clock, Clock) and clock.fewest == 64 and isinstance(other, CudaClock)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_benchmarks_on_a_gpu_say_that_there_is_none() -> None:
    command = [sys.executable, "-m", "benchmarks.op", "--device", "cuda", "--dtype", "float16"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "required a CUDA device, got none" in done.stdout


def test_the_driver_is_known_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.driver_version() is None
    for answer, expected in (("echo 580.159.03; echo 580.159.03", "580.159.03"), ("exit 9", None), ("true", None)):
        tool.write_text(f"#!/bin/sh\n{answer}\n")
        tool.chmod(0o755)
        assert machine.driver_version() == expected


def test_results_on_a_gpu_are_told_beside_the_bound() -> None:
    good, refused = op.all_cases("cuda")[:2]
    times = {op.OURS: 2e-5, "flex": 6e-5, op.COPY: 1e-5}
    for case, names in ((good, times), (refused, [name for name in times if name != op.OURS])):
        case.timings = {name: Timing((times[name],)) for name in names}
        case.errors = {name: 0.0 for name in names if name != op.COPY}
    console = Console(width=200, record=True, file=io.StringIO())
    op.show([good, refused], console)
    text = console.export_text()
    assert "2.00x / 2.00x" in text and "3.00x / 3.00x" in text and "refused" in text
    found: dict[str, Any] = good.to_dict()
    assert (found["of_copy"], found["speedup"]) == (pytest.approx(2.0), pytest.approx(3.0))
