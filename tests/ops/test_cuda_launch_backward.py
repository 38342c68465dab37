"""Gradients on GPUs: with a pretended GPU what can be known without one, with a real GPU all the rest."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cuda.cuda_funcs import needs_compiler
from tests.cuda.fake_driver import driver_calls
from tests.helpers import random_inputs, relative_error
from tests.ops.gradients import assert_close, attend, random_gradients, wanted
from tests.ops.pretended_gpu import PretendedGpu
from tests.ops.test_cuda_launch import CUDA, PROBLEM, WINDOW
from tests.schedules.cuda_backward_kernels import BUDGET
from tvm_na.jit import build
from tvm_na.measure import cuda as measure_cuda
from tvm_na.measure import rpc as measure_remote
from tvm_na.measure.local import Conditions
from tvm_na.ops import backend, register
from tvm_na.ops import fast_path as autograd
from tvm_na.ops import launch as launchers
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem, most_bias_chunks
from tvm_na.problems.base import MAX_ELEMENTS
from tvm_na.reference.case import WrongNumbers
from tvm_na.reference.cases import budget_of, make_case
from tvm_na.targets.target import parse_target


def test_scratch_memory_counts_where_it_is_the_largest() -> None:
    narrow = BackwardProblem.make((8, 8, 8), 8, 1, 1, bias=True)
    assert most_bias_chunks(narrow) == 1
    sums = math.prod(narrow.scratch()[1].shape)
    assert sums == 15**3 > 8**3
    assert narrow.largest_batch("cuda") == MAX_ELEMENTS // (2 * sums)
    plain = BackwardProblem.make((8, 8), 3, 2, 16)
    assert plain.largest_batch("cuda") == plain.forward.largest_batch("cuda")


def test_the_pass_past_the_dispatcher(gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call on a GPU takes, with launchers of a pretended one."""
    problem = dataclasses.replace(PROBLEM, return_lse=True)
    monkeypatch.setattr(autograd, "launcher_for", lambda p, _: launchers.launcher_of(p, CUDA))
    call = autograd.Differentiable.of(problem, CUDA)
    leaves = [t.requires_grad_() for t in random_inputs(problem, 2, 0)]
    d_out, d_lse = random_gradients(problem, 2, 0)
    out, lse = call(tuple(leaves), 0.6, True)
    found = torch.autograd.grad((out, lse), leaves, (d_out, d_lse), retain_graph=True)
    assert_close(found, wanted(problem, leaves, d_out, d_lse), "float32")
    assert_close(torch.autograd.grad(out, leaves, d_out), wanted(problem, leaves, d_out, None), "float32")
    built = [p.forward.return_lse for p, _ in gpu.built if isinstance(p, BackwardProblem)]
    assert built == [True, False]


def test_a_gradient_is_no_reason_for_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "target_for", lambda kind, index=None: parse_target("cuda-sm_90"))
    assert backend.why_not_compiled(PROBLEM, CUDA) is None
    for dtype in BUDGET:
        problem = BackwardProblem(dataclasses.replace(PROBLEM, dtype=dtype))
        assert build.is_supported(problem, parse_target("cuda-sm_75"))
    assert register.needs_gradient(torch.rand(2, requires_grad=True))


# --- measuring


def test_a_candidate_is_measured_with_scratch_memory(gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = BackwardProblem(PROBLEM)
    monkeypatch.setattr(measure_cuda.Sets, "of", classmethod(lambda cls, p, case: cls(case, *sets(case))))
    monkeypatch.setattr(
        "tvm_na.jit.runtime.load", lambda *_: gpu.kernel_for(problem, parse_target("cuda-sm_90")).function
    )

    def sets(case: Any) -> tuple[list[Any], list[Tensor]]:
        outputs = case.outputs()
        return [(*case.inputs, *outputs)], outputs

    measure_cuda._sets.clear()
    monkeypatch.setattr(measure_cuda, "make_case", lambda p, batch, device: make_case(p, batch, "cpu"))
    scale = float(make_case(problem, 1, "cpu").inputs[3])
    assert scale == pytest.approx(8**-0.5)
    measure_cuda.checked_call(Path("none.so"), problem, 4, "cuda")()
    assert [call.batch for call in gpu.calls] == [4, 4]
    monkeypatch.setattr(gpu, "run", lambda *_: None)
    with pytest.raises(WrongNumbers, match="d_query"):
        measure_cuda.checked_call(Path("none.so"), problem, 4, "cuda")
    assert budget_of(problem) == BUDGET["float32"]
    measure_cuda._sets.clear()


def test_scratch_memory_over_there_is_that_of_the_batch() -> None:
    import tvm

    device, problem = tvm.cpu(0), BackwardProblem(PROBLEM)
    found = measure_remote._scratch(device, problem, 5, Conditions(1, device="cuda:0"))
    assert [tuple(t.shape) for t in found] == [argument.shape_for(5) for argument in problem.scratch()]
    assert {str(t.dtype) for t in found} == {"float32"}
    assert measure_remote._scratch(device, problem, 5, Conditions(1)) == []
    assert measure_remote._scratch(device, PROBLEM, 5, Conditions(1, device="cuda:0")) == []


# --- a pretended driver: everything above it is real

CALLS = """
    from tvm_na.problems.backward import BackwardProblem
    from tvm_na.problems.attention import NAProblem

    problem = BackwardProblem(NAProblem.make((6, 7), 3, 2, 8, bias=True, return_lse=True))
    arguments = [cuda_tensor(a.shape_for(5), 0) for a in (*problem.arguments(), *problem.scratch())]
    with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda:0"), 0x10):
        kernel(*arguments)
    print(log.read_text().splitlines())
"""


@needs_compiler
def test_a_call_is_three_launches_in_order_and_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path / "cache"))
    file = build.compile_for(BackwardProblem(PROBLEM), parse_target("cuda-sm_90"), records="off")
    (calls,) = driver_calls(file, CALLS)
    functions = [call.removeprefix("cuModuleGetFunction ") for call in calls if call.startswith("cuModuleGetFunction")]
    name = "na2d_backward_of_6x7_heads_2_dim_8_k_3_float32_rpb_lse_backward_gather_kernel"
    assert functions == [name, f"{name}_1", f"{name}_2"]
    launches = [call for call in calls if call.startswith("cuLaunchKernelEx")]
    assert len(launches) == 3 and all("stream 0x10" in call for call in launches)
    assert not [call for call in calls if "Alloc" in call or "Synchronize" in call], calls


# --- a real GPU


def on_gpu(problem: NAProblem, batch: int = 2, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Leaves, d_out and d_lse."""
    leaves = [t.cuda().requires_grad_() for t in random_inputs(problem, batch, seed) if t is not None]
    return leaves, *(None if t is None else t.cuda() for t in random_gradients(problem, batch, seed))  # type: ignore


def gradients(problem: NAProblem, leaves: Any, d_out: Any, d_lse: Any) -> tuple[Tensor, ...]:
    out, lse = attend(problem, *leaves)
    results, given = ((out, lse), (d_out, d_lse)) if problem.return_lse else ((out,), (d_out,))
    return torch.autograd.grad(results, leaves, given)


def assert_gpu_right(problem: NAProblem, leaves: Any, found: Any, d_out: Any, d_lse: Any) -> None:
    cpu = [t.detach().cpu() for t in leaves]
    right = wanted(problem, cpu, d_out.cpu(), None if d_lse is None else d_lse.cpu())
    for a, b in zip(found, right, strict=True):
        assert a.dtype == leaves[0].dtype and relative_error(a.cpu(), b) <= BUDGET[problem.dtype]


GPU_PROBLEMS = {
    "2d": PROBLEM,
    "nat": NAProblem.make((14, 14), 7, 8, 32, bias=True),
    "1d": NAProblem.make(57, 7, 3, 20, dilation=5, is_causal=True, bias=True),
    "3d": NAProblem.make((5, 6, 7), (3, 2, 3), 4, 12, heads_kv=2, head_dim_v=20, stride=(1, 2, 1), return_lse=True),
    "the bias alone": NAProblem.make((40, 40), 21, 1, 16, bias=True),
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", BUDGET)
@pytest.mark.parametrize("name", GPU_PROBLEMS)
def test_gpu_gradients_are_right(name: str, dtype: str) -> None:
    problem = dataclasses.replace(GPU_PROBLEMS[name], dtype=dtype)
    leaves, d_out, d_lse = on_gpu(problem)
    assert_gpu_right(problem, leaves, gradients(problem, leaves, d_out, d_lse), d_out, d_lse)


@pytest.mark.gpu
def test_gpu_gradients_have_the_same_bits_each_time() -> None:
    for problem in GPU_PROBLEMS.values():
        given = on_gpu(problem)
        first, again = gradients(problem, *given), gradients(problem, *given)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.gpu
def test_gpu_gradients_run_on_the_current_stream() -> None:
    leaves, d_out, d_lse = on_gpu(PROBLEM)
    gradients(PROBLEM, leaves, d_out, d_lse)  # built, loaded
    late = torch.zeros_like(d_out)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(d_out)
        found = gradients(PROBLEM, leaves, late, d_lse)
        assert not stream.query()  # nothing has waited
    stream.synchronize()
    assert_gpu_right(PROBLEM, leaves, found, d_out, d_lse)


@pytest.mark.gpu
def test_gpu_graphs_of_a_training_step() -> None:
    leaves, d_out, _ = on_gpu(PROBLEM)

    def step() -> None:
        for t in leaves:
            t.grad = None
        (attend(PROBLEM, *leaves, lse=False) * d_out).sum().backward()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for seed in (4, 5):
        fresh, fresh_d_out, _ = on_gpu(PROBLEM, seed=seed)
        with torch.no_grad():
            for old, new in zip((*leaves, d_out), (*fresh, fresh_d_out), strict=True):
                old.copy_(new)
        for t in leaves:
            assert t.grad is not None
            t.grad.fill_(math.nan)
        graph.replay()
        assert_gpu_right(PROBLEM, leaves, [t.grad for t in leaves], d_out, None)


@pytest.mark.gpu
def test_gpu_gradients_under_autocast() -> None:
    problem = dataclasses.replace(GPU_PROBLEMS["nat"], return_lse=False)
    leaves, d_out, _ = on_gpu(problem)
    with torch.autocast("cuda", torch.float16):
        out = attend(problem, *leaves, lse=False)
    assert out.dtype == torch.float16
    found = torch.autograd.grad(out, leaves, d_out.half())
    right = wanted(problem, [t.detach().half().cpu() for t in leaves], d_out.half().cpu(), None)
    for a, b in zip(found, right, strict=True):
        assert a.dtype == torch.float32 and relative_error(a.cpu(), b) <= BUDGET["float16"]


@pytest.mark.gpu
def test_gpu_gradients_of_gradients_and_compilers() -> None:
    problem = dataclasses.replace(PROBLEM, dtype="float64", return_lse=False)
    leaves, d_out, _ = on_gpu(problem)
    found = torch.autograd.grad(attend(problem, *leaves, lse=False), leaves, d_out, create_graph=True)
    second = torch.autograd.grad(sum((t**2).sum() for t in found), leaves)  # type: ignore[arg-type]
    assert all(t.isfinite().all() for t in second)
    function = torch.compile(lambda *t: attend(problem, *t, lse=False), fullgraph=True, backend="aot_eager")
    compiled = torch.autograd.grad(function(*leaves), leaves, d_out)
    assert all(relative_error(a, b) <= 1e-12 for a, b in zip(compiled, found, strict=True))
    torch.library.opcheck(torch.ops.tvm_na.na_forward_lse, (*leaves, *WINDOW, 0.5))
