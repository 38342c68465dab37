"""The best kernels beside other ways to compute the same: masked SDPA, compiled flex_attention, NATTEN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import cases
from benchmarks.gpu.folder import RunFolder
from benchmarks.gpu.kernels import COPY, OURS
from benchmarks.gpu.points import best_kernel
from benchmarks.gpu.results import Results
from benchmarks.gpu.steps import Item
from benchmarks.gpu.worker import here
from benchmarks.peers import Call, Peer
from tvm_na.measure.cuda import rotating
from tvm_na.measure.timing import interleaved_ratio
from tvm_na.problems.attention import NAProblem
from tvm_na.reference.accuracy import ERROR_BUDGET, relative_error
from tvm_na.reference.case import DISTINCT

_ROUNDS = 21
_FIRST = ("SDPA", "natten")  # which need no compiler, while flex's is at work


def items(folder: RunFolder, results: Results) -> list[Item]:
    """The best kernel of each problem with each peer by itself: one that fails, or takes long, keeps none waiting."""
    best = [(problem, best_kernel(folder, results, problem)) for problem in folder.plan.compared]
    names = sorted(folder.plan.peers, key=lambda name: name not in _FIRST)
    return [Item(f"{problem}; {name}", (number, name)) for name in names for problem, number in best]


def compiled_items(folder: RunFolder, results: Results) -> list[Item]:
    """The peers that are compiled, for each problem."""
    names = [name for name in folder.plan.peers if name not in _FIRST]
    return [Item(f"{problem}; {name}", (problem.to_json(), name)) for problem in folder.plan.compared for name in names]


def _peer(name: str) -> Peer:
    (peer,) = [peer for peer in here().device.peers if peer.name == name]
    return peer


def _prepared(peer: Peer, problem: NAProblem, inputs: tuple[Tensor, ...]) -> tuple[Call, tuple[Tensor, ...]]:
    """A peer's call, and query, key and value as it takes them."""
    rpb = inputs[4] if problem.bias else None
    torch.compiler.reset()  # of a function that is compiled for many shapes PyTorch refuses to compile more
    return peer.prepare(problem, here().device.name, rpb), tuple(peer.layout(t) for t in inputs[:3])


def compile_ahead(text: str, name: str) -> dict[str, Any]:
    """Have a peer compiled, into PyTorch's cache of compiled kernels on disk, where other processes find it."""
    problem, peer = NAProblem.from_json(text), _peer(name)
    case = cases.case_of(problem, here().device.batch)
    try:
        with torch.inference_mode():
            call, tensors = _prepared(peer, problem, case.inputs)
            call(*tensors)
    except Exception as failure:  # a compiler's has no type of its own
        return {"unavailable": _in_short(failure)}
    return {}


def _in_short(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}".strip().splitlines()[0]


def compared(number: int, name: str) -> dict[str, Any]:
    """A kernel in turns with a peer and a copy; a peer that does not run, or is wrong, gets no time."""
    kernel, batch, peer = here().folder.kernel(number), here().device.batch, _peer(name)
    problem = kernel.problem
    assert isinstance(problem, NAProblem)
    sets, ours = cases.checked_sets(number, batch)
    about: dict[str, Any] = {"kernel": number, "batch": batch}
    with torch.inference_mode():
        try:
            call, first = _prepared(peer, problem, sets.case.inputs)
            error = relative_error(peer.back(call(*first), problem)[:DISTINCT], sets.case.expected[0])
            if not error <= ERROR_BUDGET[problem.dtype]:
                return {**about, "unavailable": f"wrong numbers: a relative error of {error:.1e}"}
        except Exception as failure:  # a compiler's has no type of its own
            return {**about, "unavailable": _in_short(failure)}
        theirs = [tuple(peer.layout(t) for t in arguments[:3]) for arguments in sets.arguments]
        calls = {OURS: ours, name: rotating(call, theirs), COPY: cases.copy_like(problem, batch)}
        timings = cases.time_of(calls, _ROUNDS)
    ratios = {"relative_error": error, "peer_over_ours": interleaved_ratio(timings[name], timings[OURS])}
    ratios["ours_over_copy"] = interleaved_ratio(timings[OURS], timings[COPY])
    return {**about, **{key: timing.to_dict() for key, timing in timings.items()}, **ratios}
