"""Peak memory beside what was in use before: of forward passes of models, and of the operator, each in its process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.memory import peak_of_call
from benchmarks.peers import PEERS
from benchmarks.problems import growing
from benchmarks.suite.cases import Case, Part, Setting
from benchmarks.suite.networks import NAT, SWIN, network
from benchmarks.suite.op import IN_FLOAT32, OURS, SLOW_PEERS
from benchmarks.suite.packages import images, placed
from benchmarks.suite.turns import in_short
from tvm_na.functional import Backend, na2d
from tvm_na.problems.attention import NAProblem

R = TypeVar("R")

#: malloc takes large tensors from the system one by one, and gives them back.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def _cases(setting: Setting) -> list[Case]:
    batch, size = (4, 16) if setting.quick else (32, 112)
    models = [NAT] if setting.quick else [NAT, SWIN]
    names = [OURS] if setting.quick else [OURS, *(peer.name for peer in PEERS[setting.device])]
    names = [name for name in names if name not in SLOW_PEERS[setting.device]]
    if not setting.is_main:
        # Linux counts to some hundred kilobytes: a map whose tensors are large beside that, as are not peers' masks.
        models, names, size = [], [OURS, IN_FLOAT32], 2 * size
    passes = [Case(f"{name}, batch {batch}", {"network": name, "batch": batch}, environment=_MALLOC) for name in models]
    operator = [
        Case(
            f"{size}², {name}{', backward' if backward else ''}",
            {"operator": name, "size": size, "backward": backward},
            environment=_MALLOC,
        )
        for backward in (False, True)
        for name in names
    ]
    return [*passes, *operator]


def run(case: Case, setting: Setting) -> dict[str, Any]:
    """Bytes at most in use at a time beyond those before, outputs included, inputs not."""
    prepare = _network if "network" in case.about else _operator
    with torch.set_grad_enabled(case.about.get("backward", False)):
        try:
            call, small, large = prepare(case.about, setting)
            call(*small)  # what is loaded on first use is loaded
            call(*small)
        except Exception as error:  # a compiler's failure has no type of its own
            if case.about.get("operator", OURS) in (OURS, IN_FLOAT32):
                raise
            return {"refused": in_short(error)}
        _, peak = _peak(lambda: call(*large), setting)
    return {"peak": peak, "inputs": sum(t.numel() * t.element_size() for t in large)}


def _peak(call: Callable[[], R], setting: Setting) -> tuple[R, int]:
    if setting.device == "cpu":
        return peak_of_call(call)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() - before


Prepared = tuple[Callable[..., object], tuple[Tensor, ...], tuple[Tensor, ...]]


def _network(about: Mapping[str, Any], setting: Setting) -> Prepared:
    """A model with one image, and with a batch."""
    one = network(about["network"], setting.quick)
    one_image, batch = (images(one, n, setting) for n in (1, about["batch"]))
    return placed(one, setting), (one_image,), (batch,)


def _operator(about: Mapping[str, Any], setting: Setting) -> Prepared:
    """The operator or a peer, forward or with gradients: the same tensors twice, as masks are of one size."""
    name = about["operator"]
    dtype = "float32" if name == IN_FLOAT32 else setting.dtype
    problem: NAProblem = growing((about["size"],))[0].of_dtype(dtype).problem
    shape = (1, *problem.spatial, problem.heads, problem.head_dim)
    tensors = [torch.randn(shape, device=setting.device).to(getattr(torch, dtype)) for _ in range(3)]
    if name in (OURS, IN_FLOAT32):
        call: Callable[..., Tensor] = partial(na2d, kernel_size=problem.kernel_size, backend=Backend.COMPILED)
    else:
        (peer,) = [peer for peer in PEERS[setting.device] if peer.name == name]
        call, tensors = peer.prepare(problem, setting.device, None), [peer.layout(t) for t in tensors]
    leaves = tuple(t.requires_grad_(about["backward"]) for t in tensors)
    if not about["backward"]:
        return call, leaves, leaves
    return lambda *inputs: torch.autograd.grad(call(*inputs).sum(), inputs), leaves, leaves


MEMORY = Part("memory", _cases, run)
