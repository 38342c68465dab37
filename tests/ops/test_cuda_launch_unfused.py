"""The unfused operators on a real GPU; test_cuda_launch.py has what can be known without one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.conftest import GRADIENT_TOLERANCE, TOLERANCE
from tests.helpers import random_inputs, relative_error
from tests.ops.test_unfused_ops import attend, calls, draw, finite
from tvm_na import na1d_qk, na2d_qk, na3d_av
from tvm_na.problems.attention import NAProblem

DTYPES = ["float32", "float64", "float16", "bfloat16"]


def on_gpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.to("cuda") for name, t in tensors.items()}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", calls(draw()))
def test_gpu_operators_are_right(name: str, dtype: str) -> None:
    tensors = draw(getattr(torch, dtype), batch=3)
    operator, arguments = calls(on_gpu(tensors))[name]
    found = operator(*arguments)
    assert found.device.type == "cuda" and found.dtype == getattr(torch, dtype)
    # What is right: the compiled operator on the CPU, in float64.
    operator, arguments = calls({n: t.double() for n, t in tensors.items()})[name]
    right = operator(*arguments)
    assert torch.equal(found.cpu() == -torch.inf, right == -torch.inf)
    assert relative_error(finite(found.cpu()), finite(right)) <= TOLERANCE[dtype]
    again = calls(on_gpu(tensors))[name]
    assert torch.equal(again[0](*again[1]), found)  # to the bit


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gpu_gradients_are_those_of_the_cpu(dtype: str) -> None:
    names = ("query", "key", "value", "rpb")
    doubles = [draw(torch.float64)[n].requires_grad_() for n in names]
    leaves = [draw(getattr(torch, dtype))[n].to("cuda").requires_grad_() for n in names]
    found = torch.autograd.grad(attend(*leaves).square().sum(), leaves)
    right = torch.autograd.grad(attend(*doubles).square().sum(), doubles)
    for gradient, wanted in zip(found, right, strict=True):
        assert relative_error(gradient.cpu(), wanted) <= GRADIENT_TOLERANCE[dtype]


@pytest.mark.gpu
def test_gpu_serves_every_rank() -> None:
    for front, spatial in ((na1d_qk, (37,)), (na2d_qk, (9, 11))):
        query, key, *_ = random_inputs(NAProblem.make(spatial, 3, 2, 16), 2, 0)
        found = front(query.cuda(), key.cuda(), 3, backend="compiled")
        assert relative_error(found.cpu(), front(query.double(), key.double(), 3)) <= TOLERANCE["float32"]
    attn, value = torch.randn(2, 5, 6, 7, 2, 27), torch.randn(2, 5, 6, 7, 2, 8)
    found = na3d_av(attn.cuda(), value.cuda(), 3, backend="compiled")
    assert relative_error(found.cpu(), na3d_av(attn.double(), value.double(), 3)) <= TOLERANCE["float32"]


@pytest.mark.gpu
def test_gpu_graphs_hold_a_step_with_gradients() -> None:
    """Sums for a bias in parts allocate PyTorch's memory alone, which a graph can capture."""
    leaves = [t.requires_grad_() for n, t in on_gpu(draw()).items() if n != "attn"]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attend(*leaves).square().sum(), leaves)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.mul_(0.5)
    graph.replay()
    for found, right in zip(captured, step(), strict=True):
        assert torch.equal(found, right)
