"""A farm on this machine: TVM's tracker and server, and the tuner, which outlives a server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tvm_na.database import records_in
from tvm_na.farm import Farm
from tvm_na.journal import trials_in
from tvm_na.problem import NAProblem
from tvm_na.target import detect_target
from tvm_na.tasks import TuneTask
from tvm_na.tune import tune
from tvm_na.tune_state import TuneState

KEY = "board"


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

    def server(self) -> subprocess.Popen[bytes]:
        tracker = f"127.0.0.1:{self.port}"
        return self._start("tvm.exec.rpc_server", "--host", "127.0.0.1", "--tracker", tracker, "--key", KEY)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a process and what it started."""
        self._running.remove(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in list(self._running):
            self.kill(process)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    running = Processes(tmp_path / "farm.log")
    yield running
    running.close()


@pytest.mark.slow
def test_a_server_that_is_killed_and_replaced_costs_nothing(processes: Processes, tmp_path: Path) -> None:
    farm = Farm.parse(f"127.0.0.1:{processes.port}", KEY)
    server = processes.server()

    def devices() -> int:
        try:
            return farm.devices()
        except RuntimeError:  # the tracker is not there yet
            return 0

    wait_for(lambda: devices() == 1)
    assert Farm(farm.host, farm.port, "another").devices() == 0
    with pytest.raises(RuntimeError, match="rpc: required devices with the key 'another' at the tracker, got none"):
        Farm(farm.host, farm.port, "another").threads(0)
    with pytest.raises(ValueError, match="threads: required at most 1 .*, got 4"):
        farm.threads(4)
    events: list[str] = []

    def replace() -> None:
        processes.kill(server)
        events.append("killed")
        processes.server()

    replacing = threading.Thread(target=replace)

    def observe(state: TuneState) -> None:
        events.append(f"{state.phase} {state.trials}")
        if state.phase == "measuring" and state.trials == 2:
            replacing.start()  # while the third is measured

    problem = NAProblem.make((9, 9), 3, 1, 8)
    result = tune([TuneTask(problem)], detect_target(), trials=8, output=tmp_path / "out", farm=farm, observer=observe)
    replacing.join()
    assert "killed" in events and events.index("killed") < events.index("measuring 4")
    assert result.state.problems[0].failures.total() == 0
    records = records_in(tmp_path / "out")
    assert len(records) == len(trials_in(tmp_path / "out")) == 8
    assert {r.threads for r in records} == {1}  # TVM_NUM_THREADS of the server
    assert all(0 < seconds < 1e-2 for r in records for seconds in r.run_secs)


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
        Farm.parse(tracker, key)


def test_a_missing_tracker_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        farm = Farm("127.0.0.1", free.getsockname()[1], KEY)
    with pytest.raises(RuntimeError, match="rpc: required a tracker at 127.0.0.1:.*, got .*refused"):
        tune([TuneTask(NAProblem.make((9, 9), 3, 1, 8))], detect_target(), output=tmp_path / "out", farm=farm)
    assert not (tmp_path / "out").exists()
