"""Timing, errors and the refusal of speedups; the peers compute the same function."""

from __future__ import annotations

import io
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import cuda, cuda_model, cuda_peers, gpu_machine, op, peers
from tests.conftest import TOLERANCE
from tvm_na import settings
from tvm_na.jit import build
from tvm_na.measure.timing import Timing, format_speedup, format_time, measure, speedup, versions
from tvm_na.models.problems import problem_of_module
from tvm_na.nn import NeighborhoodAttention2D
from tvm_na.ops import launch as launchers
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference
from tvm_na.reference.accuracy import ERROR_BUDGET, relative_error

ROOT = Path(__file__).parents[2]
PROBLEMS = [
    NAProblem.make((9, 6), 3, 2, 4),
    NAProblem.make((8, 9), (4, 5), 2, 4),
    NAProblem.make((11, 13), 3, 2, 4, dilation=(2, 3)),
    NAProblem.make((7, 7), 7, 1, 8),
]


# --- timing


def test_timing_statistics():
    timing = Timing((4.0, 1.0, 2.0, 3.0, 10.0))
    assert (timing.median, timing.minimum, timing.maximum, timing.spread) == (3.0, 1.0, 10.0, 2.0)
    assert json.loads(json.dumps(timing.to_dict()))["samples"] == [4.0, 1.0, 2.0, 3.0, 10.0]


def test_one_sample_has_no_spread():
    assert Timing((1.0,)).spread == 0.0


def test_timing_needs_a_sample():
    with pytest.raises(ValueError, match="samples: required at least one"):
        Timing(())


def test_candidates_take_turns():
    order: list[str] = []
    functions = {name: (lambda name=name: order.append(name)) for name in "abc"}
    timings = measure(functions, rounds=4, sample_time=0.0, warmup_time=0.0)
    assert list(timings) == ["a", "b", "c"]
    assert all(len(t.samples) == 4 and t.calls == 1 and t.minimum > 0 for t in timings.values())
    # Two calls of warm-up each; then, per round, one untimed and one timed call of each, another one first.
    assert "".join(order) == "aabbcc" + "aabbcc" + "bbccaa" + "ccaabb" + "aabbcc"


def test_a_sample_lasts_long_enough():
    timing = measure({"f": lambda: None}, rounds=2, sample_time=1e-3, warmup_time=1e-3)["f"]
    assert timing.calls > 100


@pytest.mark.parametrize(
    ("functions", "options", "message"),
    [
        ({}, {}, "functions: required at least one"),
        ({"f": int}, {"rounds": 0}, "rounds: required an integer >= 1, got 0"),
        ({"f": int}, {"rounds": True}, "rounds: required an integer >= 1, got True"),
        ({"f": int}, {"sample_time": -1.0}, "sample_time: required seconds >= 0, got -1"),
        ({"f": int}, {"warmup_time": math.nan}, "warmup_time: required seconds >= 0, got nan"),
    ],
)
def test_measure_refuses(functions, options, message):
    with pytest.raises(ValueError, match=message):
        measure(functions, **options)


# --- numbers


def test_relative_error_is_of_the_largest():
    right = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert relative_error(torch.tensor([1.5, -4.0]), right) == 0.125


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_infinitely_wrong(bad):
    assert relative_error(torch.tensor([1.0, bad]), torch.ones(2)) == math.inf


def test_relative_error_of_zeros_and_nothing():
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_error(torch.ones(2), torch.zeros(2)) == math.inf
    assert relative_error(torch.zeros(0, 3), torch.zeros(0, 3)) == 0.0


def test_relative_error_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"out: required the reference's shape \(2,\), got \(3,\)"):
        relative_error(torch.zeros(3), torch.zeros(2))


def test_the_budget_is_that_of_the_tests():
    assert ERROR_BUDGET == TOLERANCE


def test_no_speedup_for_wrong_numbers():
    fast, slow = Timing((1.0,)), Timing((3.0,))
    assert speedup(fast, slow, 1e-6, 2e-6) == 3.0
    assert speedup(fast, slow, 3e-6, 2e-6) is None
    assert speedup(fast, slow, math.nan, 2e-6) is None
    assert (format_speedup(3.0), format_speedup(None)) == ("3.00x", "wrong numbers")


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.53e-3, "1.53 ms"), (0.0237, "23.7 ms"), (0.2, "200 ms"), (3e-6, "0.0030 ms")]
)
def test_times_for_people(seconds, text):
    assert format_time(seconds) == text


def test_versions_are_known():
    assert versions()["torch"] == torch.__version__
    assert set(versions()) == {"python", "tvm_na", "torch", "tvm", "tvm_ffi"}


# --- peers


def tensors_of(problem: NAProblem) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, *problem.spatial, problem.heads, problem.head_dim) for _ in range(3)]


def exact(problem: NAProblem, tensors: list[torch.Tensor]) -> torch.Tensor:
    return reference.neighborhood_attention(problem, *(t.double() for t in tensors), problem.head_dim**-0.5)[0]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("prepare", [peers.gather_einsum, peers.masked_sdpa])
def test_peer_computes_neighborhood_attention(prepare, problem):
    tensors = tensors_of(problem)
    q, k, v = (peers.heads_first(t) for t in tensors)
    out = prepare(problem, (q, k, v))()
    assert relative_error(out, peers.heads_first(exact(problem, tensors))) <= ERROR_BUDGET["float32"]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_masks_are_the_window(problem):
    height, width = problem.spatial
    expected = torch.zeros(height, width, height, width, dtype=torch.bool)
    for axis_pairs in itertools.product(*(_pairs(problem, axis) for axis in (0, 1))):
        (i, y), (j, x) = axis_pairs
        expected[i, j, y, x] = True
    expected = expected.reshape(height * width, height * width)
    assert torch.equal(peers.dense_mask(problem), expected)
    token = torch.arange(height * width)
    zero = torch.tensor(0)
    assert torch.equal(peers.window_mask_mod(problem)(zero, zero, token[:, None], token), expected)


def _pairs(problem: NAProblem, axis: int) -> list[tuple[int, int]]:
    """(query, key) of one axis, from the definition, one query at a time."""
    n, k, d = problem.spatial[axis], problem.kernel_size[axis], problem.dilation[axis]
    found = []
    for i in range(n):
        group = list(range(i % d, n, d))
        start = min(max(group.index(i) - k // 2, 0), len(group) - k)
        found += [(i, key) for key in group[start : start + k]]
    return found


@pytest.mark.parametrize(("dilation", "bias"), [(1, True), (2, True), (1, False)])
def test_model_with_dense_masks_is_the_model(dilation, bias):
    torch.manual_seed(0)
    module = NeighborhoodAttention2D(16, 2, 3, dilation=dilation, rel_pos_bias=bias, backend="reference").eval()
    x = torch.randn(2, 7, 9, 16)
    peer = peers.DenseMaskAttention(module, problem_of_module(module, x.shape))
    with torch.no_grad():
        assert relative_error(peer(x), module(x)) <= 1e-5


def test_peers_say_what_they_do_not_serve():
    problem = NAProblem.make((8, 8), 3, 2, 4, is_causal=True)
    with pytest.raises(NotImplementedError, match="without causal"):
        peers.gather_einsum(problem, (torch.zeros(1),) * 3)


# --- the operator's benchmark


def stage_with(error: float, peer_error: float = 0.0) -> op.Stage:
    stage = op.Stage(op.STAGES[0])
    fast, slow = Timing((1e-3,)), Timing((6e-3,))
    first, second, _ = (peer.name for peer in op.PEERS)
    stage.timings = {op.OURS: fast, op.DEFAULT: slow, first: slow, second: Timing((2e-4,)), op.MATMUL: fast}
    stage.errors = {op.OURS: error, op.DEFAULT: 0.0, first: 0.0, second: peer_error}
    return stage


def test_a_wrong_peer_does_not_count():
    assert stage_with(0.0, peer_error=0.1).speedup == pytest.approx(6.0)
    assert stage_with(0.0, peer_error=0.0).speedup == pytest.approx(0.2)


def test_wrong_numbers_of_ours_are_refused():
    stage = stage_with(1e-3, peer_error=0.1)
    assert stage.speedup is None
    assert op.geomean([stage]) is None
    assert op._cell(stage, op.OURS) == "[red]wrong numbers[/red]"
    assert len(op.failures_of([stage])) == 3


def test_the_check_wants_every_stage():
    good, slow = stage_with(0.0, peer_error=0.1), stage_with(0.0)
    assert op.failures_of([good]) == []
    assert any("slower than" in failure for failure in op.failures_of([good, slow]))


def test_the_check_wants_to_be_faster_in_most_rounds_as_well():
    stage = stage_with(0.0, peer_error=0.1)
    stage.timings[op.PEERS[0].name] = Timing((6e-3, 9e-4, 1e-2))
    stage.timings[op.OURS] = Timing((1e-3, 1e-3, 2e-2))
    assert (stage.over_peer(), stage.over_peer(in_turns=True)) == (pytest.approx(6.0), pytest.approx(0.9))
    assert len(op.failures_of([stage])) == 2


def test_useful_work_of_the_matrix_product():
    stage = stage_with(0.0)
    assert stage.matmul_time == pytest.approx(1e-3 * stage.problem.useful_flops / (2 * 1024**3))


def test_ratios_of_the_default_and_the_matrix_product():
    stage = stage_with(0.0)
    stage.timings[op.DEFAULT] = Timing((5e-4, 2e-3, 2e-3))
    stage.timings[op.OURS] = Timing((1e-3, 1e-3, 4e-3))
    assert (stage.over_default(), stage.over_default(in_turns=True)) == (pytest.approx(2.0), pytest.approx(0.5))
    stage.duel = {op.OURS: Timing((1e-3,)), op.DEFAULT: Timing((3e-3,))}
    assert stage.over_default() == stage.over_default(in_turns=True) == pytest.approx(3.0)
    assert stage.of_matmul() == pytest.approx(2 * 1024**3 / stage.problem.useful_flops)
    stage.errors[op.DEFAULT] = 1e-3
    assert stage.over_default() is None
    assert stage_with(1e-3).of_matmul() is None
    assert [op.mean_of([2.0, 8.0]), op.mean_of([2.0, None]), op.mean_of([])] == [pytest.approx(4.0), None, None]


def test_goals_of_tuning_are_named_one_by_one():
    stage = stage_with(0.0, peer_error=0.1)  # 6x the peer, 6x the default, 55x the matrix product
    goals = op.tuning_goals([stage])
    assert [goal.met for goal in goals] == [False, True, False] * 2
    assert (
        str(goals[1])
        == "goal met: default schedule's time over ours, geometric mean, medians: required >= 1.3x, got 6.00x"
    )
    stage.timings[op.MATMUL] = Timing((0.1,))
    stage.timings[op.PEERS[0].name] = Timing((1.2e-2,))
    assert all(goal.met for goal in op.tuning_goals([stage]))
    refused = op.tuning_goals([stage, stage_with(1e-3)])
    assert not any(goal.met for goal in refused) and "refused" in str(refused[0])


def test_ours_and_the_default_are_different_kernels(monkeypatch):
    asked = []
    kernel_for = build.kernel_for
    monkeypatch.setenv("TVM_NA_RECORDS", "shipped")
    monkeypatch.setattr(build, "kernel_for", lambda *p: asked.append(settings.records_mode()) or kernel_for(*p))
    monkeypatch.setattr(launchers, "_launchers", {})
    problem = NAProblem.make((9, 9), 3, 1, 8)
    q = torch.rand(1, 9, 9, 1, 8)
    with torch.inference_mode():
        calls = op.our_calls(q, q, q, problem)
        assert torch.allclose(calls[op.OURS](), calls[op.DEFAULT](), atol=1e-5)
    assert asked == ["shipped", "off"]


def test_results_are_json_and_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    stage = stage_with(0.0, peer_error=0.1)
    json.dumps(stage.to_dict())
    op.plot([stage, stage_with(1.0)], tmp_path / "new" / "op.png")
    assert (tmp_path / "new" / "op.png").stat().st_size > 1000


# --- the benchmark on GPUs, without one


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (16, 9)])
def test_tiles_are_another_order_of_tokens(size):
    problem = NAProblem.make(size, 3, 2, 4)
    order = cuda_peers.tile_order(problem)
    assert sorted(order.tolist()) == list(range(size[0] * size[1]))
    rows, columns = order // size[1], order % size[1]
    first = rows[: min(8, size[0]) * min(8, size[1])], columns[: min(8, size[0]) * min(8, size[1])]
    assert max(first[0].max(), first[1].max()) < 8  # the first tile
    t = torch.rand(2, *size, 2, 4)
    for peer in cuda_peers.PEERS:
        assert torch.equal(peer.back(peer.layout(t), problem), t), peer.name


def test_a_case_on_a_gpu_moves_what_it_says():
    assert len(cuda.cases()) == 16
    assert cuda.bytes_of(NAProblem.make((7, 7), 7, 16, 32, dtype="float16"), 3) == 4 * 3 * 7 * 7 * 16 * 32 * 2
    called = []
    turn = cuda.rotating(lambda a, b: called.append(a + b), [(1, 2), (3, 4)])
    for _ in range(3):
        turn()
    assert called == [3, 7, 3]


def test_cases_on_a_gpu_can_be_of_some_data_types():
    assert {problem.dtype for _, problem in cuda.cases(["float16"])} == {"float16"} and len(
        cuda.cases(["float16"])
    ) == 8


def test_a_benchmark_on_a_gpu_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "gpu_machine", lambda: {"device": "none"})
    ran, output = [], tmp_path / "new" / "cuda.json"

    def run_case(batch, problem, rounds):
        ran.append(cuda.name_of(batch, problem))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return {"case": ran[-1], "medians": {}, "unavailable": {}}

    with pytest.raises(KeyboardInterrupt):
        cuda.carry_out("cuda", cuda.cases(), run_case, cuda.table_of, 1, output)
    cuda.carry_out("cuda", cuda.cases(["float16"]), run_case, cuda.table_of, 1, output)
    names = [cuda.name_of(*case) for case in cuda.cases(["float16"])]
    assert ran == [*names[:3], *names[2:]]
    assert [case["case"] for case in json.loads(output.read_text())["cases"]] == names


@pytest.mark.parametrize(("module", "options"), [("cuda", ["--dtype", "float16"]), ("cuda_training", [])])
def test_benchmarks_on_a_gpu_say_that_there_is_none(module, options):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", f"benchmarks.{module}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "required a CUDA device, got none" in done.stdout


def test_the_driver_is_known_where_there_is_one(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_machine.driver_version() is None
    for answer, expected in (("echo 580.159.03; echo 580.159.03", "580.159.03"), ("exit 9", None), ("true", None)):
        tool.write_text(f"#!/bin/sh\n{answer}\n")
        tool.chmod(0o755)
        assert gpu_machine.driver_version() == expected


def test_results_on_a_gpu_are_told_beside_the_bound():
    found = {"case": "x", "medians": {cuda.OURS: 2e-6, "flex": 6e-6, cuda.COPY: 1e-6}, "unavailable": {}}
    refused = {"case": "y", "medians": {"flex": 6e-6, cuda.COPY: 1e-6}, "unavailable": {}}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(cuda.table_of([found, refused]))
    text = console.export_text()
    assert "2.00x" in text and "3.00x" in text and "refused" in text


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dilation", [1, 3])
def test_flex_in_a_model_computes_the_same(bias: bool, dilation: int) -> None:
    module = NeighborhoodAttention2D(32, 2, 5, dilation=dilation, rel_pos_bias=bias, backend="reference").eval()
    x = torch.randn(2, 16, 17, 32)
    with torch.inference_mode():
        if module.rpb is not None:
            module.rpb.normal_()
        peer = cuda_model.FlexAttention(module, problem_of_module(module, x.shape), "cpu")
        assert relative_error(peer(x), module(x)) < 1e-5


def test_images_per_second_are_told_beside_flex():
    rates = {"tvm_na": 900.0, "flex": 300.0, "flex, torch.compile": 400.0}
    result = {"model": "m", "batch": 2, "images_per_second": rates, "errors": dict.fromkeys(rates, 1e-3)}
    result |= {"wrong": ["tvm_na, torch.compile"]}
    result["errors"]["tvm_na, torch.compile"] = 0.5
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(cuda_model.table_of(result))
    text = console.export_text()
    assert "3.00x" in text and "900" in text and "5.0e-01" in text
