"""Measuring on devices behind TVM's RPC tracker: several at once, and whichever are there.

Kernels run there on the threads of TVM's runtime, or on the first GPU. A device that is lost in the middle of a
measurement costs that measurement a repetition on another one; a device that comes (back) is used from then on.
"""

from __future__ import annotations

import dataclasses
import logging
import socket
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_na.measure import worker_pool as workers
from tvm_na.measure.local import Conditions, Done, Kernel, Measured, Measurer, measured_of
from tvm_na.measure.rpc import measured_in
from tvm_na.measure.timing import require_extra
from tvm_na.reference.case import WrongNumbers
from tvm_na.targets import cuda_arch as arch
from tvm_na.targets.target import NATarget

_log = logging.getLogger("tvm_na.tune")

_USES = 200
#: Seconds that a measurement waits for a device.
_WAIT = 120.0
#: How often a measurement is begun on one device after the other before the kernel is to blame.
_ATTEMPTS = 3
_LOST = "lost"


@dataclass(frozen=True)
class RpcDevices:
    """The devices that a tracker has under a key; a measurement waits ``wait`` seconds for one."""

    host: str
    port: int
    key: str
    wait: float = _WAIT

    @classmethod
    def parse(cls, tracker: str, key: str) -> RpcDevices:
        """The devices at ``tracker``, "host:port"; ValueError for anything else, or without a key."""
        host, colon, port = tracker.rpartition(":")
        if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError(f"rpc: required HOST:PORT of a tracker, got {tracker!r}")
        if not key:
            raise ValueError("rpc_key: required the key of the devices, got none")
        return cls(host, int(port), key)

    def tracker(self) -> Any:
        """TVM's connection to the tracker; RuntimeError if there is none."""
        require_extra("rpc", "tune", "tornado")
        try:  # TVM tries for a minute
            socket.create_connection((self.host, self.port), timeout=5.0).close()
        except OSError as error:
            raise RuntimeError(f"rpc: required a tracker at {self.host}:{self.port}, got {error}") from error
        from tvm import rpc

        return rpc.connect_tracker(self.host, self.port)

    def count(self) -> int:
        """How many devices there are, busy ones too."""
        tracker = self.tracker()
        try:
            keys = [item["key"].partition(":")[2] for item in tracker.summary()["server_info"]]
        finally:
            tracker.close()
        return keys.count(self.key)

    def threads(self, wanted: int) -> int:
        """The threads that kernels are to use: ``wanted``, or for 0 all that the devices have.

        Raises:
            RuntimeError: there is no device.
            ValueError: the devices have fewer.
        """
        if not self.count():
            raise RuntimeError(f"rpc: required devices with the key {self.key!r} at the tracker, got none")
        there = int(self.session(60.0).get_function("runtime.NumThreads")())
        if wanted > there:
            raise ValueError(f"threads: required at most {there} (TVM_NUM_THREADS of the devices), got {wanted}")
        return wanted or there

    def check(self, target: NATarget) -> None:
        """See whether a device can run kernels for ``target``, as far as it can be asked: if they are for GPUs.

        Raises:
            RuntimeError: there is no device, or it has no such GPU.
        """
        if target.kind != "cuda":
            return
        wanted = f"rpc: required devices with the key {self.key!r} that have a GPU for {target.name}"
        if not self.count():
            raise RuntimeError(f"{wanted}, got no devices")
        seen = self._of_gpu("compute_version")
        if seen is None:
            raise RuntimeError(f"{wanted}, got one without a GPU that TVM knows")
        major, minor = map(int, str(seen).split("."))
        if not any(a.name == target.arch and arch.runs_on(a, (major, minor)) for a in arch.ARCHS):
            raise RuntimeError(f"{wanted}, got one of compute capability {seen}")

    def _of_gpu(self, attribute: str) -> Any:
        """What TVM tells of a device's first GPU; None where its runtime knows no GPUs."""
        session = self.session(60.0)
        try:
            return getattr(session.cuda(0), attribute)
        except Exception as error:  # whatever TVM throws where there is none
            _log.info("rpc: %s of a GPU: %s", attribute, error)
            return None  # and not raised further: its traceback would keep the session, and that the device

    def free_bytes(self, target: NATarget) -> int | None:
        """Bytes of a GPU's memory that nobody uses; None for CPUs, and where TVM cannot tell."""
        found = self._of_gpu("available_global_memory") if target.kind == "cuda" else None
        return None if found is None else int(found)

    def about(self, target: NATarget) -> dict[str, str]:
        """The name of a device's GPU, for GPUs."""
        return {"gpu": str(self._of_gpu("device_name"))} if target.kind == "cuda" else {}

    def busy(self) -> None:
        """Nobody knows who else uses a device."""

    def session(self, timeout: float) -> Any:
        """A session of so many seconds on a device, as soon as one is free."""
        return self.tracker().request(self.key, session_timeout=timeout)

    def measurer(self, conditions: Conditions, target: NATarget, log: Path) -> RpcMeasurer:
        """What measures on these devices."""
        return RpcMeasurer(self, conditions, target, log)


def run_remotely(kernel: Kernel, conditions: Conditions, devices: RpcDevices) -> Measured:
    """Check and measure a kernel on a device (in a worker)."""
    try:
        session = devices.session(conditions.timeout)
    except Exception:
        return Measured((), _LOST, traceback.format_exc())
    try:
        return measured_in(session, kernel, conditions)
    except WrongNumbers as error:
        return Measured((), "wrong numbers", str(error))
    except Exception:
        return Measured((), "run" if _is_alive(session) else _LOST, traceback.format_exc())


def _is_alive(session: Any) -> bool:
    try:
        session.get_function("runtime.NumThreads")()
    except Exception:  # whatever a broken connection throws
        return False
    return True


def _machine_of(target: NATarget) -> str:
    return target.triple.partition("-")[0]


class RpcMeasurer(Measurer):
    """Measures on several devices at once, as many as there are."""

    def __init__(self, devices: RpcDevices, conditions: Conditions, target: NATarget, log: Path) -> None:
        """Start a process for each device, which prints to ``log``; those of another architecture link kernels."""
        from tvm_na.targets.target import detect_target

        self.devices = devices
        self.conditions = conditions.on("cuda:0") if target.kind == "cuda" else conditions
        # What launches kernels for GPUs is compiled for this machine's CPU.
        same = target.kind == "cuda" or _machine_of(target) == _machine_of(detect_target())
        self.suffix = ".so" if same else ".tar"
        self._pool = workers.Pool(max(1, devices.count()), _USES, log, workers.nothing)

    def measure(
        self, kernels: Sequence[Kernel], done: Done, stopped: workers.Stopped = lambda: False, attempt: int = 1
    ) -> None:
        """Measure kernels; ``done(index, measured)`` is called for each as it ends, until ``stopped()``.

        Raises:
            RuntimeError: there are no devices any more.
        """
        if not kernels:
            return
        if attempt == 1:
            self._pool.grow(self.devices.count())
        again: list[int] = []

        def ended(index: int, outcome: workers.Outcome) -> None:
            measured = measured_of(outcome)
            if measured.failure == "timeout" and not self.devices.count():
                raise RuntimeError(f"rpc: required devices with the key {self.devices.key!r}, got none any more")
            if measured.failure != _LOST:
                done(index, measured)
            elif attempt < _ATTEMPTS:
                again.append(index)
            else:
                done(index, dataclasses.replace(measured, failure="crash"))

        timeout = self.devices.wait + self.conditions.timeout
        calls = [(kernel, self.conditions, self.devices) for kernel in kernels]
        self._pool.run(run_remotely, calls, timeout, ended, stopped)
        lost = [kernels[index] for index in again]
        self.measure(lost, lambda number, measured: done(again[number], measured), stopped, attempt + 1)
