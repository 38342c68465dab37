"""Measuring candidates of the tuner, in a process of their own, on the threads or the GPU of production.

A machine's speed changes, by the second (neighbors) and by the minute (frequency), and more than candidates differ. So
a kernel is interleaved with a reference: many short repeats, each of which meets the same moment as the
reference's next to it, and what counts is the median of their ratios. Where two equal kernels are compared so, the
result scatters by 0.5 %; by their shortest repeats it does by 5 %, and alone, minutes apart, by 15 %.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
import os
import statistics
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tvm_na.measure import cuda as measure_cuda
from tvm_na.measure import worker_pool as workers
from tvm_na.measure.clocks import Clock, clock_of
from tvm_na.measure.idle import Patience
from tvm_na.measure.timing import interleaved, measure
from tvm_na.problems.registry import Problem
from tvm_na.reference.case import WrongNumbers
from tvm_na.reference.cases import budget_of, case_of
from tvm_na.targets.threads import threads_for
from tvm_na.wasm import kernel as wasm_kernel

#: The device that is no device of PyTorch's, but wasmtime.
WASM = "wasm"
_GPU_REPEATS = 60  # which fewer others use than cores of a CPU
_USES = 500  # measurements after which the process is replaced
_FEWEST = 3  # repeats
_SAMPLE, _WARM_UP = 5e-4, 1e-2  # seconds, of kernels in turns


@dataclass(frozen=True)
class Conditions:
    """How kernels are measured.

    Attributes:
        threads: Threads of a kernel; a small problem uses fewer, as in production. 1 on a GPU.
        repeats: Repeats, twice as many if they scatter, fewer if they take longer than ``budget``, at least 3.
        shortest: Seconds that a repeat lasts at least.
        budget: Seconds for all repeats of a kernel.
        cold_cache: Whether caches are flushed before every repeat, which then is a single call.
        timeout: Seconds after which a kernel is given up.
        device: PyTorch's name of the device: ``cpu``, ``cuda:0``; or ``wasm`` for wasmtime.
    """

    threads: int
    repeats: int = 160
    shortest: float = 5e-4
    budget: float = 1.0
    cold_cache: bool = False
    timeout: float = 20.0
    device: str = "cpu"

    def on(self, device: str) -> Conditions:
        """The same on a GPU."""
        return dataclasses.replace(self, threads=1, device=device, repeats=_GPU_REPEATS)

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device not in ("cpu", WASM)


@dataclass(frozen=True)
class Kernel:
    """A kernel to be measured.

    Attributes:
        reference: The library of another kernel of the same problem, to be interleaved with it; or None.
        batch: The samples of a call.
        formulation, reference_formulation: Of the two, as canonical JSON, where that says how weights are packed.
    """

    file: Path
    problem: Problem
    reference: Path | None = None
    batch: int = 1
    formulation: str = ""
    reference_formulation: str = ""

    @property
    def libraries(self) -> list[tuple[Path, str]]:
        """Its library and, if there is one, the reference's, each with its formulation."""
        reference = [] if self.reference is None else [(self.reference, self.reference_formulation)]
        return [(self.file, self.formulation), *reference]


@dataclass(frozen=True)
class Measured:
    """What became of one kernel.

    Attributes:
        run_secs: Seconds per call of every repeat; empty if it failed.
        failure: "run", "timeout", "crash", "wrong numbers", "no device" or "stopped"; None if it was measured.
        message: What went wrong.
        reference_secs: Seconds per call of the reference's repeats, each right after one of the kernel's.
    """

    run_secs: tuple[float, ...]
    failure: str | None = None
    message: str = ""
    reference_secs: tuple[float, ...] = ()

    def beside(self, nominal: float) -> tuple[float, ...]:
        """``run_secs``, each at that speed of the machine at which the reference takes ``nominal`` seconds."""
        if not self.reference_secs:
            return self.run_secs
        return tuple(nominal * own / other for own, other in zip(self.run_secs, self.reference_secs, strict=True))


#: What is told of each kernel of several, by its index, as it ends.
Done: TypeAlias = Callable[[int, Measured], None]


def measured_of(outcome: workers.Outcome) -> Measured:
    """What became of a kernel whose measurement was called in a process."""
    return outcome.value if outcome.failure is None else Measured((), outcome.failure, outcome.message)


class Measurer(ABC):
    """What measures kernels: a process of this machine, or devices behind a tracker, each with a process."""

    suffix = ".so"
    _pool: workers.Pool

    @abstractmethod
    def measure(self, kernels: Sequence[Kernel], done: Done, stopped: workers.Stopped = lambda: False) -> None:
        """Measure kernels; ``done(index, measured)`` is called for each as it ends, until ``stopped()``."""

    def close(self) -> None:
        """End its processes, whatever they do."""
        self._pool.close()


def median(seconds: Sequence[float]) -> float | None:
    """Their median; None if there are none."""
    return statistics.median(seconds) if seconds else None


def prepare(threads: int, device: str = "cpu") -> None:
    """Make this process run kernels as production does, on ``threads`` threads or a GPU (in the worker)."""
    os.environ["TVM_NA_NUM_THREADS"] = str(threads)
    import torch

    from tvm_na.jit import runtime

    torch.set_num_threads(threads)
    runtime.use_threads(0)  # loads the runtime
    if device not in ("cpu", WASM):
        measure_cuda.prepare(device)


def run_kernel(kernel: Kernel, conditions: Conditions) -> Measured | workers.Last:
    """Check and measure a kernel (in the worker).

    Returns:
        What became of it; as the last that this process says, where it has lost its GPU by that.
    """

    try:
        calls = [checked_call(file, kernel, conditions) for file, _ in kernel.libraries]
        if not conditions.on_gpu:
            _patience.wait_until_idle(threads_for(kernel.problem.useful_flops * kernel.batch, conditions.threads))
        run_secs, *reference_secs = repeats_of(calls, conditions, clock_of(conditions.device))
        return Measured(run_secs, reference_secs=reference_secs[0] if reference_secs else ())
    except WrongNumbers as error:
        return Measured((), "wrong numbers", str(error))
    except Exception:
        message = traceback.format_exc()
        if conditions.on_gpu and not measure_cuda.works():
            return workers.Last(Measured((), "crash", message))
        return Measured((), "run", message)


def run_in_turns(kernels: Sequence[Kernel], conditions: Conditions, rounds: int) -> list[tuple[float, ...]]:
    """Check kernels of one problem, and measure them in turns (in the worker).

    Returns:
        Seconds per call of each of ``rounds`` samples of every kernel: samples of the same number are neighbors.

    Raises:
        Exception: one does not work; the process ends with it.
    """
    calls = {str(number): checked_call(kernel.file, kernel, conditions) for number, kernel in enumerate(kernels)}
    clock = clock_of(conditions.device)
    return [
        t.samples
        for t in measure(calls, rounds=rounds, sample_time=_SAMPLE, warmup_time=_WARM_UP, clock=clock).values()
    ]


def checked_call(file: Path, kernel: Kernel, conditions: Conditions) -> Callable[[], object]:
    """A call of ``file``, one of the kernel's libraries; WrongNumbers if its numbers are not right."""
    from tvm_na.jit import runtime
    from tvm_na.te import ENTRY

    problem = kernel.problem
    if conditions.on_gpu:
        return measure_cuda.checked_call(file, problem, kernel.batch, conditions.device)
    case = case_of(problem, kernel.batch, dict(kernel.libraries)[file])
    outputs = case.outputs()
    if conditions.device == WASM:
        host = wasm_kernel.Kernel(file, ENTRY)
        host(*case.inputs, *outputs)
        case.check(outputs, budget_of(problem))
        return host.placed(*case.inputs, *outputs)
    call = functools.partial(runtime.load(file, ENTRY), *case.inputs, *outputs)
    runtime.use_threads(problem.useful_flops * kernel.batch)
    call()
    case.check(outputs, budget_of(problem))
    return call


_patience = Patience()


def plan(once: float, conditions: Conditions) -> tuple[int, int]:
    """Calls per repeat, and repeats, of a kernel that takes ``once`` seconds."""
    calls = 1 if conditions.cold_cache else max(1, math.ceil(conditions.shortest / once))
    return calls, min(conditions.repeats, max(_FEWEST, math.ceil(conditions.budget / (once * calls))))


def repeats_of(calls: Sequence[Callable[[], object]], conditions: Conditions, clock: Clock) -> list[tuple[float, ...]]:
    """Seconds per call of every repeat of each of ``calls``, interleaved; they must have been called before.

    The first of them decides how many repeats there are.
    """
    plans = [plan(min(clock.seconds(call, 1) for _ in range(3)), conditions) for call in calls]
    repeats = plans[0][1]
    end = time.perf_counter() + conditions.budget * len(calls)

    def repeat(call: Callable[[], object], count: int) -> list[float]:
        if conditions.cold_cache:
            clock.flush()
        return [clock.seconds(call, count)]

    def enough(seconds: Sequence[float]) -> bool:
        if len(seconds) >= _FEWEST and time.perf_counter() > end:
            return True
        return len(seconds) >= (2 * repeats if seconds and scatters(seconds) else repeats)

    gc.disable()
    try:
        counts = [count for count, _ in plans]
        return interleaved([functools.partial(repeat, *each) for each in zip(calls, counts, strict=True)], enough)
    finally:
        gc.enable()


def scatters(seconds: Sequence[float]) -> bool:
    """Whether repeats are so far apart that something else seems to be running."""
    return statistics.median(seconds) > 1.2 * min(seconds)


class LocalMeasurer(Measurer):
    """A process on this machine that measures one kernel at a time.

    A kernel that crashes, does not end or spoils a GPU for its process takes the process with it; the next one gets a
    new process.
    """

    def __init__(self, conditions: Conditions, log: Path) -> None:
        """Start the process, which prints to ``log``."""
        self.conditions = conditions
        self._pool = workers.Pool(1, _USES, log, prepare, (conditions.threads, conditions.device))

    def measure(self, kernels: Sequence[Kernel], done: Done, stopped: workers.Stopped = lambda: False) -> None:
        def ended(index: int, outcome: workers.Outcome) -> None:
            done(index, measured_of(outcome))

        calls = [(kernel, self.conditions) for kernel in kernels]
        self._pool.run(run_kernel, calls, self.conditions.timeout, ended, stopped)

    def in_turns(
        self, kernels: Sequence[Kernel], rounds: int, stopped: workers.Stopped = lambda: False
    ) -> list[tuple[float, ...]] | workers.Outcome:
        """What :func:`run_in_turns` gives; what went wrong, where one of the kernels does not work any more."""
        ended: list[workers.Outcome] = []
        timeout = self.conditions.timeout * (1 + len(kernels))
        call = (list(kernels), self.conditions, rounds)
        self._pool.run(run_in_turns, [call], timeout, lambda _, outcome: ended.append(outcome), stopped)
        return ended[0].value if ended[0].failure is None else ended[0]
