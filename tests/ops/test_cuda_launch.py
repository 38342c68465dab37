"""Launches on GPUs: with a pretended GPU what can be known without one, with a real GPU all the rest."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from tests.conftest import TOLERANCE
from tests.helpers import Inputs, random_inputs, reference64, relative_error
from tvm_na import na1d, na2d, na3d
from tvm_na.cuda import toolchain
from tvm_na.jit import build, progress, runtime
from tvm_na.ops import attend, backend
from tvm_na.ops import launch as launchers
from tvm_na.ops import launch_cuda as launch
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference
from tvm_na.targets.target import parse_target

ROOT = Path(__file__).parents[2]
PROBLEM = NAProblem.make((6, 7), 3, 2, 8, bias=True, return_lse=True)
WINDOW: tuple[Any, ...] = ([3, 3], [1, 1], [1, 1], [False, False])


# --- a pretended GPU: tensors are on the CPU, the kernel is the reference


class PretendedGpu:
    """Two devices of one kind, and a kernel that writes down how it was called."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.current = 0
        self.calls: list[SimpleNamespace] = []
        self.built: list[tuple[NAProblem, str]] = []
        self.cached = True
        patch.setattr(torch.cuda, "current_device", lambda: self.current)
        patch.setattr(torch.cuda, "device", self.device)
        patch.setattr(build, "target_for", lambda kind, index=None: parse_target("cuda-sm_90"))
        patch.setattr(build, "is_cached", lambda problem, target: self.cached)
        patch.setattr(build, "kernel_for", self.kernel_for)
        patch.setattr(launch, "scale_tensor", lambda index, scale, dtype: torch.tensor([scale], dtype=dtype))

    @contextlib.contextmanager
    def device(self, index: int) -> Iterator[None]:
        before, self.current = self.current, index
        yield
        self.current = before

    def kernel_for(self, problem: NAProblem, target: Any) -> SimpleNamespace:
        self.built.append((problem, target.name))

        def kernel(query: Tensor, key: Tensor, value: Tensor, scale: Tensor, *rest: Tensor) -> None:
            rpb, outputs = (rest[0], rest[1:]) if problem.bias else (None, rest)
            inputs = [query, key, value, *outputs, *([] if rpb is None else [rpb])]
            assert all(t.is_contiguous() and not t.is_neg() for t in inputs)
            self.calls.append(
                SimpleNamespace(
                    device=self.current, batch=query.shape[0], dtypes=[t.dtype for t in (query, scale, *outputs)]
                )
            )
            self.calls[-1].aligned = all(t.data_ptr() % launch.ALIGNMENT == 0 for t in (query, key, value))
            out, lse = reference.neighborhood_attention(problem, query, key, value, float(scale), rpb)
            outputs[0].copy_(out)
            if problem.return_lse:
                outputs[1].copy_(lse)

        return SimpleNamespace(function=kernel)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PretendedGpu:
    return PretendedGpu(monkeypatch)


def misaligned(tensor: Tensor, by: int = 1) -> Tensor:
    """The same values, ``by`` elements behind an aligned address."""
    storage = torch.empty(tensor.numel() + by, dtype=tensor.dtype, device=tensor.device)
    view = storage[by:].view(tensor.shape)
    return view.copy_(tensor)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_every_dtype_has_a_kernel_of_its_own(gpu: PretendedGpu, dtype: str) -> None:
    problem = dataclasses.replace(PROBLEM, dtype=dtype)
    launcher = launchers.launcher_of(problem, torch.device("cuda", 0))
    inputs = random_inputs(problem, 2, 0)
    out, lse = launcher(inputs, 0.5)
    accum = getattr(torch, problem.accum_dtype)
    assert gpu.built == [(problem, "cuda-sm_90")]
    assert gpu.calls[0].dtypes == [inputs[0].dtype, accum, inputs[0].dtype, accum]
    wanted, wanted_lse = reference64(problem, inputs, 0.5)
    assert relative_error(out, wanted) <= TOLERANCE[dtype]
    assert lse is not None and relative_error(lse, wanted_lse) <= TOLERANCE["float32"]


def test_the_kernel_runs_on_the_inputs_device_and_the_current_one_stays(gpu: PretendedGpu) -> None:
    inputs = random_inputs(PROBLEM, 1, 0)
    for index in (0, 1):
        launcher = launchers.launcher_of(PROBLEM, torch.device("cuda", index))
        for gpu.current in (0, 1):
            before = gpu.current
            launcher(inputs, 0.5)
            assert gpu.calls[-1].device == index
            assert gpu.current == before


def test_views_and_misaligned_inputs_are_copied(gpu: PretendedGpu) -> None:
    launcher = launchers.launcher_of(PROBLEM, torch.device("cuda", 0))
    query, key, value, rpb = random_inputs(PROBLEM, 2, 3)
    wanted = reference64(PROBLEM, (query, key, value, rpb), 0.5)[0]
    for change in (misaligned, torch.Tensor.__neg__, lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)):
        changed = [change(t) if t is not None else t for t in (query, key, value, rpb)]
        if change is torch.Tensor.__neg__:
            changed = [torch._neg_view(t) if t is not None else t for t in changed]
        out = launcher(changed, 0.5)[0]
        assert gpu.calls[-1].aligned
        assert relative_error(out, wanted) <= TOLERANCE["float32"]
    assert parse_target("cuda-sm_90").vector_bytes == launch.ALIGNMENT


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_a_batch_too_large_for_32_bits_is_split(gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    elements = 6 * 7 * 2 * 8
    monkeypatch.setattr("tvm_na.problems.base.MAX_ELEMENTS", 2 * 2 * elements)
    launcher = launchers.launcher_of(PROBLEM, torch.device("cuda", 0))
    inputs = random_inputs(PROBLEM, batch, 1)
    out, lse = launcher(inputs, 0.5)
    assert [call.batch for call in gpu.calls] == [2] * (batch // 2) + [1] * (batch % 2)
    wanted, wanted_lse = reference64(PROBLEM, inputs, 0.5)
    assert relative_error(out, wanted) <= TOLERANCE["float32"]
    assert lse is not None and relative_error(lse, wanted_lse) <= TOLERANCE["float32"]
    monkeypatch.setattr("tvm_na.problems.base.MAX_ELEMENTS", elements)
    with pytest.raises(ValueError, match=r"query: required fewer than 2\^31 elements per sample"):
        launchers.launcher_of(PROBLEM, torch.device("cuda", 0))


def test_large_dilations_do_not_split_a_batch(gpu: PretendedGpu) -> None:
    """On CPUs they may, since keys are packed with padding."""
    problem = NAProblem.make((256, 256), 7, 4, 32, dilation=32)
    samples = launchers.launch_spec(problem, torch.device("cuda", 0)).samples
    assert samples == (2**31 - 1) // (2 * 256 * 256 * 4 * 32) > problem.largest_batch("llvm")


def test_an_empty_batch_is_an_answer(gpu: PretendedGpu) -> None:
    query, key, value, rpb = random_inputs(PROBLEM, 1, 0)
    out, lse = launchers.launcher_of(PROBLEM, torch.device("cuda", 0))((query[:0], key[:0], value[:0], rpb), 0.5)
    assert out.shape == (0, 6, 7, 2, 8) and lse is not None and lse.shape == (0, 6, 7, 2)
    assert not gpu.calls


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


def test_the_space_decides_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(build, "target_for", lambda kind, index: parse_target("cuda-sm_90"))
    problems = [NAProblem.make(spatial, 3, 1, 4) for spatial in ((9,), (9, 9), (9, 9, 9))]
    monkeypatch.setattr(build, "is_supported", lambda problem, target: problem.rank != 3)
    reasons = [backend.why_not_compiled(problem, device) for problem in problems]
    assert reasons[:2] == [None, None]
    assert reasons[2] is not None and "space" in reasons[2]
    assert "forward-mode" in str(backend.why_not_compiled(problems[0], device, True))
    assert backend.why_not_compiled(problems[0], torch.device("cpu")) is None
    assert "for the device xpu" in str(backend.why_not_compiled(problems[1], torch.device("xpu")))

    def too_old(kind: str, index: int) -> Any:
        raise ValueError("capability: required a GPU of compute capability 7.5 or newer, got 7.0")

    monkeypatch.setattr(build, "target_for", too_old)
    assert "capability" in str(backend.why_not_compiled(problems[1], device))


def test_the_choice_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a GPU, but on the CPU: a trace must not look into what builds kernels."""
    asked: list[NAProblem] = []
    monkeypatch.setattr(backend, "why_no_kernel", lambda problem, device: asked.append(problem))
    why, gpu = backend.why_not_compiled, torch.device("cuda", 0)
    monkeypatch.setattr(attend, "why_not_compiled", lambda problem, _, mode: why(problem, gpu, mode))
    query, key, value, _ = random_inputs(NAProblem.make((6, 7), 3, 2, 8), 2, 0)
    torch._dynamo.reset()
    function = torch.compile(lambda *t: na2d(*t, 3, backend="compiled"), fullgraph=True, backend="eager")
    assert relative_error(function(query, key, value), na2d(query, key, value, 3)) <= TOLERANCE["float32"]
    assert asked


def test_the_operator_is_registered_for_gpus() -> None:
    for name in ("na_forward", "na_forward_lse", "na_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"tvm_na::{name}", "CUDA")


def test_what_cuda_kernels_run_on_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "runtime_library", lambda name="": Path("/nowhere") / name)
    runtime._load_cuda_runtime.cache_clear()
    with pytest.raises(RuntimeError, match="kernels for GPUs: required NVIDIA's driver .*libcudart.so.13.*nowhere"):
        runtime._load_cuda_runtime()


# --- a pretended driver: everything above it is real


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libcuda.so.1 and libcudart.so.13 that only write down how they are called."""
    if torch.version.cuda is not None:
        pytest.skip("this PyTorch brings CUDA's own runtime")
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "versions").write_text("libcudart.so.13 { global: *; };", encoding="utf-8")
    for name, options in (
        ("libcuda.so.1", ["-DDRIVER"]),
        ("libcudart.so.13", [f"-Wl,--version-script={folder / 'versions'}"]),
    ):
        source, library = ROOT / "tests" / "fakes" / "cuda.c", folder / name
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", *options, "-o", str(library), str(source)]
        subprocess.run(command, check=True, capture_output=True, text=True)
    return folder


CALLS = """
    import ctypes, os, sys
    from pathlib import Path
    import tvm_ffi
    from tests.ops.fake_tensor import cuda_tensor
    from tvm_na.jit import runtime

    log = Path(os.environ["FAKE_CUDA_LOG"])
    kernel = runtime.load(Path(sys.argv[1]), "main", "cuda")
    assert "tvm" not in sys.modules
    for name, device, stream, batch in (("first", 0, 0x10, 5), ("again", 0, 0x20, 7), ("other", 1, 0x30, 5)):
        log.write_text("")
        x, scale, out = (cuda_tensor(shape, device) for shape in ((batch, 4, 96), (1,), (batch, 4)))
        with tvm_ffi.use_raw_stream(tvm_ffi.device(f"cuda:{device}"), stream):
            kernel(x, scale, out)
        print(name, log.read_text().splitlines())
"""


def test_a_call_is_one_launch_on_the_current_stream(fake_driver: Path, tmp_path: Path) -> None:
    try:
        toolchain.find_compiler()
    except RuntimeError as error:
        pytest.skip(str(error))
    from tests.cuda.cuda_funcs import SHARED_BYTES, row_sums
    from tvm_na.cuda.library import compile_library

    file = tmp_path / "kernel.so"
    compile_library(row_sums(), parse_target("cuda-sm_90")).export(file)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{fake_driver}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "FAKE_CUDA_LOG": str(tmp_path / "log"),
    }
    command = [sys.executable, "-c", textwrap.dedent(CALLS), str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    calls = {line.partition(" ")[0]: ast.literal_eval(line.partition(" ")[2]) for line in done.stdout.splitlines()}

    def launched(batch: int, stream: int) -> str:
        return f"cuLaunchKernelEx grid {batch} 1 1 block 32 4 1 shared 0 stream {stream:#x}"

    def without_arguments(lines: list[str]) -> list[str]:
        return [line.partition(" first ")[0] for line in lines]

    loading = ["cuModuleLoadData ba55ed50", "cuModuleGetFunction main_kernel"]
    assert SHARED_BYTES < 48 * 1024
    assert without_arguments(calls["first"]) == ["cudaSetDevice 0", *loading, launched(5, 0x10)]
    assert without_arguments(calls["again"]) == ["cudaSetDevice 0", launched(7, 0x20)]
    assert without_arguments(calls["other"]) == ["cudaSetDevice 1", *loading, launched(5, 0x30)]


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
    for by in (1, 2, 4):  # 4, 8 and 16 bytes
        assert relative_error(attention([misaligned(t, by) for t in tensors]).cpu(), wanted) <= TOLERANCE["float32"]
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in tensors]
    assert relative_error(attention(strided).cpu(), wanted) <= TOLERANCE["float32"]
    negated = [torch._neg_view(-t) for t in tensors]
    assert relative_error(attention(negated).cpu(), wanted) <= TOLERANCE["float32"]


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
    command = [sys.executable, "-c", textwrap.dedent(code)]
    seen = [
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert seen == ["True", "False"]
