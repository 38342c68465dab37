"""Measuring a kernel in an RPC session of TVM's, on a CPU or a GPU over there.

A few samples are sent, and must be right. The times are those of the whole batch, with numbers that the device draws:
a batch that fills a GPU would take longer to send than all the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_na.measure.clocks import ROTATED_BYTES
from tvm_na.measure.local import Conditions, Kernel, Measured, plan
from tvm_na.measure.timing import interleaved
from tvm_na.problems.registry import Problem
from tvm_na.reference.case import DISTINCT, Case
from tvm_na.reference.cases import budget_of, case_of

if TYPE_CHECKING:
    from torch import Tensor

#: Repeats of a turn, which is a message there and back.
_AT_ONCE = 4


def measured_in(session: Any, kernel: Kernel, conditions: Conditions) -> Measured:
    """Check and measure a kernel in a session of TVM's, on its first GPU if on one.

    Raises:
        WrongNumbers: it, or the one that it is interleaved with, computes something else than the reference.
        Exception: whatever TVM throws where a kernel fails or the connection is lost.
    """
    from tvm_na.targets.threads import threads_for

    if not conditions.on_gpu:
        threads = threads_for(kernel.problem.useful_flops * kernel.batch, conditions.threads)
        big_cores = 1  # an affinity mode; it only has to be named
        session.get_function("runtime.config_threadpool")(big_cores, threads)
    device = session.cuda(0) if conditions.on_gpu else session.cpu(0)
    sent: dict[str, list[Any]] = {}  # by formulation: weights are packed as it says
    drawn: dict[str, list[Any]] = {}
    modules = []
    for file, formulation in kernel.libraries:
        case = case_of(kernel.problem, min(kernel.batch, DISTINCT), formulation)
        if formulation not in sent:
            sent[formulation] = [_sent(t, device) for t in (*case.inputs, *case.outputs())]
            sent[formulation] += _scratch(device, kernel.problem, len(case.inputs[0]), conditions)
        modules.append((_checked(session, file, kernel, case, sent[formulation]), formulation))
        if kernel.batch > DISTINCT and formulation not in drawn:
            drawn[formulation] = _drawn(session, device, kernel, case)
            drawn[formulation] += _scratch(device, kernel.problem, kernel.batch, conditions)
    arguments = sent if kernel.batch <= DISTINCT else drawn
    conditions = _flushing(conditions, next(iter(arguments.values())))
    timers = [_timer(module, device, arguments[formulation], conditions) for module, formulation in modules]
    plans = [plan(min(timed(1, 3)), conditions) for timed in timers]
    turns = [functools.partial(timed, calls, _AT_ONCE) for timed, (calls, _) in zip(timers, plans, strict=True)]
    run_secs, *reference_secs = interleaved(turns, lambda seconds: len(seconds) >= plans[0][1])
    return Measured(run_secs, reference_secs=reference_secs[0] if reference_secs else ())


def _checked(session: Any, file: Path, kernel: Kernel, case: Case, sent: Sequence[Any]) -> Any:
    """The module of the kernel in ``file``, whose numbers are right; WrongNumbers if they are not."""
    from tvm_na.te import ENTRY

    session.upload(str(file))
    module = session.load_module(file.name)
    outputs = sent[len(case.inputs) :][: len(case.outputs())]
    for there, empty in zip(outputs, case.outputs(), strict=True):
        there.copyfrom(_as_numpy(empty))
    module[ENTRY](*sent)
    case.check([_received(t) for t in outputs], budget_of(kernel.problem))
    return module


def _as_numpy(tensor: Tensor) -> Any:
    import torch

    # NumPy has no bfloat16; TVM takes its bits.
    return (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def _sent(tensor: Tensor, device: Any) -> Any:
    import tvm.runtime

    there = tvm.runtime.empty(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), device)
    return there.copyfrom(_as_numpy(tensor))


def _received(tensor: Any) -> Tensor:
    import torch

    array = tensor.numpy()
    if str(tensor.dtype) != "bfloat16":
        return torch.from_numpy(array)
    return torch.from_numpy(array.view("uint16")).view(torch.bfloat16)


def _drawn(session: Any, device: Any, kernel: Kernel, case: Case) -> list[Any]:
    """Arguments for the whole batch, with numbers drawn over there; also for those that have no batch."""
    import tvm.runtime

    fill = session.get_function("tvm.contrib.random.random_fill_for_measure")
    found = []
    every = (*case.inputs, *case.outputs())
    for like, argument in zip(every, kernel.problem.arguments(), strict=True):
        shape = (kernel.batch, *like.shape[1:]) if argument.has_batch else tuple(like.shape)
        there = tvm.runtime.empty(shape, str(like.dtype).removeprefix("torch."), device)
        fill(there)
        found.append(there)
    return found


def _scratch(device: Any, problem: Problem, batch: int, conditions: Conditions) -> list[Any]:
    """Memory for what a kernel of gradients for GPUs keeps between its parts, its last arguments."""
    import tvm.runtime

    scratch = problem.scratch() if conditions.on_gpu else ()
    return [tvm.runtime.empty(argument.shape_for(batch), argument.dtype, device) for argument in scratch]


def _flushing(conditions: Conditions, arguments: Sequence[Any]) -> Conditions:
    """``conditions``, with caches flushed before each call where a GPU's last cache may hold the arguments.

    TVM calls a kernel with the same arguments again and again, and here they would rotate.
    """
    if not conditions.on_gpu:
        return conditions
    size = sum(math.prod(t.shape) * (t.dtype.bits // 8) for t in arguments)
    return dataclasses.replace(conditions, cold_cache=conditions.cold_cache or size < ROTATED_BYTES)


def _timer(
    module: Any, device: Any, arguments: Sequence[Any], conditions: Conditions
) -> Callable[[int, int], Sequence[float]]:
    """``timed(calls, repeats)`` of a kernel: seconds per call of each repeat."""
    from tvm_na.te import ENTRY

    options: dict[str, Any] = {}
    if conditions.cold_cache:
        on_gpu, on_cpu = {"cache_flush_bytes": ROTATED_BYTES}, {"f_preproc": "cache_flush_cpu_non_first_arg"}
        options = on_gpu if conditions.on_gpu else on_cpu

    def timed(calls: int, repeats: int) -> Sequence[float]:
        evaluator = module.time_evaluator(ENTRY, device, number=calls, repeat=repeats, **options)
        return [float(s) for s in evaluator(*arguments).results]

    return timed
