"""RPC devices on this machine: TVM's tracker and server, and the tuner, which outlives a server."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tvm

from tests.helpers import wait_until
from tests.measure.test_local import measured
from tests.tune.runs import run
from tvm_na.measure import rpc as measure_remote
from tvm_na.measure.local import Conditions, Kernel, Measured
from tvm_na.measure.rpc_devices import RpcDevices, run_remotely
from tvm_na.measure.worker_pool import Outcome
from tvm_na.problems.attention import NAProblem
from tvm_na.records.read import records_in
from tvm_na.schedules.base import Point
from tvm_na.targets.target import detect_target, parse_target
from tvm_na.tune.builder import Source, compile_source
from tvm_na.tune.state import TuneState
from tvm_na.tune.tasks import formulations_of
from tvm_na.tune.trial_log import trials_in

KEY = "board"
PROBLEM = NAProblem.make((9, 9), 3, 1, 8)


class Processes:
    """A tracker and its servers, each in a session of its own."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._log = log
        self._running: list[subprocess.Popen[bytes]] = []
        port = str(self.port)
        self._start("tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--port", port, "--port-end", str(self.port + 1))

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "TVM_NUM_THREADS": "1", "TVM_BIND_THREADS": "0"}
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=environment,
                start_new_session=True,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._running.append(process)
        return process

    def server(self) -> None:
        tracker = f"127.0.0.1:{self.port}"
        self.last = self._start("tvm.exec.rpc_server", "--host", "127.0.0.1", "--tracker", tracker, "--key", KEY)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a process and what it started."""
        self._running.remove(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in list(self._running):
            self.kill(process)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """A tracker with one server."""
    running = Processes(tmp_path_factory.mktemp("rpc") / "log")
    running.server()
    yield running
    running.close()


def free(devices: RpcDevices) -> int:
    """How many devices wait for work; 0 without a tracker."""
    try:
        tracker = devices.tracker()
    except RuntimeError:  # it is not there yet
        return 0
    try:
        return int(tracker.summary()["queue_info"].get(devices.key, {}).get("free", 0))
    finally:
        tracker.close()


@pytest.mark.slow
def test_a_server_that_is_killed_and_replaced_costs_nothing(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvm_na.tune.run.Conditions", functools.partial(Conditions, repeats=8, budget=0.05))
    devices, server = RpcDevices.parse(f"127.0.0.1:{processes.port}", KEY), processes.last
    wait_until(lambda: free(devices) == 1, "a device is free", 60.0)
    assert devices.count() == 1
    other = RpcDevices(devices.host, devices.port, "another")
    assert other.count() == 0
    with pytest.raises(RuntimeError, match="rpc: required devices with the key 'another' at the tracker, got none"):
        other.threads(0)
    with pytest.raises(ValueError, match="threads: required at most 1 .*, got 4"):
        devices.threads(4)

    trials = [0]
    killed_after = []

    def replace() -> None:
        # The third measurement has the server, which does not go on.
        wait_until(lambda: free(devices) == 0, "no device is free", 60.0)
        processes.kill(server)
        killed_after.append(trials[0])
        processes.server()

    replacing = threading.Thread(target=replace)

    def observe(state: TuneState) -> None:
        trials[0] = state.trials
        if state.phase == "measuring" and state.trials == 2:
            wait_until(lambda: free(devices) == 1, "a device is free", 60.0)
            os.killpg(server.pid, signal.SIGSTOP)
            replacing.start()

    options = {"output": tmp_path / "out", "only_default_formulation": True, "candidates": 3}
    result = run(PROBLEM, detect_target(), trials=4, devices=devices, observer=observe, **options)
    replacing.join()
    assert killed_after == [2]
    assert result.state.problems[0].failures.total() == 0
    records = records_in(tmp_path / "out")
    assert len(records) == len(trials_in(tmp_path / "out")) == 4
    assert {r.threads for r in records} == {1}  # TVM_NUM_THREADS of the server
    assert all(0 < seconds < 1e-2 for r in records for seconds in r.run_secs)


def as_if_gpu(session: Any) -> Any:
    """A session whose first GPU is its CPU."""
    session.cuda = session.cpu
    return session


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kernels of this CPU for any batch: of PROBLEM, and of another that takes the same arguments."""
    found = {}
    for name, problem in (("right", PROBLEM), ("wrong", NAProblem.make((9, 9), 3, 1, 8, stride=3))):
        formulation = formulations_of(problem, detect_target())[0]
        default = formulation.default
        source = Source(None, problem, Point(formulation.text, default.sketch, default.values))
        found[name] = tmp_path_factory.mktemp("kernels") / f"{name}.so"
        assert compile_source(source, detect_target(), str(found[name])) is None
    # A file that is loaded over there must not be written to again.
    found["reference"] = Path(shutil.copy(found["right"], found["right"].with_name("reference.so")))
    return found


@pytest.mark.slow
def test_kernels_are_measured_in_batches_and_gpus_looked_for(
    processes: Processes, kernels: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    devices = RpcDevices.parse(f"127.0.0.1:{processes.port}", KEY)
    wait_until(lambda: free(devices) == 1, "a device is free", 60.0)
    for name in ("cuda-sm_80", "cuda-sm_90"):  # the devices are CPUs
        says = f"rpc: required devices with the key 'board' that have a GPU for {name}, got one without a GPU"
        with pytest.raises(RuntimeError, match=says):
            run(PROBLEM, parse_target(name), output=tmp_path / "out", devices=devices)
    assert not (tmp_path / "out").exists()
    devices.check(detect_target())
    assert (devices.free_bytes(detect_target()), devices.about(detect_target())) == (None, {})

    right, wrong, reference = kernels["right"], kernels["wrong"], kernels["reference"]
    conditions = Conditions(1, repeats=8)
    one = run_remotely(Kernel(right, PROBLEM, reference), conditions, devices)
    many = run_remotely(Kernel(right, PROBLEM, reference, batch=64), conditions, devices)
    for found in (one, many):
        assert found.failure is None, found.message
        assert len(found.run_secs) == len(found.reference_secs) == 8
    assert min(many.run_secs) > 8 * min(one.run_secs)  # 64 times the work
    for batch in (1, 2, 64):
        assert run_remotely(Kernel(wrong, PROBLEM, reference, batch), conditions, devices).failure == "wrong numbers"

    session = RpcDevices.session
    monkeypatch.setattr(RpcDevices, "session", lambda self, timeout: as_if_gpu(session(self, timeout)))
    gpu = Conditions(1, repeats=4, device="cuda:0")
    evaluated: list[dict[str, Any]] = []
    evaluator = tvm.runtime.Module.time_evaluator

    def noted(self: Any, *args: Any, **options: Any) -> Any:
        evaluated.append(options)
        return evaluator(self, *args, **options)

    monkeypatch.setattr(tvm.runtime.Module, "time_evaluator", noted)
    found = run_remotely(Kernel(right, PROBLEM, reference, batch=64), gpu, devices)
    assert found.failure is None, found.message
    assert len(found.run_secs) == len(found.reference_secs) == 4
    # What a GPU's cache may hold is flushed before each call.
    assert {(e["number"], e.get("cache_flush_bytes")) for e in evaluated} == {(1, measure_remote.ROTATED_BYTES)}
    monkeypatch.setattr(measure_remote, "ROTATED_BYTES", 1)
    evaluated.clear()
    assert run_remotely(Kernel(right, PROBLEM, None, batch=64), gpu, devices).failure is None
    assert {e.get("cache_flush_bytes") for e in evaluated} == {None}


#: What TVM says of a device on a server that has a GPU, and its compute capability.
GPU = {"device_name": "NVIDIA Pretended", "available_global_memory": 2**34}


@pytest.mark.parametrize(
    ("seen", "target", "fits"),
    [
        ("9.0", "cuda-sm_90", True),
        ("9.0", "cuda-sm_80", False),
        ("8.9", "cuda-sm_80", True),
        ("8.0", "cuda-sm_90", False),
    ],
)
def test_gpus_must_be_what_kernels_are_for(monkeypatch: pytest.MonkeyPatch, seen: str, target: str, fits: bool) -> None:
    monkeypatch.setattr(RpcDevices, "count", lambda _: 1)
    monkeypatch.setattr(RpcDevices, "_of_gpu", lambda _, name: {**GPU, "compute_version": seen}[name])
    devices, wanted = RpcDevices("host", 1, KEY), parse_target(target)
    if not fits:
        with pytest.raises(RuntimeError, match=f"have a GPU for {target}, got one of compute capability {seen}"):
            devices.check(wanted)
        return
    devices.check(wanted)
    assert devices.free_bytes(wanted) == 2**34
    assert devices.about(wanted) == {"gpu": "NVIDIA Pretended"}
    assert devices.busy() is None
    monkeypatch.setattr(RpcDevices, "count", lambda _: 0)
    with pytest.raises(RuntimeError, match=f"that have a GPU for {target}, got no devices"):
        devices.check(wanted)


def test_gpus_get_libraries_and_conditions_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tvm_na.measure.worker_pool.Pool", lambda *_: None)
    monkeypatch.setattr(RpcDevices, "count", lambda _: 1)
    measurer = RpcDevices("host", 1, KEY).measurer(Conditions(7), parse_target("cuda-sm_90"), tmp_path / "log")
    assert measurer.suffix == ".so"
    assert (measurer.conditions.device, measurer.conditions.threads) == ("cuda:0", 1)
    on_cpu = RpcDevices("host", 1, KEY).measurer(Conditions(7), detect_target(), tmp_path / "log")
    assert on_cpu.conditions == Conditions(7)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Measured]]:
    """What the devices make of kernels whose attempts end as said: in a time, in a failure, or lost."""

    def outcomes(*plans: list[float | str], devices: int = 1) -> list[Measured]:
        class Pool:
            def __init__(self, *_: Any) -> None:
                self.sizes: list[int] = []

            def grow(self, count: int) -> None:
                self.sizes.append(count)

            def run(self, function: Any, calls: Any, timeout: float, done: Any, stopped: Any) -> None:
                assert function is run_remotely
                for number, (kernel, *_) in enumerate(calls):
                    step = plans[int(kernel.file.name)].pop(0)
                    if step == "timeout":
                        done(number, Outcome(None, "timeout", "it took too long"))
                    else:
                        done(number, Outcome(Measured((), step) if isinstance(step, str) else Measured((step,))))

        monkeypatch.setattr("tvm_na.measure.worker_pool.Pool", Pool)
        monkeypatch.setattr(RpcDevices, "count", lambda _: devices)
        measurer = RpcDevices("host", 1, KEY).measurer(Conditions(1), detect_target(), tmp_path / "log")
        return measured(measurer, *(Kernel(Path(str(n)), PROBLEM) for n in range(len(plans))))

    return outcomes


def test_what_is_lost_is_measured_on_another_device(scripted: Callable[..., list[Measured]]) -> None:
    found = scripted([1.0], ["lost", 2.0], ["lost", "lost", 3.0], ["wrong numbers"])
    assert [m.run_secs for m in found] == [(1.0,), (2.0,), (3.0,), ()]
    assert found[3].failure == "wrong numbers"


def test_a_kernel_that_loses_every_device_has_crashed_them(scripted: Callable[..., list[Measured]]) -> None:
    assert [m.failure for m in scripted(["lost"] * 3, [1.0])] == ["crash", None]


def test_a_hang_is_the_kernels_fault_while_there_are_devices(scripted: Callable[..., list[Measured]]) -> None:
    assert [m.failure for m in scripted(["timeout"], [1.0], devices=2)] == ["timeout", None]
    with pytest.raises(RuntimeError, match="rpc: required devices with the key 'board', got none any more"):
        scripted(["timeout"], devices=0)


@pytest.mark.parametrize(
    ("tracker", "key", "says"),
    [
        ("host", "k", "rpc: required HOST:PORT of a tracker, got 'host'"),
        ("host:", "k", "rpc: required HOST:PORT"),
        (":1", "k", "rpc: required HOST:PORT"),
        ("host:0", "k", "rpc: required HOST:PORT"),
        ("host:70000", "k", "rpc: required HOST:PORT"),
        ("host:1", "", "rpc_key: required the key of the devices, got none"),
    ],
)
def test_bad_addresses(tracker: str, key: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RpcDevices.parse(tracker, key)


def test_a_missing_tracker_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        devices = RpcDevices("127.0.0.1", free.getsockname()[1], KEY)
    with pytest.raises(RuntimeError, match="rpc: required a tracker at 127.0.0.1:.*, got .*refused"):
        run(PROBLEM, detect_target(), output=tmp_path / "out", devices=devices)
    assert not (tmp_path / "out").exists()
