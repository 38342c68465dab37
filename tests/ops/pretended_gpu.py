"""A pretended GPU: tensors are on the CPU, and every kernel is the reference and writes down how it was called."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.gradients import wanted
from tvm_na.jit import build
from tvm_na.ops import launch_cuda
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.base import Problem
from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.reference import attention as reference
from tvm_na.reference.unfused_case import _SCALE, _expected
from tvm_na.targets.target import parse_target


class PretendedGpu:
    """Two devices of one kind.

    Attributes:
        current: The current device.
        calls: Problem, device and batch of each call of a kernel.
        built: Problem and target of each kernel.
        cached: Whether kernels are on disk.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.current = 0
        self.calls: list[SimpleNamespace] = []
        self.built: list[tuple[Problem, str]] = []
        self.cached = True
        patch.setattr(torch.cuda, "current_device", lambda: self.current)
        patch.setattr(torch.cuda, "device", self.device)
        patch.setattr(build, "target_for", lambda kind, index=None: parse_target("cuda-sm_90"))
        patch.setattr(build, "is_cached", lambda problem, target: self.cached)
        patch.setattr(build, "kernel_for", self.kernel_for)
        patch.setattr(launch_cuda, "scale_tensor", lambda index, scale, dtype: torch.tensor([scale], dtype=dtype))

    @contextlib.contextmanager
    def device(self, index: int) -> Iterator[None]:
        before, self.current = self.current, index
        yield
        self.current = before

    def kernel_for(self, problem: Problem, target: Any) -> SimpleNamespace:
        self.built.append((problem, target.name))
        return SimpleNamespace(function=functools.partial(self.run, problem))

    def run(self, problem: Problem, *tensors: Tensor) -> None:
        """A kernel, whose scratch memory is spoilt."""
        described, batch = (*problem.arguments(), *problem.scratch()), len(tensors[0])
        assert [tuple(t.shape) for t in tensors] == [a.shape_for(batch) for a in described]
        assert [t.dtype for t in tensors] == [getattr(torch, a.dtype) for a in described]
        assert all(t.is_contiguous() and not t.is_neg() for t in tensors)
        of_role: dict[str, list[Tensor]] = {"input": [], "scale": [], "output": [], "scratch": []}
        for argument, tensor in zip(described, tensors, strict=True):
            of_role[argument.role].append(tensor)
        assert all(t.data_ptr() % launch_cuda.ALIGNMENT == 0 for t in of_role["input"])
        self.calls.append(SimpleNamespace(problem=problem, device=self.current, batch=batch))
        for tensor in of_role["scratch"]:
            tensor.fill_(math.nan)
        scales = [float(t) for t in of_role["scale"]]
        found = results(problem, of_role["input"], *scales)
        for into, result in zip(of_role["output"], found, strict=False):
            into.copy_(result)


def results(problem: Any, inputs: list[Tensor], scale: float = _SCALE) -> Sequence[Tensor]:
    """What is right, by the reference: at least the outputs of a kernel."""
    if isinstance(problem, UnfusedProblem):
        assert scale == pytest.approx(_SCALE)
        return [_expected(problem, inputs)]
    if isinstance(problem, BackwardProblem):
        read = 3 + problem.forward.bias
        _, d_out, *d_lse = inputs[read:]
        with torch.enable_grad():
            return wanted(problem.forward, inputs[:read], d_out, d_lse[0] if d_lse else None, scale)
    return reference.neighborhood_attention(problem, *inputs[:3], scale, *inputs[3:])
