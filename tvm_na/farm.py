"""Measuring on devices behind TVM's RPC tracker: several at once, and whichever are there.

Kernels run there on the threads of TVM's runtime. A device that is lost in the middle of a measurement costs that
measurement a repetition on another one; a device that comes (back) is used from then on.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_na import workers
from tvm_na.measure import Case, Conditions, Kernel, Measured, WrongNumbers, case_of, plan
from tvm_na.problem import NAProblem
from tvm_na.target import NATarget

_USES = 200
#: Seconds that a measurement waits for a device.
_WAIT = 120.0
#: How often a measurement is begun on one device after the other before the kernel is to blame.
_ATTEMPTS = 3
_LOST = "lost"
#: Repeats of a turn, which is a message there and back.
_AT_ONCE = 4


@dataclass(frozen=True)
class Farm:
    """The devices that a tracker has under a key.

    Attributes:
        host: Host of the tracker.
        port: Port of the tracker.
        key: The key under which the devices were registered.
        wait: Seconds that a measurement waits for a device.
    """

    host: str
    port: int
    key: str
    wait: float = _WAIT

    @classmethod
    def parse(cls, tracker: str, key: str) -> Farm:
        """The farm at ``tracker``, "host:port"; ValueError for anything else, or without a key."""
        host, colon, port = tracker.rpartition(":")
        if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError(f"rpc: required HOST:PORT of a tracker, got {tracker!r}")
        if not key:
            raise ValueError("rpc_key: required the key of the devices, got none")
        return cls(host, int(port), key)

    def tracker(self) -> Any:
        """TVM's connection to the tracker; RuntimeError if there is none."""
        if importlib.util.find_spec("tornado") is None:
            raise RuntimeError("rpc: required the packages of the extra tvm_na[tune], missing tornado")
        try:  # TVM tries for a minute
            socket.create_connection((self.host, self.port), timeout=5.0).close()
        except OSError as error:
            raise RuntimeError(f"rpc: required a tracker at {self.host}:{self.port}, got {error}") from error
        from tvm import rpc

        return rpc.connect_tracker(self.host, self.port)

    def devices(self) -> int:
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
        if not self.devices():
            raise RuntimeError(f"rpc: required devices with the key {self.key!r} at the tracker, got none")
        there = int(self.session(60.0).get_function("runtime.NumThreads")())
        if wanted > there:
            raise ValueError(f"threads: required at most {there} (TVM_NUM_THREADS of the devices), got {wanted}")
        return wanted or there

    def session(self, timeout: float) -> Any:
        """A session of so many seconds on a device, as soon as one is free."""
        return self.tracker().request(self.key, session_timeout=timeout)

    def measurer(self, conditions: Conditions, target: NATarget, log: Path) -> FarmMeasurer:
        """What measures on these devices."""
        return FarmMeasurer(self, conditions, target, log)


def run_remotely(kernel: Kernel, conditions: Conditions, farm: Farm) -> Measured:
    """Check and measure a kernel on a device (in a worker)."""
    try:
        session = farm.session(conditions.timeout)
    except Exception:
        return Measured((), _LOST, traceback.format_exc())
    try:
        return _measure(session, kernel, conditions)
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


def _measure(session: Any, kernel: Kernel, conditions: Conditions) -> Measured:
    from tvm_na.runtime import threads_for

    case = case_of(kernel.problem)
    threads = threads_for(kernel.problem.useful_flops, conditions.threads)
    big_cores = 1  # an affinity mode; it only has to be named
    session.get_function("runtime.config_threadpool")(big_cores, threads)
    files = [kernel.file] if kernel.reference is None else [kernel.file, kernel.reference]
    timers = [_checked(session, file, kernel.problem, case, conditions) for file in files]
    plans = [plan(min(timed(1, 3)), conditions) for timed in timers]
    seconds: list[list[float]] = [[] for _ in timers]
    repeats = -(-plans[0][1] // _AT_ONCE)
    for _ in range(repeats):
        for timed, (calls, _), found in zip(timers, plans, seconds, strict=True):
            found += timed(calls, _AT_ONCE)
    return Measured(tuple(seconds[0]), reference_secs=tuple(seconds[1]) if len(seconds) > 1 else ())


def _checked(
    session: Any, file: Path, problem: NAProblem, case: Case, conditions: Conditions
) -> Callable[[int, int], Sequence[float]]:
    """``timed(calls, repeats)`` of the kernel in ``file``, whose numbers are right; WrongNumbers if they are not."""
    import torch
    import tvm.runtime

    from tvm_na.benchmark import ERROR_BUDGET
    from tvm_na.te import ENTRY

    device = session.cpu(0)
    session.upload(str(file))
    module = session.load_module(file.name)
    inputs = [tvm.runtime.tensor(t.numpy(), device) for t in case.inputs]
    outputs = [tvm.runtime.tensor(t.numpy(), device) for t in case.outputs()]
    module[ENTRY](*inputs, *outputs)
    case.check([torch.from_numpy(t.numpy()) for t in outputs], ERROR_BUDGET[problem.dtype])

    def timed(calls: int, repeats: int) -> Sequence[float]:
        flush = "cache_flush_cpu_non_first_arg" if conditions.cold_cache else ""
        evaluator = module.time_evaluator(ENTRY, device, number=calls, repeat=repeats, f_preproc=flush)
        return [float(s) for s in evaluator(*inputs, *outputs).results]

    return timed


class FarmMeasurer:
    """Measures on the devices of a farm, as many at once as there are."""

    def __init__(self, farm: Farm, conditions: Conditions, target: NATarget, log: Path) -> None:
        """Start a process for each device.

        Args:
            farm: The devices.
            conditions: How to measure.
            target: What they are; one of another architecture links kernels itself.
            log: The file for what the processes print.
        """
        from tvm_na.target import detect_target

        self.farm, self.conditions = farm, conditions
        same = target.triple.partition("-")[0] == detect_target().triple.partition("-")[0]
        self.suffix = ".so" if same else ".tar"
        self._pool = workers.Pool(max(1, farm.devices()), _USES, log, workers.nothing)

    def measure(
        self,
        kernels: Sequence[Kernel],
        done: Callable[[int, Measured], None],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Measure kernels; ``done(index, measured)`` is called for each as it ends, until ``stopped()``.

        Raises:
            RuntimeError: there are no devices any more.
        """
        if not kernels:
            return
        self._pool.grow(self.farm.devices())
        left, attempt = list(range(len(kernels))), 0
        while left:
            attempt += 1
            left = self._attempt(kernels, left, attempt, done, stopped)

    def _attempt(
        self,
        kernels: Sequence[Kernel],
        left: Sequence[int],
        attempt: int,
        done: Callable[[int, Measured], None],
        stopped: Callable[[], bool],
    ) -> list[int]:
        """Measure those of ``kernels`` that are ``left``; those that lost their devices and may try again."""
        again: list[int] = []

        def ended(number: int, outcome: workers.Outcome) -> None:
            index = left[number]
            measured = outcome.value if outcome.failure is None else Measured((), outcome.failure, outcome.message)
            if measured.failure == "timeout" and not self.farm.devices():
                raise RuntimeError(f"rpc: required devices with the key {self.farm.key!r}, got none any more")
            if measured.failure != _LOST:
                done(index, measured)
            elif attempt < _ATTEMPTS:
                again.append(index)
            else:
                done(index, dataclasses.replace(measured, failure="crash"))

        timeout = self.farm.wait + self.conditions.timeout
        calls = [(kernels[i], self.conditions, self.farm) for i in left]
        self._pool.run(run_remotely, calls, timeout, ended, stopped)
        return again

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._pool.close()
