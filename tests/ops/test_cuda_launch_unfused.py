"""Launches of the unfused operators on GPUs: with a pretended GPU what can be known without one, with a real GPU the
rest."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import GRADIENT_TOLERANCE, TOLERANCE
from tests.helpers import random_inputs, relative_error
from tests.ops.test_cuda_launch import PretendedGpu, misaligned
from tests.ops.test_unfused_ops import WINDOW, calls, draw, finite
from tvm_na import na1d_qk, na2d_av, na2d_qk, na3d_av, unfused
from tvm_na.jit import build
from tvm_na.ops import backend
from tvm_na.ops import launch as launchers
from tvm_na.ops import launch_cuda as launch
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.unfused import KINDS, UnfusedProblem
from tvm_na.reference.unfused_case import _SCALE as SCALE
from tvm_na.reference.unfused_case import _expected
from tvm_na.targets.target import parse_target

OF_GPUS = tuple(kind for kind in KINDS if kind != "bias_parts")
DTYPES = ["float32", "float64", "float16", "bfloat16"]
#: That of ``draw``, with scores of 4 heads, 2 of keys, 8 channels.
FORWARD = NAProblem.make((7, 6), (3, 2), 4, 8, stride=(1, 2), dilation=(2, 1), is_causal=(False, True), heads_kv=2)


def problem_of(kind: str, dtype: str = "float32", bias: bool = False) -> UnfusedProblem:
    forward = dataclasses.replace(FORWARD, dtype=dtype, bias=bias)
    if kind in ("bias_sums", "bias_parts"):
        forward = dataclasses.replace(forward, head_dim=1, head_dim_v=1, heads_kv=4)
    return UnfusedProblem(kind, forward)


class Gpu(PretendedGpu):
    """Two devices, and kernels of the unfused operators that write down how they were called."""

    def kernel_for(self, problem: Any, target: Any) -> SimpleNamespace:
        self.built.append((problem, target.name))

        def kernel(*arguments: Tensor) -> None:
            *inputs, out = arguments
            tensors = [t for n, t in enumerate(inputs) if n != 2]  # but the scale
            assert all(t.is_contiguous() and not t.is_neg() for t in arguments)
            assert all(t.data_ptr() % launch.ALIGNMENT == 0 for t in tensors)
            dtypes = [t.dtype for t in arguments]
            self.calls.append(SimpleNamespace(device=self.current, batch=len(inputs[0]), dtypes=dtypes, out=out))
            assert len(inputs) == 1 or float(inputs[2]) == pytest.approx(SCALE)
            out.copy_(_expected(problem, tensors))

        return SimpleNamespace(function=kernel)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def launcher(problem: UnfusedProblem, index: int = 0) -> Any:
    return launchers.launcher_of(problem, torch.device("cuda", index))


def arguments_of(kind: str, tensors: dict[str, Tensor], bias: bool = False) -> list[Any]:
    """What a launcher is called with, but the scale."""
    names = {"qk": ("query", "key"), "dots": ("query", "key"), "av": ("attn", "value"), "bias_sums": ("attn",)}
    found: list[Any] = [tensors[name] for name in names.get(kind, ("attn", "query"))]
    return [*found, tensors["rpb"] if bias else None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", OF_GPUS)
def test_every_kind_and_dtype_has_a_kernel_of_its_own(gpu: Gpu, kind: str, dtype: str) -> None:
    problem, tensors = problem_of(kind, dtype, bias=kind == "qk"), draw(getattr(torch, dtype))
    (out,) = launcher(problem)(arguments_of(kind, tensors, bias=kind == "qk"), SCALE)
    built = dataclasses.replace(problem, kind="bias_parts") if kind == "bias_sums" else problem
    assert gpu.built == [(built, "cuda-sm_90")]
    (call,) = gpu.calls
    assert call.dtypes[0] == out.dtype == getattr(torch, dtype)
    accum = getattr(torch, problem.accum_dtype)
    if kind == "bias_sums":
        assert call.dtypes[1:] == [accum]
        assert call.out.shape == (2, problem.parts, *problem.forward.bias_shape)
    else:
        assert call.dtypes[2] == accum
    inputs = [t for t in arguments_of(kind, tensors, bias=kind == "qk") if t is not None]
    assert relative_error(finite(out), finite(_expected(problem, inputs))) <= TOLERANCE[dtype]


def test_the_kernel_runs_on_the_inputs_device_and_the_current_one_stays(gpu: Gpu) -> None:
    for kind in OF_GPUS:
        for index in (0, 1):
            launch_it = launcher(problem_of(kind), index)
            for gpu.current in (0, 1):
                before = gpu.current
                launch_it(arguments_of(kind, draw()), SCALE)
                assert gpu.calls[-1].device == index and gpu.current == before


@pytest.mark.parametrize("kind", OF_GPUS)
def test_views_and_misaligned_tensors_are_copied(gpu: Gpu, kind: str) -> None:
    tensors, launch_it = draw(), launcher(problem_of(kind))
    (right,) = launch_it(arguments_of(kind, tensors), SCALE)
    for change in (misaligned, lambda t: torch._neg_view(-t), lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)):
        changed = {name: change(t) for name, t in tensors.items()}
        assert torch.equal(launch_it(arguments_of(kind, changed), SCALE)[0], right)


@pytest.mark.parametrize("kind", OF_GPUS)
def test_batches_that_are_too_large_and_empty(gpu: Gpu, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, problem = draw(torch.float64, batch=5), problem_of(kind, "float64")
    (right,) = launcher(problem)(arguments_of(kind, tensors), SCALE)
    built = gpu.built[0][0]
    largest = max(argument.elements for argument in built.arguments() if argument.has_batch)
    monkeypatch.setattr("tvm_na.problems.base.MAX_ELEMENTS", 4 * largest)
    gpu.calls.clear()
    split = launcher(problem)
    (found,) = split(arguments_of(kind, tensors), SCALE)
    assert [call.batch for call in gpu.calls] == [2, 2, 1]
    assert relative_error(finite(found), finite(right)) <= TOLERANCE["float64"]
    gpu.calls.clear()
    (empty,) = split(arguments_of(kind, {name: t[:0] for name, t in tensors.items()}), SCALE)
    assert empty.shape == (right.shape if kind == "bias_sums" else (0, *right.shape[1:]))
    assert not empty.any() and not gpu.calls
    monkeypatch.setattr("tvm_na.problems.base.MAX_ELEMENTS", largest)
    first = "query" if kind in ("qk", "dots") else "attn"
    with pytest.raises(ValueError, match=rf"{first}: required fewer than 2\^31 elements per sample"):
        launcher(problem)


def test_the_bound_of_32_bits_counts_scores_and_biases() -> None:
    qk = UnfusedProblem.make("qk", (64, 64), 63, 1, 1)
    assert qk.largest_batch("cuda") == (2**31 - 1) // (2 * 64 * 64 * 63 * 63)
    assert UnfusedProblem.make("qk", (256, 256), 255, 1, 1).largest_batch("cuda") == 0
    many = UnfusedProblem.make("qk", (8, 8), 8, 10**7, 1, bias=True)
    assert many.largest_batch("cuda") == 0


# --- the choice of the backend


def test_the_target_decides_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    device, problem = torch.device("cuda", 0), problem_of("qk")
    monkeypatch.setattr(build, "target_for", lambda kind, index: parse_target("cuda-sm_90"))
    assert "forward-mode" in str(backend.why_not_compiled(problem, device, True))
    assert backend.why_not_compiled(problem, device, False) is None
    assert "for the device xpu" in str(backend.why_not_compiled(problem, torch.device("xpu"), False))

    def too_old(kind: str, index: int) -> Any:
        raise ValueError("capability: required a GPU of compute capability 7.5 or newer, got 7.0")

    monkeypatch.setattr(build, "target_for", too_old)
    assert "capability" in str(backend.why_not_compiled(problem, device, False))


def test_the_choice_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a GPU, but on the CPU: a trace must not look into what builds kernels."""
    asked: list[Any] = []
    monkeypatch.setattr("tvm_na.ops.backend.why_no_kernel", lambda problem, device: asked.append(problem))
    why, gpu = backend.why_not_compiled, torch.device("cuda", 0)
    monkeypatch.setattr(unfused, "why_not_compiled", lambda problem, _, mode: why(problem, gpu, mode))
    tensors = draw()
    torch._dynamo.reset()
    function = torch.compile(lambda q, k: na2d_qk(q, k, *WINDOW, backend="compiled"), fullgraph=True, backend="eager")
    right = na2d_qk(tensors["query"], tensors["key"], *WINDOW)
    assert torch.equal(function(tensors["query"], tensors["key"]), right)
    assert asked


def test_the_operators_are_registered_for_gpus() -> None:
    for name in ("na_qk", "na_av", "na_av_transposed", "na_bias_sums"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"tvm_na::{name}", "CUDA")


# --- a real GPU


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


def attend(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor) -> Tensor:
    scores = na2d_qk(query, key, *WINDOW, None, rpb=rpb, backend="compiled")
    return na2d_av(scores.softmax(dim=-1), value, *WINDOW, backend="compiled")


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
