"""The benchmark suite: who gets a time, what is kept, and what a case that fails does to the others."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import problems
from benchmarks.peers import PEERS, Peer, gather_einsum
from benchmarks.suite import memory, models, networks, op, packages, store, training, turns
from benchmarks.suite.cases import DTYPES, Case, Part, Setting
from benchmarks.suite.networks import FLOOR, NAT, SWIN, Network, network
from benchmarks.suite.parts import PARTS
from benchmarks.suite.right import sampled_right
from benchmarks.suite.runner import carry_out, in_process
from benchmarks.suite.store import Store
from benchmarks.suite.training import error_of_gradients
from benchmarks.suite.turns import Candidates, in_turns
from tests.helpers import relative_error
from tests.models import test_frozen
from tvm_na import na2d
from tvm_na.measure.timing import Timing
from tvm_na.models import frozen
from tvm_na.ops.residual import block_of
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference

SMALL = NAProblem.make((9, 8), 3, 2, 8, dilation=2, bias=True)


@pytest.fixture
def without_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are invented: what is tested is who gets one."""
    monkeypatch.setattr(turns, "in_turns", lambda calls, *_: {name: Timing((1.0,)) for name in calls})


def setting_in(folder: Path, quick: bool = True, dtype: str = "float32") -> Setting:
    return Setting("cpu", quick, folder, dtype)


class Ticks:
    """A clock by which each call takes what it returns."""

    def seconds(self, call: Any, count: int) -> float:
        return float(call())

    def flush(self) -> None:
        raise AssertionError


# --- who gets a time


def test_a_candidate_that_is_wrong_or_fails_has_no_time_but_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "clock_of", lambda device: Ticks())
    found = Candidates(1e-5)

    def fails() -> Any:
        raise RuntimeError("can't allocate memory: 34359738368 bytes\nand more") from None

    found.add("right", lambda: (lambda: 0.5, 1e-6))
    found.add("wrong", lambda: (lambda: 0.1, 1e-2))
    found.add("no number", lambda: (lambda: 0.1, math.nan))
    found.add("large", fails)
    told = found.timed(3.0, "cpu", {"bound": lambda: 0.2})
    assert told["candidates"].keys() == {"right", "bound"} and told["candidates"]["right"]["error"] == 1e-6
    assert told["refused"] == {
        "wrong": "wrong numbers: relative error 1.0e-02",
        "no number": "wrong numbers: relative error nan",
        "large": "RuntimeError: can't allocate memory: 34359738368 bytes",
    }


def test_what_is_slow_takes_no_rounds_from_others() -> None:
    seconds = {"fast": 0.05, "once": turns.SLOW + 1, "slow": 0.5, "faster": 0.025}
    timings = in_turns({name: (lambda s=s: s) for name, s in seconds.items()}, 4.1, "cpu", clock=Ticks())  # type: ignore[misc]
    assert [len(t.samples) for t in timings.values()] == [27, 1, 4, 27] and list(timings) == list(seconds)
    chosen = in_turns({"slow": lambda: 0.5, "fast": lambda: 0.05}, 4.1, "cpu", ["slow"], Ticks())
    assert [len(timing.samples) for timing in chosen.values()] == [4, 31]
    both = in_turns({"step": lambda: 13.0, "other": lambda: 12.0}, 60.0, "cpu", clock=Ticks()).values()
    assert [len(timing.samples) for timing in both] == [3, 3], "nothing is faster than they are"


@pytest.mark.parametrize("most", [2**24, 2 * 9 * 16])
def test_what_is_right_of_some_queries_is_the_definition(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.suite.right._MOST", most)
    tensors = [torch.randn(2, *SMALL.spatial, SMALL.heads, SMALL.head_dim).requires_grad_() for _ in range(4)]
    rpb, scale = torch.randn(SMALL.bias_shape), SMALL.head_dim**-0.5
    right = sampled_right(SMALL, *tensors, rpb=rpb)
    assert len(right.queries) == 72 if most > 2**20 else 2 <= len(right.queries) <= 4
    assert {0, 71} <= set(right.queries.tolist()) and right.d_out is not None
    out = reference.neighborhood_attention(SMALL, *tensors[:3], scale, rpb)[0]
    gradients = torch.autograd.grad(out, tensors[:3], right.d_out)
    assert right.error_of_output(out) < 1e-6 and right.error_of_gradients(gradients) < 1e-6
    other = reference.neighborhood_attention(SMALL, *tensors[:3], scale, rpb.roll(1, -1))[0]
    wrong = torch.autograd.grad(other, tensors[:3], right.d_out)
    assert right.error_of_output(other) > 1e-2 and right.error_of_gradients(wrong) > 1e-2
    other[1, 0, 0, 0, 0] = math.nan  # of a sample that is not compared
    assert right.error_of_output(other) == math.inf


def wrong_peer(problem: NAProblem, device: str, rpb: Any = None) -> Any:
    call = gather_einsum(problem, device, rpb)
    return lambda query, key, value: call(query, key, value) * 1.01


def small_case(problem: NAProblem, peers: list[str]) -> Case:
    about = {"problem": problem.to_json(), "note": "small", "seconds": 0.01, "backward": True, "batch": 1}
    return Case("small", {**about, "peers": peers})


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_halves_are_compared_with_peers_in_halves_beside_float32(
    tmp_path: Path, without_times: None, dtype: str
) -> None:
    problem = dataclasses.replace(SMALL, dtype=dtype)
    found = op.run(small_case(problem, ["gather", "SDPA"]), setting_in(tmp_path, dtype=dtype))
    for which in ("forward", "training"):
        errors = {name: one["error"] for name, one in found[which]["candidates"].items()}
        assert errors.keys() == {op.OURS, op.IN_FLOAT32, "gather", "SDPA"} | (
            {op.DEFAULT} if which == "forward" else set()
        )
        assert errors.pop(op.IN_FLOAT32) < 1e-5 and all(1e-5 < error < 3e-2 for error in errors.values())


def test_what_fails_forward_is_not_tried_backward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fails(problem: NAProblem, device: str, rpb: Any = None) -> Any:
        tried.append(problem)
        raise MemoryError("too large")

    monkeypatch.setitem(PEERS, "cpu", (Peer("large", "", fails),))
    found = op.run(small_case(SMALL, ["large"]), setting_in(tmp_path))
    assert found["forward"]["refused"] == found["training"]["refused"] == {"large": "MemoryError: too large"}
    assert len(tried) == 1


def test_an_operator_is_compared_with_its_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_times: None
) -> None:
    peers = (PEERS["cpu"][0], Peer("wrong", "", wrong_peer), *PEERS["cpu"][3:])
    monkeypatch.setitem(PEERS, "cpu", peers)
    found = op.run(small_case(SMALL, [peer.name for peer in peers]), setting_in(tmp_path))
    assert found["useful"] == SMALL.useful_flops and found["note"] == "small"
    assert {op.OURS, op.DEFAULT, op.MATMUL, "gather"} <= found["forward"]["candidates"].keys()
    assert {op.OURS, op.MATMUL, "gather"} <= found["training"]["candidates"].keys()
    for which in ("forward", "training"):
        assert found[which]["refused"]["wrong"].startswith("wrong numbers")
        told = {*found[which]["refused"], *found[which]["candidates"]}
        assert told >= {"natten, no bias", "natten-mps, no bias"}, "what takes no bias is told"
        assert all(one.get("error", 0) < 1e-5 for one in found[which]["candidates"].values())


def test_ours_and_the_default_are_different_kernels(monkeypatch: pytest.MonkeyPatch, without_times: None) -> None:
    from tvm_na import settings
    from tvm_na.jit import build

    asked, kernel_for = [], build.kernel_for
    monkeypatch.setenv("TVM_NA_RECORDS", "shipped")
    monkeypatch.setattr(build, "kernel_for", lambda *p: asked.append(settings.records_mode()) or kernel_for(*p))
    monkeypatch.setitem(PEERS, "cpu", ())
    op._Bench(NAProblem.make((10, 9), 3, 1, 8), 1, "cpu", 0.001).forward()
    assert asked == ["shipped", "off"]


def test_workloads_are_those_that_are_promised() -> None:
    found = {workload.name: workload.problem for workload in problems.workloads()}
    assert [p.spatial[0] for n, p in found.items() if n.startswith("NAT-Tiny") and p.bias] == [56, 28, 14, 7]
    assert [p.dilation[0] for n, p in found.items() if n.startswith("DiNAT")] == [8, 4, 2]
    assert {p.rank for p in found.values()} == {1, 2, 3} and found["1D 32768"].kernel_size == (2048,)
    assert found["HDiT 64²"].head_dim == 64 and found["StyleNAT 256²"].spatial == (256, 256)


def test_the_floor_is_compiled_as_nat_is_and_has_no_kernel_that_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "_choose", lambda problems: tuple(map(block_of, problems)))  # ours are always taken
    nat, x = nn.Sequential(test_frozen.block()), torch.randn(2, 7, 6, 24)
    floor = networks.without_attention(nat)
    with torch.no_grad(), test_frozen.freezing(), networks.attention_taken_out():
        of_nat, _ = test_frozen.operators_in(nat, x)
        of_floor, out = test_frozen.operators_in(floor, x)
        with monkeypatch.context() as patch:  # what was found for it is kept
            patch.setattr("tvm_na.ops.residual.launcher_for", lambda problem, device: pytest.fail(str(problem)))
            assert torch.equal(test_frozen.operators_in(floor, x)[1], out)
    assert of_nat == of_floor == test_frozen.OPERATORS
    assert relative_error(out, floor(x)) < 1e-5 and relative_error(out, nat(x)) > 1e-2


def test_the_floor_attends_to_nothing_and_drops_no_projection() -> None:
    nat, floor = (network(name, quick=True).model for name in (NAT, FLOOR))
    assert {n for n, _ in nat.named_parameters() if not n.endswith(".rpb")} == {n for n, _ in floor.named_parameters()}
    x, target = torch.randn(1, 3, 64, 64), torch.tensor([3])
    floor.set_backend("reference")  # type: ignore[operator]
    torch.nn.functional.cross_entropy(floor(x), target).backward()
    assert not [n for n, p in floor.named_parameters() if p.grad is None]
    assert (
        error_of_gradients(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 5)), x, target) < 1e-6
    )


def test_what_wants_more_than_the_free_memory_fails_alone() -> None:
    def wants() -> torch.Tensor:
        return torch.empty(2**50, dtype=torch.uint8)

    with pytest.raises(RuntimeError, match="allocate memory|bytes"):
        turns.with_limited_memory(wants)
    assert turns.with_limited_memory(lambda: torch.ones(10).sum().item()) == 10


# --- what is kept


def part_of(found: list[str], *names: str, **about: Any) -> Part:
    def run(case: Case, setting: Setting) -> dict[str, Any]:
        raise AssertionError

    return Part("op", lambda setting: [Case(name, about) for name in names], run)


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    ran: list[str] = []

    def run(part: Part, case: Case, setting: Setting) -> dict[str, Any]:
        ran.append(case.name)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return {"failed": "crashed"} if case.name == "c" else {"samples": [1.0]}

    def carried(machine: dict[str, Any], **about: Any) -> list[str]:
        kept = Store(machine, setting_in(tmp_path / "new"))
        ran.append("|")
        return carry_out([part_of(ran, "a", "b", "c", **about)], setting_in(tmp_path), kept, lambda *_: None, run)

    machine = {"cpu": "one", "date": "2026-01-01", "versions": {"torch": "2"}}
    with pytest.raises(KeyboardInterrupt):
        carried(machine)
    assert carried({**machine, "date": "2026-01-02"}) == ["op: c: crashed"]
    carried(machine)  # what failed is tried again
    carried(machine, size=3)  # cases changed
    carried({**machine, "versions": {"torch": "3"}}, size=3)
    told = " ".join(ran)
    assert told == "| a b | b c | c | a b c | a b c"
    newest, folder = {**machine, "versions": {"torch": "3"}}, tmp_path / "new"
    assert list(Store(newest, setting_in(folder)).found("op")) == ["a", "b", "c"]
    assert Store(machine, setting_in(folder)).found("op") == {}, "another machine"
    assert Store(newest, setting_in(folder, quick=False)).found("op") == {}, "no rehearsal"
    assert Store(newest, setting_in(folder, dtype="bfloat16")).found("op") == {}, "another dtype"


def test_sources_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "schedules" / "__pycache__").mkdir(parents=True)
    first = store.digest_of_sources(tmp_path)
    (tmp_path / "schedules" / "__pycache__" / "a.pyc").write_text("1")
    assert store.digest_of_sources(tmp_path) == first
    (tmp_path / "schedules" / "a.py").write_text("1")
    assert store.digest_of_sources(tmp_path) != first


def test_a_case_has_a_process_of_its_own_and_one_that_hangs_or_crashes_is_told(tmp_path: Path) -> None:
    (rehearsed,) = [case for case in PARTS["memory"].cases(setting_in(tmp_path)) if case.name == "16², tvm_na"]
    assert in_process(PARTS["memory"], rehearsed, setting_in(tmp_path))["inputs"] == 3 * 16 * 16 * 2 * 32 * 4
    case = Case("none", {"problem": "{}", "batch": 1, "seconds": 1, "backward": False, "peers": []})
    assert in_process(PARTS["op"], case, setting_in(tmp_path))["failed"].startswith("ended with 1: ")
    slow = dataclasses.replace(case, limit=0.05)
    assert in_process(PARTS["op"], slow, setting_in(tmp_path)) == {"failed": "took longer than 0.05 s"}


def test_cases_of_every_part_are_named_once_and_json(tmp_path: Path) -> None:
    for quick, dtype in itertools.product((True, False), DTYPES):
        setting = setting_in(tmp_path, quick, dtype)
        for part in PARTS.values():
            cases = part.cases(setting)
            assert len({case.name for case in cases}) == len(cases)
            none = {"growth", "start", "training"} - ({"training"} if dtype == "bfloat16" else set())
            assert cases or (dtype != "float32" and part.name in none)
            kept = Store({}, setting)
            for case in cases[:1]:
                kept.put(part.name, case, {"load_before": 0.0}, [case.name for case in cases])
                assert kept.is_done(part.name, case)
    files = sorted(file.name for file in tmp_path.iterdir())
    assert "op.json" in files and "op-bfloat16.json" in files and len(files) == 6 + 4 + 3


def test_an_operator_takes_its_stride_in_both_ways() -> None:
    q = torch.randn(1, 9, 9, 1, 8)
    assert torch.equal(na2d(q, q, q, 3, 1), na2d(q, q, q, 3, (1, 1)))


def test_nat_has_the_attention_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_times: None) -> None:
    frozen = []

    class Attention(models.DenseMaskAttention):  # the true one takes long to compile
        def attend(self, *tensors: torch.Tensor) -> torch.Tensor:
            frozen.append(torch._inductor.config.freezing)  # would have it compiled for every layer
            return super().attend(*tensors)

    monkeypatch.setattr(models, "FlexAttention", Attention)
    found = models.run(Case(models.OTHERS, {"batch": 1, "seconds": 0.01}), setting_in(tmp_path))
    assert found["candidates"].keys() == {"tvm_na", "reference backend", "SDPA", "flex"} and not found["refused"]
    assert frozen and not any(frozen)


def test_half_precision_of_a_call_takes_half_the_memory_for_its_tensors(tmp_path: Path) -> None:
    setting = setting_in(tmp_path, dtype="bfloat16")
    names = [case.name for case in PARTS["memory"].cases(setting) if not case.about["backward"]]
    found = [
        memory.run(Case(name, {"operator": name.split("², ")[1], "size": 32, "backward": False}), setting)
        for name in names
    ]
    assert [one["inputs"] for one in found] == [3 * 32 * 32 * 2 * 32 * size for size in (2, 4)]


@pytest.mark.parametrize("backward", [False, True])
def test_memory_is_what_a_call_takes(backward: bool, tmp_path: Path) -> None:
    about = {"operator": "SDPA", "size": 32, "backward": backward}
    found = memory.run(Case("SDPA", about), setting_in(tmp_path))
    assert found["inputs"] == 3 * 32 * 32 * 2 * 32 * 4 and found["peak"] >= 0
    refused = memory.run(Case("natten", {**about, "operator": "natten"}), setting_in(tmp_path))
    assert {*refused} <= {"peak", "inputs"} or "natten is not installed" in refused["refused"]


def test_nat_of_another_dtype_is_measured_beside_float32(tmp_path: Path, without_times: None) -> None:
    setting = setting_in(tmp_path, dtype="bfloat16")
    (case,) = PARTS["models"].cases(setting)
    found = models.run(case, setting)
    errors = {name: one["error"] for name, one in found["candidates"].items()}
    assert list(errors) == ["NAT-Tiny, eager", "NAT-Tiny, float32, eager"] and found["dtype"] == "bfloat16"
    assert errors["NAT-Tiny, float32, eager"] < 1e-4 < errors["NAT-Tiny, eager"]


def test_a_step_under_autocast_is_measured_beside_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_times: None
) -> None:
    small = lambda *_: Network(nn.Sequential(nn.Flatten(), nn.Linear(192, 1000)), "", 8)  # noqa: E731
    monkeypatch.setattr(training, "network", small)
    setting = setting_in(tmp_path, dtype="bfloat16")
    (case,) = PARTS["training"].cases(setting)
    found = training.run(case, setting)
    errors = [found["candidates"][name]["error"] for name in ("NAT-Tiny", "NAT-Tiny, float32")]
    assert errors[1] < 1e-4 < errors[0], "of gradients, whose weights are in float32"


def test_a_package_of_another_library_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(way: str, model: torch.nn.Module, x: torch.Tensor, path: Path, device: str) -> None:
        made.append(way)
        path.mkdir()
        (path / "model.pt2").write_bytes(b"12345")

    monkeypatch.setattr(packages, "_make", make)
    monkeypatch.setattr(packages, "network", lambda name, quick: Network(torch.nn.Identity(), "timm", 8))
    results = [packages.made("AOTInductor", SWIN, setting_in(tmp_path)) for _ in range(2)]
    assert results[0] == results[1] and results[0]["bytes"] == 5 and len(made) == 1
    monkeypatch.setattr(packages, "version_of", lambda name: "another")
    packages.made("AOTInductor", SWIN, setting_in(tmp_path))
    for _ in range(2):
        packages.made("AOTInductor", FLOOR, setting_in(tmp_path))
    assert len(made) == 4, "ours is made of sources that may have changed"
    with pytest.raises(FileNotFoundError, match="not made"):
        packages.loaded("tvm", NAT, setting_in(tmp_path))


def test_swin_is_of_whoever_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> torch.nn.Module:
        raise ImportError("torchvision is of another PyTorch")

    monkeypatch.setattr(networks, "_of_timm", fails)
    monkeypatch.setattr(networks, "_of_transformers", lambda name: torch.nn.Identity())
    assert network(SWIN).source == "transformers"
    monkeypatch.setattr(networks, "_of_transformers", fails)
    with pytest.raises(RuntimeError, match="timm: ImportError: torchvision is .*; transformers: ImportError"):
        network(SWIN)
