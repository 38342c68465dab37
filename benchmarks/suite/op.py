"""The operator: forward, and forward with backward, beside its peers, its default schedule and ``torch.mm``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.peers import PEERS, Peer
from benchmarks.problems import Workload, growing, workloads
from benchmarks.suite.cases import Case, Part, Setting, is_beside_float32
from benchmarks.suite.right import Right, sampled_right
from benchmarks.suite.turns import SLOW, Call, Candidates, with_limited_memory
from tvm_na.functional import Backend, na1d, na2d, na3d
from tvm_na.jit.build import explain, target_for
from tvm_na.measure.cuda import copies_for, rotating
from tvm_na.ops.launch import forget
from tvm_na.problems.attention import NAProblem

OURS, DEFAULT, MATMUL = "tvm_na", "tvm_na, default", "torch.mm"
#: Ours in float32, beside which other dtypes are measured on a CPU.
IN_FLOAT32 = "tvm_na, float32"
MATMUL_SIZE = 1024
#: The largest relative error that is right, of an output and of gradients; a wrong window has 1e-2 and more, which in
#: bfloat16 only the same peers in float32 would show.
BUDGET = {"float32": (1e-5, 2e-5), "float16": (4e-3, 1e-2), "bfloat16": (1.5e-2, 3e-2)}
#: Peers that take no bias.
WITHOUT_BIAS = ("natten", "natten-mps")
#: On CPUs it is flex_attention that is not compiled: at 112² tokens a call takes 13 s, and larger ones most often want
#: more memory than there is. Not measured at what is large.
SLOW_PEERS = {"cpu": ("natten",), "cuda": ()}
#: Samples of a batch on a GPU, for what does not fill it.
GPU_BATCH = 128

_FUNCTIONS: dict[int, Callable[..., Tensor]] = {1: na1d, 2: na2d, 3: na3d}
Operator = Callable[..., Tensor]


def _case(workload: Workload, setting: Setting, seconds: float, growing: bool = False) -> Case:
    batch = GPU_BATCH if setting.device == "cuda" and not workload.large else 1
    problem = workload.of_dtype(setting.dtype).problem
    about = {"problem": problem.to_json(), "note": workload.note, "batch": batch, "seconds": seconds}
    peers = [peer.name for peer in PEERS[setting.device]]
    if workload.large and setting.is_beside_float32:
        peers = []  # without instructions for it a peer takes minutes for a call there
    elif workload.large or growing:
        peers = [name for name in peers if name not in SLOW_PEERS[setting.device]]
    return Case(workload.name, {**about, "backward": not growing, "peers": peers})


def _cases(setting: Setting) -> list[Case]:
    if setting.quick:
        tiny = (Workload("2D", NAProblem.make((12, 12), 3, 2, 16, bias=True)),)
        return [_case(workload, setting, 0.3) for workload in tiny]
    return [_case(workload, setting, 2.5) for workload in workloads()]


def _growing_cases(setting: Setting) -> list[Case]:
    if not setting.is_main:
        return []
    sizes = (12,) if setting.quick else (14, 28, 56, 112)
    return [_case(workload, setting, 0.2 if setting.quick else 2.0, growing=True) for workload in growing(sizes)]


def run(case: Case, setting: Setting) -> dict[str, Any]:
    """Measure one problem."""
    problem = NAProblem.from_json(case.about["problem"])
    peers = [peer for peer in PEERS[setting.device] if peer.name in case.about["peers"]]
    bench = _Bench(problem, case.about["batch"], setting.device, case.about["seconds"], peers)
    passes: dict[str, Callable[[], dict[str, Any]]] = {"forward": bench.forward}
    if case.about["backward"]:
        passes["training"] = bench.training
    measured = lambda: {name: one() for name, one in passes.items()}  # noqa: E731
    found = with_limited_memory(measured) if setting.device == "cpu" else measured()
    target = target_for("cuda", 0) if setting.device == "cuda" else None
    about = {"problem": str(problem), "note": case.about["note"], "batch": bench.batch, "useful": problem.useful_flops}
    return {**about, "schedule": explain(problem, target), **found}


def _ours(problem: NAProblem, rpb: Tensor | None, stride: int | tuple[int, ...] = 1) -> Operator:
    """Our operator; a call keeps the kernel that it got first, so another way to say the stride is another call."""
    window = {"kernel_size": problem.kernel_size, "stride": stride, "dilation": problem.dilation}
    return partial(_FUNCTIONS[problem.rank], **window, rpb=rpb, backend=Backend.COMPILED)


def _in_float32(problem: NAProblem, device: str, rpb: Tensor | None) -> Operator:
    return _ours(problem, None if rpb is None else rpb.float())


#: Of the same numbers.
_OURS_IN_FLOAT32 = Peer(IN_FLOAT32, "ours in float32", _in_float32, Tensor.float, lambda out, problem: out)


class _Bench:
    """A problem with its inputs, and the candidates of its two passes."""

    def __init__(self, problem: NAProblem, batch: int, device: str, seconds: float, peers: Sequence[Peer] = ()) -> None:
        torch.manual_seed(0)
        self.problem, self.batch, self.device, self.seconds = problem, batch, device, seconds
        self.is_beside_float32 = is_beside_float32(device, problem.dtype)
        self.others = [_OURS_IN_FLOAT32, *peers] if self.is_beside_float32 else peers
        dtype, shape = getattr(torch, problem.dtype), (batch, *problem.spatial, problem.heads, problem.head_dim)
        bytes_moved = 4 * math.prod(shape) * dtype.itemsize
        count = 1 if device == "cpu" else copies_for(bytes_moved)
        self.sets = [tuple(torch.randn(shape, dtype=dtype, device=device) for _ in range(4)) for _ in range(count)]
        self.rpb = torch.randn(problem.bias_shape, dtype=dtype, device=device) if problem.bias else None
        # Without a bias, for peers that take none: less to do than ours has.
        self.plain = NAProblem(**{**vars(problem), "bias": False})
        self._right: dict[bool, Right] = {}
        #: Who has no time in training, and why.
        self._not_trained: dict[str, str] = {}

    def _right_of(self, problem: NAProblem) -> Right:
        """What is right with or without the bias, evaluated once."""
        if problem.bias not in self._right:
            self._right[problem.bias] = sampled_right(problem, *self.sets[0], rpb=self.rpb if problem.bias else None)
        return self._right[problem.bias]

    def forward(self) -> dict[str, Any]:
        """The forward pass, of ours also with the default schedule."""
        with torch.inference_mode():
            found = Candidates(BUDGET[self.problem.dtype][0])
            right = self._right_of(self.problem)
            strides: dict[str, Any] = {OURS: 1, DEFAULT: self.problem.stride}
            for name, stride in strides.items():
                forget()  # there they are one call
                with patch.dict(os.environ, {"TVM_NA_RECORDS": "off"} if name == DEFAULT else {}):
                    found.add(name, partial(self._forward_of, _ours(self.problem, self.rpb, stride), None, right))
            self._add_peers(found, lambda call, peer, right: self._forward_of(call, peer, right))
            timed = self._timed(found)
        seconds = {name: min(one["samples"]) for name, one in timed["candidates"].items()}
        slow = {name: f"its forward pass alone takes {s:.1f} s" for name, s in seconds.items() if s > SLOW}
        self._not_trained = {**found.refused, **slow}
        return timed

    def training(self) -> dict[str, Any]:
        """Forward and backward, to gradients of query, key and value."""
        found = Candidates(BUDGET[self.problem.dtype][1])
        right = self._right_of(self.problem)
        found.add(OURS, partial(self._training_of, _ours(self.problem, self.rpb), None, right))
        self._add_peers(found, lambda call, peer, right: self._training_of(call, peer, right))
        return self._timed(found)

    def _add_peers(
        self,
        found: Candidates,
        of: Callable[[Operator, Peer, Right], tuple[Call, float]],
    ) -> None:
        for peer in self.others:

            def prepare(problem: NAProblem, rpb: Tensor | None, peer: Peer = peer) -> tuple[Call, float]:
                return of(peer.prepare(problem, self.device, rpb), peer, self._right_of(problem))

            takes_bias = self.rpb is None or peer.name not in WITHOUT_BIAS
            name = peer.name if takes_bias else f"{peer.name}, no bias"
            if name in self._not_trained:
                found.refused[name] = self._not_trained[name]
            else:
                found.add(name, partial(prepare, *((self.problem, self.rpb) if takes_bias else (self.plain, None))))

    def _forward_of(self, call: Operator, peer: Peer | None, right: Right) -> tuple[Call, float]:
        sets = [tuple(peer.layout(t) if peer else t for t in tensors[:3]) for tensors in self.sets]
        out = call(*sets[0])
        error = right.error_of_output(peer.back(out, self.problem) if peer else out)
        return rotating(call, sets), error

    def _training_of(self, call: Operator, peer: Peer | None, right: Right) -> tuple[Call, float]:
        def gradients(query: Tensor, key: Tensor, value: Tensor, d_out: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(call(query, key, value), (query, key, value), d_out)

        def leaves(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            laid = [peer.layout(t) if peer else t for t in tensors]
            return tuple(t.detach().requires_grad_(n < 3) for n, t in enumerate(laid))

        assert right.d_out is not None
        found = gradients(*leaves((*self.sets[0][:3], right.d_out)))
        error = right.error_of_gradients([peer.back(t, self.problem) if peer else t for t in found])
        return rotating(gradients, [leaves(tensors) for tensors in self.sets]), error

    def _timed(self, found: Candidates) -> dict[str, Any]:
        ours = (OURS, DEFAULT, IN_FLOAT32)
        if self.is_beside_float32:
            return found.timed(self.seconds, self.device, ours=ours)
        dtype = getattr(torch, self.problem.dtype)
        a, b = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE, device=self.device).to(dtype)
        return found.timed(self.seconds, self.device, {MATMUL: lambda: torch.mm(a, b)}, ours)


OP = Part("op", _cases, run)
GROWTH = Part("growth", _growing_cases, run)
