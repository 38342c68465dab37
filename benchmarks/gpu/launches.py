"""The operator as users call it, in every way that PyTorch launches: streams, graphs, views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import case_of, forget
from benchmarks.gpu.folder import RunFolder
from benchmarks.gpu.recorded import prepare_operators
from benchmarks.gpu.results import Results
from benchmarks.gpu.steps import Item
from benchmarks.gpu.worker import here
from tvm_na.functional import na2d
from tvm_na.reference.cases import budget_of

_BATCH = 3


def _call(query: Tensor, key: Tensor, value: Tensor, scale: Tensor, rpb: Tensor) -> Tensor:
    problem = here().folder.plan.launched
    found: Tensor = na2d(query, key, value, problem.kernel_size, rpb=rpb, backend=here().device.backend)
    return found


def _offset(tensor: Tensor, by: int) -> Tensor:
    """The same numbers, so many elements behind an address that kernels like."""
    return torch.cat([tensor.new_zeros(by), tensor.flatten()])[by:].view(tensor.shape)


def plain(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [_call(*inputs)]


def offset_views(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Views at odd addresses, and such that are not contiguous."""
    strided = [t.repeat_interleave(2, -1)[..., ::2] for t in inputs]
    return [*(_call(*(_offset(t, by) for t in inputs)) for by in (1, 2, 4)), _call(*strided)]


def side_stream(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Inputs are written by a slow predecessor on the same stream: a kernel elsewhere would read them too early."""
    stale = [torch.zeros_like(t) for t in inputs]
    _call(*stale)
    with here().device.stream():
        here().device.delay()
        for old, new in zip(stale, inputs, strict=True):
            old.copy_(new)
        return [_call(*stale)]


def two_streams(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Calls on streams beside each other, many times."""
    found = []
    for _ in range(8):
        with here().device.stream():
            found.append(_call(*inputs))
        found.append(_call(*inputs))
    return found


def graph(inputs: Sequence[Tensor]) -> list[Tensor]:
    """A captured call, replayed with other numbers in the same memory."""
    fixed = [torch.zeros_like(t) for t in inputs]
    fixed[3].copy_(inputs[3])
    replay = here().device.captured(lambda: _call(*fixed))
    for old, new in zip(fixed, inputs, strict=True):
        old.copy_(new)
    return [replay().clone(), replay()]


LAUNCHES: dict[str, Callable[[Sequence[Tensor]], list[Tensor]]] = {
    "plain": plain,
    "offset views": offset_views,
    "side stream": side_stream,
    "two streams": two_streams,
    "graph": graph,
}


def items(folder: RunFolder, results: Results) -> list[Item]:
    """One for each way."""
    return [Item(name, (name,)) for name in LAUNCHES]


def launched(name: str) -> dict[str, Any]:
    """Call in one of these ways, and compare."""
    prepare_operators()
    problem = here().folder.plan.launched
    forget()
    case = case_of(problem, _BATCH)
    with torch.inference_mode():
        found = LAUNCHES[name](case.inputs)
        for out in found:
            case.check([out], budget_of(problem))
    return {"calls": len(found)}
