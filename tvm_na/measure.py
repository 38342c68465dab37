"""Measuring candidates of the tuner, in a process of their own, on the threads that they would run on in production.

A machine's speed changes, by the second (neighbors) and by the minute (frequency), and more than candidates differ. So
a kernel is measured in turns with a reference: many short repeats, each of which meets the same moment as the
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_na import workers
from tvm_na.problem import NAProblem

if TYPE_CHECKING:
    from torch import Tensor

_USES = 500  # measurements after which the process is replaced
_FEWEST = 3  # repeats
_GLANCE = 0.05  # seconds
_DISREGARDED = 0.35  # of a core
_FLUSH_BYTES = 128 * 2**20  # more than the last cache of most CPUs


@dataclass(frozen=True)
class Conditions:
    """How kernels are measured.

    Attributes:
        threads: Threads of a kernel; a small problem uses fewer, as in production.
        repeats: Repeats, twice as many if they scatter, fewer if they take longer than ``budget``, at least 3.
        shortest: Seconds that a repeat lasts at least.
        budget: Seconds for all repeats of a kernel.
        cold_cache: Whether caches are flushed before every repeat, which then is a single call.
        timeout: Seconds after which a kernel is given up.
    """

    threads: int
    repeats: int = 160
    shortest: float = 5e-4
    budget: float = 1.0
    cold_cache: bool = False
    timeout: float = 20.0


@dataclass(frozen=True)
class Kernel:
    """A kernel to be measured.

    Attributes:
        file: Its library.
        problem: What it computes.
        reference: The library of another kernel of the same problem, to be measured in turns with it; or None.
    """

    file: Path
    problem: NAProblem
    reference: Path | None = None


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


def median(seconds: Sequence[float]) -> float | None:
    """Their median; None if there are none."""
    return statistics.median(seconds) if seconds else None


class WrongNumbers(Exception):
    """A kernel computed something else than the reference."""


@dataclass(frozen=True)
class Case:
    """Inputs of a problem, and what is right.

    Attributes:
        inputs: Query, key, value, scale and, with a bias, rpb.
        expected: Output and, where the problem has it, log-sum-exp, by the reference in float64.
    """

    inputs: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]

    def outputs(self) -> list[Tensor]:
        """Outputs for a kernel to write, NaN before it does."""
        import torch

        accum = self.inputs[3].dtype
        dtypes = (self.inputs[0].dtype, accum)
        return [torch.full(e.shape, math.nan, dtype=d) for e, d in zip(self.expected, dtypes, strict=False)]

    def check(self, outputs: Sequence[Tensor], budget: float) -> None:
        """WrongNumbers if ``outputs`` are farther than ``budget``, relative, from what is right."""
        from tvm_na.benchmark import relative_error

        for name, out, expected in zip(("out", "lse"), outputs, self.expected, strict=False):
            error = relative_error(out, expected)
            if not error <= budget:  # NaN is wrong too
                raise WrongNumbers(f"{name}: required a relative error <= {budget:.0e}, got {error:.1e}")


@functools.lru_cache(maxsize=2)
def case_of(problem: NAProblem) -> Case:
    """Random inputs for ``problem`` (a batch of one), the same every time."""
    import torch

    generator = torch.Generator().manual_seed(0)
    dtype, accum = getattr(torch, problem.dtype), getattr(torch, problem.accum_dtype)
    kv = (1, *problem.spatial, problem.heads_kv)
    shapes = [
        (1, *problem.spatial, problem.heads, problem.head_dim),
        (*kv, problem.head_dim),
        (*kv, problem.head_dim_v),
    ]
    shapes += [problem.bias_shape] if problem.bias else []
    query, key, value, *rpb = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    inputs = (query, key, value, torch.tensor([problem.head_dim**-0.5], dtype=accum), *rpb)
    return Case(inputs, _expected(problem, inputs))


def _expected(problem: NAProblem, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Output and, where the problem has it, log-sum-exp; head by head, since the reference gathers every window."""
    import torch

    from tvm_na import reference

    query, key, value, scale, *rpb = (t.double() for t in inputs)
    group = problem.heads // problem.heads_kv
    one = dataclasses.replace(problem, heads=group, heads_kv=1)
    found = []
    with torch.inference_mode():
        for head in range(problem.heads_kv):
            q = query[..., head * group : (head + 1) * group, :]
            k, v = (t[..., head : head + 1, :] for t in (key, value))
            bias = rpb[0][head * group : (head + 1) * group] if rpb else None
            found.append(reference.neighborhood_attention(one, q, k, v, float(scale), bias))
    out, lse = (torch.cat(parts, dim=3) for parts in zip(*found, strict=True))
    return (out, lse) if problem.return_lse else (out,)


def prepare(threads: int) -> None:
    """Make this process run kernels as production does, on ``threads`` threads (in the worker)."""
    os.environ["TVM_NA_NUM_THREADS"] = str(threads)
    import torch

    from tvm_na import runtime

    torch.set_num_threads(threads)
    runtime.use_threads(0)  # loads the runtime


def run_kernel(kernel: Kernel, conditions: Conditions) -> Measured:
    """Check and measure a kernel (in the worker)."""
    from tvm_na import runtime
    from tvm_na.benchmark import ERROR_BUDGET
    from tvm_na.te import ENTRY

    problem = kernel.problem
    try:
        case = case_of(problem)
        calls = []
        for file in (kernel.file, kernel.reference):
            if file is not None:
                outputs = case.outputs()
                calls.append(functools.partial(runtime.load(file, ENTRY), *case.inputs, *outputs))
                runtime.use_threads(problem.useful_flops)
                calls[-1]()
                case.check(outputs, ERROR_BUDGET[problem.dtype])
        _calm.wait(runtime.threads_for(problem.useful_flops, conditions.threads))
        run_secs, *reference_secs = in_turns(calls, conditions)
        return Measured(run_secs, reference_secs=reference_secs[0] if reference_secs else ())
    except WrongNumbers as error:
        return Measured((), "wrong numbers", str(error))
    except Exception:
        return Measured((), "run", traceback.format_exc())


class Calm:
    """Waits for other processes to leave enough cores alone.

    Threads that wait for one that another process has displaced make a kernel 100 times as slow, every time.

    Attributes:
        patience: Seconds to wait at most; half as many after each time in vain, so that a machine that is always
            busy is not waited for.
    """

    def __init__(self, patience: float = 5.0) -> None:
        """Nothing is looked at before :meth:`wait`."""
        self.patience = self._most = patience

    def wait(self, threads: int) -> bool:
        """Wait until as many cores as ``threads`` have nothing to do; whether that came to be."""
        import psutil

        cores, end = psutil.cpu_count() or 1, time.monotonic() + self.patience
        while True:
            busy = psutil.cpu_percent(interval=_GLANCE) / 100 * cores
            if cores - busy > min(threads, cores) - _DISREGARDED:
                self.patience = min(self._most, 2 * self.patience)
                return True
            if time.monotonic() > end:
                self.patience /= 2
                return False


_calm = Calm()


def plan(once: float, conditions: Conditions) -> tuple[int, int]:
    """Calls per repeat, and repeats, of a kernel that takes ``once`` seconds."""
    calls = 1 if conditions.cold_cache else max(1, math.ceil(conditions.shortest / once))
    return calls, min(conditions.repeats, max(_FEWEST, math.ceil(conditions.budget / (once * calls))))


def in_turns(calls: Sequence[Callable[[], object]], conditions: Conditions) -> list[tuple[float, ...]]:
    """Seconds per call of every repeat of each of ``calls``, in turns; they must have been called before.

    The first of them decides how many repeats there are.
    """
    plans = [plan(min(_time(call, 1) for _ in range(3)), conditions) for call in calls]
    repeats = plans[0][1]
    flush = _flusher() if conditions.cold_cache else None
    seconds: list[list[float]] = [[] for _ in calls]
    first = seconds[0]
    gc.disable()
    try:
        end = time.perf_counter() + conditions.budget * len(calls)
        while len(first) < repeats or (len(first) < 2 * repeats and scatters(first)):
            for call, (count, _), found in zip(calls, plans, seconds, strict=True):
                if flush is not None:
                    flush()
                found.append(_time(call, count))
            if len(first) >= _FEWEST and time.perf_counter() > end:
                break
    finally:
        gc.enable()
    return [tuple(found) for found in seconds]


def scatters(seconds: Sequence[float]) -> bool:
    """Whether repeats are so far apart that something else seems to be running."""
    return statistics.median(seconds) > 1.2 * min(seconds)


def _time(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


@functools.lru_cache(maxsize=1)
def _flusher() -> Callable[[], object]:
    import torch

    return functools.partial(torch.zeros(_FLUSH_BYTES, dtype=torch.uint8).add_, 1)


class LocalMeasurer:
    """A process on this machine that measures one kernel at a time.

    A kernel that crashes or does not end takes the process with it; the next one gets a new process.
    """

    suffix = ".so"

    def __init__(self, conditions: Conditions, log: Path) -> None:
        """Start the process.

        Args:
            conditions: How to measure.
            log: The file for what the process prints.
        """
        self.conditions = conditions
        self._pool = workers.Pool(1, _USES, log, prepare, (conditions.threads,))

    def measure(
        self,
        kernels: Sequence[Kernel],
        done: Callable[[int, Measured], None],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Measure kernels one after the other; ``done(index, measured)`` is called after each, until ``stopped()``."""

        def ended(index: int, outcome: workers.Outcome) -> None:
            done(index, outcome.value if outcome.failure is None else Measured((), outcome.failure, outcome.message))

        calls = [(kernel, self.conditions) for kernel in kernels]
        self._pool.run(run_kernel, calls, self.conditions.timeout, ended, stopped)

    def close(self) -> None:
        """End the process, whatever it does."""
        self._pool.close()
