"""Launches on GPUs: with a pretended GPU what can be known without one, with a real GPU all the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from tests.conftest import TOLERANCE
from tests.cuda.cuda_funcs import SHARED_BYTES, needs_compiler, row_sums
from tests.cuda.fake_driver import driver_calls
from tests.helpers import Inputs, random_inputs, reference64, relative_error, run_python
from tests.ops.pretended_gpu import PretendedGpu
from tests.ops.views import as_it_is, channels_first, misaligned, negated, strided
from tests.schedules.cuda_backward_kernels import BUDGET
from tvm_na import na1d, na2d, na2d_qk, na3d, unfused
from tvm_na.cuda.library import compile_library
from tvm_na.jit import build, progress, runtime, scratch
from tvm_na.jit.library import write_cuda_library
from tvm_na.ops import attend, backend
from tvm_na.ops import launch as launchers
from tvm_na.ops import launch_cuda as launch
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.base import Problem
from tvm_na.problems.unfused import KINDS, UnfusedProblem
from tvm_na.reference.case import Case
from tvm_na.reference.cases import make_case
from tvm_na.targets.target import parse_target

PROBLEM = NAProblem.make((6, 7), 3, 2, 8, bias=True, return_lse=True)
WINDOW: tuple[Any, ...] = ([3, 3], [1, 1], [1, 1], [False, False])
CUDA = torch.device("cuda", 0)
DTYPES = ("float32", "float64", "float16", "bfloat16")


def step(kind: str) -> UnfusedProblem:
    """An unfused operator with uneven groups, strides, causality, heads that share keys, and scores with a bias."""
    options: dict[str, Any] = {"stride": (1, 2), "dilation": (2, 1), "is_causal": (False, True), "bias": kind == "qk"}
    shared = {} if kind == "bias_sums" else {"heads_kv": 2}
    return UnfusedProblem.make(kind, (7, 6), (3, 2), 4, 1 if kind == "bias_sums" else 8, **options, **shared)


def attention_with(bias: bool, lse: bool) -> NAProblem:
    return dataclasses.replace(PROBLEM, bias=bias, return_lse=lse)


LAUNCHED: dict[str, Problem] = {
    "attention": PROBLEM,
    "attention alone": attention_with(False, False),
    "gradients": BackwardProblem(PROBLEM),
    "gradients without a bias": BackwardProblem(attention_with(False, True)),
    "gradients without that of lse": BackwardProblem(attention_with(True, False)),
    "gradients alone": BackwardProblem(attention_with(False, False)),
    **{kind: step(kind) for kind in KINDS if kind != "bias_parts"},
}


# --- a pretended GPU


def budget(problem: Problem) -> float:
    return (BUDGET if isinstance(problem, BackwardProblem) else TOLERANCE)[problem.dtype]


def launched(
    problem: Problem, batch: int = 2, device: torch.device = CUDA, view: Callable[[Tensor], Tensor] = as_it_is
) -> tuple[Case, list[Tensor]]:
    """Inputs and what is right, and what a launcher gives for views of them."""
    case, scale = make_case(problem, batch, "cpu"), 0.0
    given = []
    for argument, tensor in zip(problem.arguments(), case.inputs, strict=False):
        if argument.role == "scale":
            scale = float(tensor)
        else:
            given.append(view(tensor))
    return case, launchers.launcher_of(problem, device)(given, scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAUNCHED)
def test_every_problem_and_dtype_has_a_kernel_of_its_own(gpu: PretendedGpu, name: str, dtype: str) -> None:
    problem = LAUNCHED[name].with_dtype(dtype)
    case, found = launched(problem)
    built = dataclasses.replace(problem, kind="bias_parts") if name == "bias_sums" else problem
    assert gpu.built == [(built, "cuda-sm_90")] and len(gpu.calls) == 1
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in case.outputs()]
    case.check(found, budget(problem))


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_kernel_runs_on_the_inputs_device_and_the_current_one_stays(gpu: PretendedGpu, name: str) -> None:
    for index in (0, 1):
        for gpu.current in (0, 1):
            before = gpu.current
            launched(LAUNCHED[name], 1, torch.device("cuda", index))
            assert gpu.calls[-1].device == index and gpu.current == before


@pytest.mark.parametrize("view", [misaligned, negated, strided, channels_first])
@pytest.mark.parametrize("name", LAUNCHED)
def test_views_and_misaligned_inputs_are_copied(gpu: PretendedGpu, name: str, view: Any) -> None:
    case, found = launched(LAUNCHED[name], view=view)
    case.check(found, budget(LAUNCHED[name]))
    assert parse_target("cuda-sm_90").vector_bytes == launch.ALIGNMENT


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("name", LAUNCHED)
def test_a_batch_too_large_for_32_bits_is_split(
    gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch, name: str, batch: int, dtype: str
) -> None:
    problem = LAUNCHED[name].with_dtype(dtype)
    launched(problem, 1)
    built = gpu.calls.pop().problem
    largest = max(argument.elements for argument in (*built.arguments(), *built.scratch()) if argument.has_batch)
    monkeypatch.setattr("tvm_na.problems.base.MAX_ELEMENTS", 2 * 2 * largest)
    case, found = launched(problem, batch)
    assert [call.batch for call in gpu.calls] == [2] * (batch // 2) + [1] * (batch % 2)
    case.check(found, budget(problem))
    monkeypatch.setattr("tvm_na.problems.base.MAX_ELEMENTS", largest)
    first = problem.arguments()[0].name
    with pytest.raises(ValueError, match=rf"{first}: required fewer than 2\^31 elements per sample"):
        launched(problem)


@pytest.mark.parametrize("name", LAUNCHED)
def test_an_empty_batch_is_an_answer(gpu: PretendedGpu, name: str) -> None:
    problem = LAUNCHED[name]
    inputs = [torch.rand(a.shape_for(0)) for a in problem.arguments() if a.role == "input"]
    found = launchers.launcher_of(problem, CUDA)(inputs, 0.5)
    outputs = [argument for argument in problem.arguments() if argument.role == "output"]
    assert [tuple(t.shape) for t in found] == [output.shape_for(0) for output in outputs]
    assert not any(t.any() for t in found) and not gpu.calls


def test_large_dilations_do_not_split_a_batch(gpu: PretendedGpu) -> None:
    """On CPUs they may, since keys are packed with padding."""
    problem = NAProblem.make((256, 256), 7, 4, 32, dilation=32)
    samples = launchers.launch_spec(problem, CUDA).samples
    assert samples == (2**31 - 1) // (2 * 256 * 256 * 4 * 32) > problem.largest_batch("llvm")


def test_the_bound_of_32_bits_counts_scores_and_biases() -> None:
    qk = UnfusedProblem.make("qk", (64, 64), 63, 1, 1)
    assert qk.largest_batch("cuda") == (2**31 - 1) // (2 * 64 * 64 * 63 * 63)
    assert UnfusedProblem.make("qk", (256, 256), 255, 1, 1).largest_batch("cuda") == 0
    many = UnfusedProblem.make("qk", (8, 8), 8, 10**7, 1, bias=True)
    assert many.largest_batch("cuda") == 0


def test_a_kernel_without_scratch_memory_is_what_it_was() -> None:
    def kernel() -> None: ...

    assert scratch.with_scratch(kernel, PROBLEM) is kernel


def test_a_build_is_told(gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tvm_na")
    launchers.launcher_of(PROBLEM, torch.device("cuda", 0))
    assert not caplog.messages
    gpu.cached = False
    launchers.launcher_of(PROBLEM, torch.device("cuda", 0))
    assert len(caplog.messages) == 2
    assert f"building the kernel of {PROBLEM} for cuda-sm_90" in caplog.messages[0]
    assert caplog.messages[1].endswith(" s")


def test_a_terminal_gets_one_line() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=400, color_system=None, highlight=False)
    with progress.building(PROBLEM, parse_target("cuda-sm_90"), console):
        pass
    what = f"tvm_na: building the kernel of {PROBLEM} for cuda-sm_90"
    *erased, line = out.getvalue().split("\x1b[2K")  # what erases a line
    assert what in erased[0]
    assert line.startswith(f"{what}: ") and line.endswith(" s\n")


class Streams:
    """PyTorch's CUDA functions that the scale's tensor is made with."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.capturing, self.waited, self.made = False, 0, 0
        full = torch.full
        patch.setattr(launch, "_scales", {})
        patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        patch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=self.wait))
        patch.setattr(torch, "full", lambda size, value, dtype, device: self.make(full(size, value, dtype=dtype)))

    def wait(self) -> None:
        self.waited += 1

    def make(self, tensor: Tensor) -> Tensor:
        self.made += 1
        return tensor


def test_the_scale_is_made_once_per_device(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    first = launch.scale_tensor(0, 0.5, torch.float32)
    assert (first.shape, first.dtype, float(first)) == ((1,), torch.float32, 0.5)
    assert launch.scale_tensor(0, 0.5, torch.float32) is first
    others = [
        launch.scale_tensor(*at) for at in ((1, 0.5, torch.float32), (0, 0.5, torch.float64), (0, 2.0, torch.float32))
    ]
    assert len({id(t) for t in (first, *others)}) == streams.made == streams.waited == 4
    with torch.inference_mode():
        assert not launch.scale_tensor(0, 3.0, torch.float32).is_inference()


def test_what_is_made_while_a_graph_is_captured_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    warm = launch.scale_tensor(0, 0.5, torch.float32)
    streams.capturing = True
    assert launch.scale_tensor(0, 0.5, torch.float32) is warm
    captured = launch.scale_tensor(0, 2.0, torch.float32)
    assert launch.scale_tensor(0, 2.0, torch.float32) is not captured
    assert streams.waited == 1


def test_scales_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    monkeypatch.setattr(launch, "_MOST_SCALES", 2)
    kept = [launch.scale_tensor(0, float(i), torch.float32) for i in range(2)]
    passing = [launch.scale_tensor(0, 5.0, torch.float32) for _ in range(2)]
    assert passing[0] is not passing[1]
    assert all(launch.scale_tensor(0, float(i), torch.float32) is kept[i] for i in range(2))  # a graph may read them
    assert streams.waited == 2


# --- the choice of the backend


@pytest.mark.parametrize(("problem", "says"), [(PROBLEM, "space"), (step("qk"), "parts")])
def test_the_target_decides_what_is_compiled(monkeypatch: pytest.MonkeyPatch, problem: Any, says: str) -> None:
    monkeypatch.setattr(build, "target_for", lambda kind, index: parse_target("cuda-sm_90"))
    for device in (CUDA, torch.device("cpu"), torch.device("meta")):
        assert backend.why_not_compiled(problem, device) is None
        assert "no forward-mode derivatives" in str(backend.why_not_compiled(problem, device, forward_mode=True))
    assert "for the device xpu" in str(backend.why_not_compiled(problem, torch.device("xpu")))
    monkeypatch.setattr(build, "is_supported", lambda problem, target: False)
    assert says in str(backend.why_not_compiled(problem, CUDA))

    def too_old(kind: str, index: int) -> Any:
        raise ValueError("capability: required a GPU of compute capability 7.5 or newer, got 7.0")

    monkeypatch.setattr(build, "target_for", too_old)
    assert "capability" in str(backend.why_not_compiled(problem, CUDA))


@pytest.mark.parametrize(("module", "count", "call"), [(attend, 3, na2d), (unfused, 2, na2d_qk)])
def test_the_choice_is_traced(monkeypatch: pytest.MonkeyPatch, module: Any, count: int, call: Any) -> None:
    """As for a GPU, but on the CPU: a trace must not look into what builds kernels."""
    asked: list[Problem] = []
    monkeypatch.setattr(backend, "why_no_kernel", lambda problem, device: asked.append(problem))
    why = backend.why_not_compiled
    monkeypatch.setattr(module, "why_not_compiled", lambda problem, _, mode: why(problem, CUDA, mode))
    tensors = random_inputs(NAProblem.make((6, 7), 3, 2, 8), 2, 0)[:count]
    torch._dynamo.reset()
    function = torch.compile(lambda *t: call(*t, 3, backend="compiled"), fullgraph=True, backend="eager")
    assert relative_error(function(*tensors), call(*tensors, 3)) <= TOLERANCE["float32"]
    assert asked


def test_the_operators_are_registered_for_gpus() -> None:
    names = ("na_forward", "na_forward_lse", "na_backward", "na_qk", "na_av", "na_av_transposed", "na_bias_sums")
    for name in names:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"tvm_na::{name}", "CUDA")


def test_what_cuda_kernels_run_on_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "runtime_library", lambda name="": Path("/nowhere") / name)
    runtime._load_cuda_runtime.cache_clear()
    with pytest.raises(RuntimeError, match="kernels for GPUs: required NVIDIA's driver .*libcudart.so.13.*nowhere"):
        runtime._load_cuda_runtime()


# --- a pretended driver: everything above it is real

CALLS = """
    assert "tvm" not in sys.modules
    for device, stream, batch in ((0, 0x10, 5), (0, 0x20, 7), (1, 0x30, 5)):
        log.write_text("")
        x, scale, out = (cuda_tensor(shape, device) for shape in ((batch, 4, 96), (1,), (batch, 4)))
        with tvm_ffi.use_raw_stream(tvm_ffi.device(f"cuda:{device}"), stream):
            kernel(x, scale, out)
        print(log.read_text().splitlines())
"""


@needs_compiler
def test_a_call_is_one_launch_on_the_current_stream(tmp_path: Path) -> None:
    file = tmp_path / "kernel.so"
    write_cuda_library(compile_library(row_sums(), parse_target("cuda-sm_90")), file)
    first, again, other = driver_calls(file, CALLS)

    def launch_of(batch: int, stream: int) -> str:
        return f"cuLaunchKernelEx grid {batch} 1 1 block 32 4 1 shared 0 stream {stream:#x}"

    def without_arguments(lines: list[str]) -> list[str]:
        return [line.partition(" first ")[0] for line in lines]

    loading = ["cuModuleLoadData ba55ed50", "cuModuleGetFunction main_kernel"]
    assert SHARED_BYTES < 48 * 1024
    assert without_arguments(first) == ["cudaSetDevice 0", *loading, launch_of(5, 0x10)]
    assert without_arguments(again) == ["cudaSetDevice 0", launch_of(7, 0x20)]
    assert without_arguments(other) == ["cudaSetDevice 1", *loading, launch_of(5, 0x30)]


# --- a real GPU


def on_gpu(inputs: Inputs, device: str = "cuda") -> list[Any]:
    return [None if t is None else t.to(device) for t in inputs]


def attention(inputs: Any, **options: Any) -> Any:
    return na2d(*inputs[:3], 3, scale=0.5, rpb=inputs[3], backend="compiled", **options)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_gpu_is_right(dtype: str, batch: int) -> None:
    problem = dataclasses.replace(PROBLEM, dtype=dtype)
    inputs = random_inputs(problem, max(batch, 1), 0)
    query, key, value, rpb = on_gpu(inputs)
    out, lse = attention((query[:batch], key[:batch], value[:batch], rpb), return_lse=True)
    assert out.device == query.device and out.dtype == query.dtype
    if batch:
        wanted, wanted_lse = reference64(problem, inputs, 0.5)
        assert relative_error(out.cpu(), wanted) <= TOLERANCE[dtype]
        assert relative_error(lse.cpu(), wanted_lse) <= TOLERANCE["float64" if dtype == "float64" else "float32"]


@pytest.mark.gpu
@pytest.mark.parametrize(("function", "spatial"), [(na1d, (37,)), (na2d, (9, 11)), (na3d, (5, 6, 7))])
def test_gpu_serves_every_rank(function: Any, spatial: tuple[int, ...]) -> None:
    problem = NAProblem.make(spatial, 3, 2, 16, return_lse=True)
    inputs = random_inputs(problem, 2, 0)
    out, lse = function(*on_gpu(inputs)[:3], 3, return_lse=True, backend="compiled")
    wanted, wanted_lse = reference64(problem, inputs)
    assert relative_error(out.cpu(), wanted) <= TOLERANCE["float32"]
    assert relative_error(lse.cpu(), wanted_lse) <= TOLERANCE["float32"]


@pytest.mark.gpu
def test_gpu_takes_any_view() -> None:
    inputs = random_inputs(PROBLEM, 2, 3)
    wanted = reference64(PROBLEM, inputs, 0.5)[0]
    tensors = on_gpu(inputs)
    by_bytes = [partial(misaligned, by=by) for by in (1, 2, 4)]  # 4, 8 and 16
    for view in (*by_bytes, strided, negated):
        assert relative_error(attention([view(t) for t in tensors]).cpu(), wanted) <= TOLERANCE["float32"]


@pytest.mark.gpu
def test_gpu_runs_on_the_current_stream() -> None:
    """Inputs are written by a slow predecessor on the same stream: a kernel elsewhere would read them too early."""
    inputs = random_inputs(PROBLEM, 2, 3)
    wanted = reference64(PROBLEM, inputs, 0.5)[0]
    tensors = on_gpu(inputs)
    attention(tensors)
    stream = torch.cuda.Stream()
    stale = [torch.zeros_like(t) for t in tensors]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for old, new in zip(stale, tensors, strict=True):
            old.copy_(new)
        out = attention(stale)
        assert not stream.query()  # nothing has waited
    stream.synchronize()
    assert relative_error(out.cpu(), wanted) <= TOLERANCE["float32"]


@pytest.mark.gpu
@pytest.mark.parametrize("warm", [True, False], ids=["warm scale", "new scale"])
def test_gpu_graphs(warm: bool) -> None:
    inputs = random_inputs(PROBLEM, 2, 3)
    tensors = on_gpu(inputs)
    factor = 0.5 if warm else 0.125
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        attention(tensors)  # kernels are built, and loaded, before a capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = na2d(*tensors[:3], 3, scale=factor, rpb=tensors[3], backend="compiled")
    for seed in (4, 5):
        fresh = random_inputs(PROBLEM, 2, seed)
        for old, new in zip(tensors, fresh, strict=True):
            old.copy_(new)
        out.fill_(torch.nan)
        graph.replay()
        assert relative_error(out.cpu(), reference64(PROBLEM, fresh, factor)[0]) <= TOLERANCE["float32"]


@pytest.mark.gpu
def test_gpu_serves_several_devices() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    inputs = random_inputs(PROBLEM, 2, 3)
    wanted = reference64(PROBLEM, inputs, 0.5)[0]
    for index in (1, 0, 1):
        out = attention(on_gpu(inputs, f"cuda:{index}"))
        assert out.device == torch.device("cuda", index)
        assert torch.cuda.current_device() == 0
        assert relative_error(out.cpu(), wanted) <= TOLERANCE["float32"]


@pytest.mark.gpu
def test_gpu_kernels_are_traced() -> None:
    inputs = random_inputs(PROBLEM, 2, 3)
    tensors = on_gpu(inputs)
    function = torch.compile(lambda *t: attention(t) * 2, fullgraph=True, backend="eager")
    assert relative_error(function(*tensors).cpu(), 2 * reference64(PROBLEM, inputs, 0.5)[0]) <= TOLERANCE["float32"]
    torch.library.opcheck(torch.ops.tvm_na.na_forward, (*tensors, *WINDOW, 0.5))


@pytest.mark.gpu
def test_gpu_calls_cost_the_host_little() -> None:
    """At most 10 microseconds per call, over and above what PyTorch takes to allocate the output."""
    query, key, value, _ = on_gpu(random_inputs(NAProblem.make((6, 7), 3, 2, 8), 1, 0))

    def seconds(call: Any, count: int = 200) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count

    call = lambda: na2d(query, key, value, 3, backend="compiled")  # noqa: E731
    call()
    ours = min(seconds(call) for _ in range(20))
    empty = min(seconds(lambda: torch.empty_like(query)) for _ in range(20))
    assert ours - empty <= 10e-6, f"{(ours - empty) * 1e6:.1f} us"


@pytest.mark.gpu
def test_gpu_needs_no_compiler_the_second_time(tmp_path: Path) -> None:
    code = """
        import sys, torch
        from tvm_na import na2d
        query = torch.rand(1, 6, 7, 2, 8, device="cuda")
        na2d(query, query, query, 3, backend="compiled")
        print("tvm" in sys.modules)
    """
    environment = {**os.environ, "TVM_NA_CACHE_DIR": str(tmp_path)}
    seen = [run_python(code, env=environment, timeout=600).strip() for _ in range(2)]
    assert seen == ["True", "False"]
