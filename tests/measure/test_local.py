"""Workers that survive crashes and hangs, the builder, and how kernels are checked and measured."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.measure.calls import work
from tests.records.tuned import drawn
from tvm_na.measure import local as measure
from tvm_na.measure import worker_pool as workers
from tvm_na.measure.clocks import CpuClock
from tvm_na.measure.idle import Patience
from tvm_na.measure.local import Conditions, Kernel, LocalMeasurer, Measured, plan, repeats_of, scatters
from tvm_na.measure.worker_pool import Outcome, Pool
from tvm_na.problems.attention import NAProblem
from tvm_na.targets.target import NATarget, detect_target
from tvm_na.tune.builder import Builder, Built, Source, source_of

PROBLEM = NAProblem.make((9, 9), 3, 1, 8)
# Arguments of the same shapes, another result.
OTHER = NAProblem.make((9, 9), 3, 1, 8, stride=3)


# --- workers


def results(pool: Pool, calls: Sequence[str], timeout: float = 60.0, stop_after: int = 99) -> list[Outcome]:
    """What became of the calls."""
    found: dict[int, Outcome] = {}
    pool.run(work, [(c,) for c in calls], timeout, found.__setitem__, lambda: len(found) >= stop_after)
    return [found[index] for index in range(len(calls))]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "workers.log"


@pytest.fixture(scope="module")
def pool(log: Path) -> Iterator[Pool]:
    with closing(Pool(2, 50, log, workers.nothing)) as pool:
        yield pool


def test_calls_return_in_whatever_order_they_end(pool: Pool) -> None:
    found = results(pool, [str(n) for n in range(7)])
    assert [outcome.value[0] for outcome in found] == [str(n) for n in range(7)]
    assert {outcome.failure for outcome in found} == {None}
    assert len({outcome.value[1] for outcome in found}) <= 2
    assert results(pool, []) == []


def test_a_crash_costs_its_own_call_alone(pool: Pool, log: Path) -> None:
    found = results(pool, ["a", "abort", "b", "exit", "raise", "c"])
    assert [outcome.failure for outcome in found] == [None, "crash", None, "crash", "crash", None]
    assert "SIGABRT" in found[1].message
    assert "exit code 3" in found[3].message
    said = log.read_text()
    assert "about to abort" in said
    assert "ValueError: raised" in said


def test_a_hang_is_ended(pool: Pool) -> None:
    found = results(pool, ["hang", "a"], timeout=2.0)
    assert [outcome.failure for outcome in found] == ["timeout", None]
    assert results(pool, ["a"])[0].failure is None


def test_what_is_stopped_is_given_up(pool: Pool) -> None:
    found = results(pool, ["a", "hang", "hang", "b"], stop_after=1)
    assert [outcome.failure for outcome in found] == [None, "stopped", "stopped", "stopped"]
    assert results(pool, ["a"])[0].failure is None


def test_workers_are_replaced_after_enough_uses(log: Path) -> None:
    with closing(Pool(1, 2, log, workers.nothing)) as pool:
        processes = [outcome.value[1] for outcome in results(pool, ["a"] * 5)]
    assert [processes.index(process) for process in processes] == [0, 0, 2, 2, 4]


def fail_to_start() -> None:
    raise OSError("no such luck")


def test_a_worker_that_cannot_start_is_an_error(log: Path) -> None:
    refused = pytest.raises(RuntimeError, match="could not start .*exit code 1")
    with closing(Pool(1, 2, log, fail_to_start)) as pool, refused:
        results(pool, ["a"])
    assert "no such luck" in log.read_text()


def test_the_measuring_process_has_the_threads_that_are_wanted(log: Path) -> None:
    with closing(Pool(1, 9, log, measure.prepare, (3,))) as pool:
        assert results(pool, ["threads"])[0].value == (3, 3)


# --- how long, how often


def test_short_kernels_are_called_often_and_long_ones_seldom() -> None:
    conditions = Conditions(1, repeats=40, shortest=2e-3, budget=1.0)
    assert plan(1e-4, conditions) == (20, 40)
    assert plan(1e-2, conditions) == (1, 40)
    assert plan(0.1, conditions) == (1, 10)
    assert plan(10.0, conditions) == (1, 3)
    assert plan(1e-4, Conditions(1, repeats=40, cold_cache=True)) == (1, 40)


class Clock:
    """Time that passes only when a kernel is called."""

    def __init__(self, patch: pytest.MonkeyPatch, costs: Sequence[float]) -> None:
        self.now, self.calls, self.costs = 0.0, 0, costs
        patch.setattr(time, "perf_counter", lambda: self.now)

    def call(self) -> None:
        self.now += self.costs[self.calls % len(self.costs)]
        self.calls += 1


def test_every_repeat_is_kept_and_those_that_scatter_are_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = Conditions(1, repeats=10, shortest=1e-3, budget=1.0)
    (seconds,) = repeats_of([Clock(monkeypatch, [1e-3]).call], conditions, CpuClock())
    assert seconds == pytest.approx([1e-3] * 10)
    (seconds,) = repeats_of([Clock(monkeypatch, [1e-3, 3e-3]).call], conditions, CpuClock())
    assert len(seconds) == 20
    assert min(seconds) == pytest.approx(1e-3)
    assert scatters(seconds)
    assert not scatters([1.0, 1.1, 1.1])


def test_the_budget_ends_what_became_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, [1e-3] * 3 + [1.0] * 100)
    assert repeats_of([clock.call], Conditions(1, repeats=40, shortest=1e-3, budget=0.5), CpuClock()) == [
        pytest.approx([1.0] * 3)
    ]


def test_caches_are_flushed_before_each_repeat_and_not_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, flushed = Clock(monkeypatch, [1e-3]), []

    def flush() -> None:
        flushed.append(clock.calls)
        clock.now += 5.0

    monkeypatch.setattr(CpuClock, "flush", lambda self: flush())
    (seconds,) = repeats_of([clock.call], Conditions(1, repeats=4, budget=100.0, cold_cache=True), CpuClock())
    assert seconds == pytest.approx([1e-3] * 4)
    assert flushed == [3, 4, 5, 6]  # after three calls that are not counted


def test_interleaved_kernels_meet_the_same_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine becomes twice as slow in the middle; what compares to the reference stays."""

    now, called = 0.0, ""

    def kernel(name: str, cost: float) -> None:
        nonlocal now, called
        called += name
        now += cost * (2.0 if now > 0.02 else 1.0)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    calls = [lambda: kernel("a", 3e-3), lambda: kernel("b", 2e-3)]
    found = repeats_of(calls, Conditions(1, repeats=5, shortest=1e-3, budget=1.0), CpuClock())
    assert called == "aaabbb" + "ab" * 10  # twice five, since they scatter
    assert [len(seconds) for seconds in found] == [10, 10]
    assert [min(seconds) for seconds in found] == pytest.approx([3e-3, 2e-3])
    assert measure.median(Measured(found[0], reference_secs=found[1]).beside(1.0)) == pytest.approx(1.5)
    slow = Measured((6e-3, 7e-3), reference_secs=(4e-3, 5e-3))
    assert slow.beside(2e-3) == pytest.approx((3e-3, 2.8e-3))
    assert Measured((6e-3,)).beside(2e-3) == (6e-3,)


# --- kernels


def module(problem: NAProblem) -> Source:
    return source_of(drawn(problem, sample=False)[1].schedule.mod)


def broken_module() -> Source:
    """A module that cannot be compiled for a CPU."""
    import tvm
    from tvm import te, tirx

    a = te.placeholder((4,), "float32", name="a")
    b = te.compute((4,), lambda i: tirx.call_intrin("float32", "tirx.tvm_warp_shuffle", *[a[i]] * 5), name="b")
    return source_of(tvm.IRModule({"main": te.create_prim_func([a, b])}))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, log: Path) -> list[Built]:
    """The kernels of PROBLEM and OTHER, and what cannot be built."""
    with closing(Builder(2, detect_target(), tmp_path_factory.mktemp("kernels"), log)) as builder:
        return builder.build([module(PROBLEM), broken_module(), module(OTHER)])


@pytest.fixture(scope="module")
def local(log: Path) -> Iterator[LocalMeasurer]:
    conditions = Conditions(1, repeats=5, timeout=12.0)  # longer than a busy machine is waited for
    with closing(LocalMeasurer(conditions, log)) as measurer:
        yield measurer


def measured(measurer: Any, *kernels: Kernel) -> list[Measured]:
    found: dict[int, Measured] = {}
    measurer.measure(kernels, found.__setitem__)
    return [found[index] for index in range(len(kernels))]


def test_what_cannot_be_built_is_said(built: list[Built]) -> None:
    assert [b.failure for b in built] == [None, "build", None]
    assert built[1].file is None
    assert "tvm_warp_shuffle" in built[1].message


def test_a_build_that_takes_too_long_is_ended(tmp_path: Path, log: Path) -> None:
    with closing(Builder(1, detect_target(), tmp_path, log, timeout=0.0)) as builder:
        (result,) = builder.build([module(PROBLEM)])
        assert (result.file, result.failure) == (None, "build timeout")
        assert builder.build([module(PROBLEM)], stopped=lambda: True)[0].failure == "stopped"


def test_a_kernel_for_another_architecture_is_an_archive_to_be_linked_there(tmp_path: Path, log: Path) -> None:
    target = NATarget("llvm-aarch64-neon", "llvm", "aarch64-unknown-linux-gnu", "generic", ("+neon",), 16, 32)
    with closing(Builder(1, target, tmp_path, log)) as builder:
        (result,) = builder.build([module(PROBLEM)], suffix=".tar")
    assert result.failure is None, result.message
    assert result.file is not None and result.file.stat().st_size > 0


def compiled(folder: Path, name: str, body: str) -> Path:
    """A library whose entry runs ``body`` in place of a kernel."""
    compiler = shutil.which("g++") or "clang++"
    source, file = folder / f"{name}.cc", folder / f"{name}.so"
    source.write_text(
        '#include <cstdlib>\nextern "C" int __tvm_ffi_main(void*, const void*, int, void*) { ' + body + " return 0; }"
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-O0", "-o", str(file), str(source)], check=True)
    return file


def test_bad_kernels_fail_each_in_its_way_and_the_next_is_measured(
    built: list[Built], local: LocalMeasurer, tmp_path: Path
) -> None:
    right, wrong = built[0].file, built[2].file
    assert right is not None and wrong is not None
    abort = compiled(tmp_path, "abort", "std::abort();")
    crash = compiled(tmp_path, "crash", "*(volatile int*)nullptr = 1;")
    hang = compiled(tmp_path, "hang", "for (volatile int i = 0;; ++i) {}")
    idle = compiled(tmp_path, "idle", "")
    files = [right, abort, right, crash, hang, wrong, idle, tmp_path / "missing.so", right]
    found = measured(local, *(Kernel(file, PROBLEM) for file in files))
    failures = [m.failure for m in found]
    assert failures == [None, "crash", None, "crash", "timeout", "wrong numbers", "wrong numbers", "run", None]
    assert "SIGABRT" in found[1].message and "SIGSEGV" in found[3].message
    assert "relative error" in found[5].message
    assert "missing.so" in found[7].message
    for m in found:
        assert (len(m.run_secs) >= 5) == (m.failure is None)
        assert all(0 < seconds < 1 for seconds in m.run_secs)


def test_a_reference_is_measured_beside_the_kernel_and_must_be_right_too(
    built: list[Built], local: LocalMeasurer
) -> None:
    right, wrong = built[0].file, built[2].file
    assert right is not None and wrong is not None
    both, bad = measured(local, Kernel(right, PROBLEM, right), Kernel(right, PROBLEM, wrong))
    assert (both.failure, bad.failure) == (None, "wrong numbers")
    assert len(both.run_secs) == len(both.reference_secs) >= 5
    assert min(both.run_secs) < 3 * min(both.reference_secs) < 9 * min(both.run_secs)  # one and the same kernel


def test_measuring_can_be_stopped(built: list[Built], local: LocalMeasurer) -> None:
    file = built[0].file
    assert file is not None
    found: dict[int, Measured] = {}
    local.measure([Kernel(file, PROBLEM)] * 3, found.__setitem__, lambda: bool(found))
    assert found[0].failure is None
    assert [found[1].failure, found[2].failure] == ["stopped", "stopped"]


def test_a_busy_machine_is_waited_for_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    percent = [100.0]
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: percent[0])
    patience = Patience(patience=0.2)
    assert not patience.wait_until_idle(1) and not patience.wait_until_idle(1)
    assert patience.patience == pytest.approx(0.05)
    percent[0] = 50.0  # two of four cores
    assert patience.wait_until_idle(2) and patience.wait_until_idle(1) and not patience.wait_until_idle(3)
    percent[0] = 5.0
    assert patience.wait_until_idle(4) and patience.wait_until_idle(8)
    assert patience.patience <= 0.2
