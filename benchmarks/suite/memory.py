"""Peak memory beside what was in use before: of forward passes of models, and of the operator, each in its process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.memory import peak_of_call
from benchmarks.peers import PEERS
from benchmarks.problems import growing
from benchmarks.suite.cases import Case, Part, Setting
from benchmarks.suite.networks import NAT, SWIN, network
from benchmarks.suite.op import OURS
from tvm_na.functional import Backend, na2d
from tvm_na.problems.attention import NAProblem

R = TypeVar("R")

#: malloc takes large tensors from the system one by one, and gives them back.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def _cases(setting: Setting) -> list[Case]:
    batch, size = (4, 16) if setting.quick else (32, 112)
    models = [NAT] if setting.quick else [NAT, SWIN]
    peers = [OURS] if setting.quick else [OURS, *(peer.name for peer in PEERS[setting.device])]
    passes = [Case(f"{name}, batch {batch}", {"network": name, "batch": batch}, environment=_MALLOC) for name in models]
    operator = [
        Case(f"{size}², {name}", {"operator": name, "size": size, "batch": 1}, environment=_MALLOC) for name in peers
    ]
    return [*passes, *operator]


def run(case: Case, setting: Setting) -> dict[str, Any]:
    """Bytes at most in use at a time beyond those before, outputs included, inputs not."""
    with torch.inference_mode():
        if "network" not in case.about:
            call, inputs = _operator(case.about["operator"], case.about["size"], setting)
        else:
            one = network(case.about["network"], setting.quick)
            model, size = one.model.to(setting.device), one.size
            call = lambda x: model(x)  # noqa: E731
            inputs = [(torch.randn(n, 3, size, size).to(setting.device),) for n in (1, case.about["batch"])]
        if isinstance(call, dict):
            return call
        call(*inputs[0])  # what is loaded on first use is loaded
        call(*inputs[0])
        _, peak = _peak(lambda: call(*inputs[-1]), setting)
    return {"peak": peak, "inputs": sum(t.numel() * t.element_size() for t in inputs[-1])}


def _peak(call: Callable[[], R], setting: Setting) -> tuple[R, int]:
    if setting.device == "cpu":
        return peak_of_call(call)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() - before


def _operator(name: str, size: int, setting: Setting) -> tuple[Any, list[tuple[Tensor, ...]]]:
    """A call of the operator or of a peer, with inputs; in place of the call why there is none."""
    problem: NAProblem = growing((size,))[0].problem
    tensors = [torch.randn(1, size, size, problem.heads, problem.head_dim, device=setting.device) for _ in range(3)]
    if name == OURS:
        return lambda q, k, v: na2d(q, k, v, problem.kernel_size, backend=Backend.COMPILED), [tuple(tensors)]
    (peer,) = [peer for peer in PEERS[setting.device] if peer.name == name]
    try:
        call = peer.prepare(problem, setting.device, None)
    except NotImplementedError as error:
        return {"refused": str(error)}, []
    return call, [tuple(peer.layout(t) for t in tensors)]


MEMORY = Part("memory", _cases, run)
