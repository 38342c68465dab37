"""The unfused operators on GPUs without one: kernels in the emulation against the reference, and what nvcc makes of
them."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import TOLERANCE
from tests.cuda.cuda_funcs import needs_nvcc
from tests.cuda_emulator.mutate import barriers, replaced, without_barrier
from tests.helpers import random_problem, relative_error, share
from tests.schedules.cuda_kernels import (
    DTYPES,
    TARGET,
    CudaKernel,
    damage_is_noticed,
    fitting_point,
    formulations,
    kernel_of,
    scheduled,
)
from tvm_na.cuda.inspection import inspect_kernel
from tvm_na.jit import build
from tvm_na.problems.unfused import KINDS, UnfusedProblem
from tvm_na.reference import attention as reference
from tvm_na.reference.case import WrongNumbers, draw
from tvm_na.reference.cases import make_case
from tvm_na.reference.unfused_case import _SCALE, _expected
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Plan, Scheduled
from tvm_na.schedules.cuda import unfused as cuda_unfused
from tvm_na.targets.target import parse_target
from tvm_na.te.unfused.gather import gathered
from tvm_na.te.unfused.tiles import UnfusedTile
from tvm_na.tune.features import with_changes

#: Kinds that GPUs have kernels of.
OF_GPUS = tuple(kind for kind in KINDS if kind != "bias_sums")
MUTATIONS = share(40)
_NAMES = {
    "qk": ("query", "key", "scale", "rpb"),
    "dots": ("query", "key", "scale"),
    "av": ("attn", "value", "scale"),
    "av_transposed": ("attn", "query", "scale"),
    "bias_parts": ("attn",),
}


@functools.cache
def of(problem: UnfusedProblem) -> CudaKernel:
    """The kernel of the default point, the same for all tests."""
    return kernel_of(problem, scheduled(problem))


def budget(problem: UnfusedProblem) -> float:
    return TOLERANCE[problem.accum_dtype if problem.kind == "bias_parts" else problem.dtype]


def run(kernel: CudaKernel, inputs: tuple[Tensor, ...], out: Tensor, seed: int = 0) -> None:
    """Run a kernel in the emulation."""
    names = _NAMES[kernel.problem.kind]
    kernel.launch({**dict(zip(names, inputs, strict=False)), "out": out}, len(inputs[0]), seed)


def check(kernel: CudaKernel, batch: int = 2, seed: int = 0) -> None:
    """WrongNumbers if the kernel does not write what is right over NaN."""
    case = make_case(kernel.problem, batch, "cpu")
    (out,) = case.outputs()
    run(kernel, case.inputs, out, seed)
    case.check([out], budget(kernel.problem))


def drawn(seed: int) -> UnfusedProblem:
    """A small problem of any kind, rank, options and dtype."""
    rng = random.Random(seed)
    rank, kind = rng.choice([1, 2, 2, 3]), OF_GPUS[seed % len(OF_GPUS)]
    problem = random_problem(
        rng,
        rank=rank,
        sizes={1: (5, 60), 2: (4, 15), 3: (3, 6)}[rank],
        head_dim=rng.choice([1, 5, 8, 12, 24, 32, 40, 64, 136]),
        bias=kind == "qk" and rng.random() < 0.6,
        return_lse=False,
        dtype=rng.choice(DTYPES),
    )
    return UnfusedProblem(kind, dataclasses.replace(problem, head_dim_v=problem.head_dim))


@pytest.mark.parametrize("seed", range(share(5)))
def test_random_points_of_random_problems(seed: int) -> None:
    problem, rng = drawn(seed), random.Random(seed)
    formulation = rng.randrange(len(formulations(problem)))
    check(fitting_point(problem, formulation, seed), rng.choice([1, 2]), seed)


def mutated(problem: UnfusedProblem, formulation: int, seed: int) -> Scheduled:
    """A point as the tuner's mutations make it: the trace of another one, with other parameters."""
    import tvm
    from tvm import s_tir

    rng = random.Random(seed)
    point = scheduled(problem, formulation, Plan(sample=True, seed=seed + 1))
    changes = {n: (rng.choice(parameter.options), parameter.options) for n, parameter in enumerate(point.parameters)}
    func = formulations(problem)[formulation]
    schedule = s_tir.Schedule(tvm.IRModule({"main": func}))
    with_changes(point.schedule.trace, changes).apply_to_schedule(schedule, remove_postproc=False)
    return dataclasses.replace(point, schedule=schedule)


@pytest.mark.parametrize("kind", ["qk", "av", "av_transposed", "bias_parts"])
def test_mutated_traces_give_the_same_numbers(kind: str) -> None:
    """No number in a trace depends on a parameter but through a variable of the trace."""
    sizes = {"qk": ((4, 12), (3, 4), 4, 8), "av": ((3, 8, 4), (3, 2, 4), 2, 16)}.get(kind, ((8, 12), (3, 5), 4, 16))
    problem, tried = UnfusedProblem.make(kind, *sizes, bias=kind == "qk", is_causal=True, dtype="float64"), 0
    for seed in range(3 * MUTATIONS):
        kernel = kernel_of(problem, mutated(problem, 0, seed))
        if kernel.sizes.threads <= 1024 and kernel.sizes.static_shared <= 48 * 1024 and tried < MUTATIONS:
            check(kernel, 1, seed)
            tried += 1
    assert tried == MUTATIONS


# What a problem is made of but its kind, and which kinds are tried.
CORNERS: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "a window of one": (((5, 6), 1, 2, 4), {}, OF_GPUS),
    "one position": (((1, 1), 1, 1, 1), {"is_causal": True}, ("qk", "av_transposed", "bias_parts")),
    "the whole map": (((7, 8), (7, 8), 2, 32), {"is_causal": (True, False)}, ("qk", "av", "av_transposed")),
    "uneven groups": (((23, 13), 5, 2, 20), {"dilation": (3, 2), "stride": (2, 5), "heads_kv": 1}, OF_GPUS),
    "more keys than shared memory": (((2, 160), (1, 150), 1, 8), {"dtype": "float64"}, ("qk", "av")),
    "many indices": (((9, 9, 9), (7, 3, 9), 1, 1), {}, ("bias_parts",)),
    "parts of a long row": ((300, 13, 2, 1), {"dilation": 2, "is_causal": True}, ("bias_parts",)),
    "many channels": (((5, 5), 3, 1, 520), {"dtype": "float16"}, ("qk", "av", "av_transposed")),
    "keys wider than a warp": (((5, 4), 3, 1, 264), {"dtype": "float64"}, ("qk", "av", "av_transposed")),
}


@pytest.mark.parametrize("name", CORNERS)
def test_corners_of_the_space(name: str) -> None:
    sizes, options, kinds = CORNERS[name]
    for kind in kinds:
        problem = UnfusedProblem.make(kind, *sizes, bias=kind == "qk", **options)
        check(of(problem), batch=1 + (name == "uneven groups"))


@pytest.mark.parametrize("kind", OF_GPUS)
def test_what_a_query_does_not_see_does_not_reach_it(kind: str) -> None:
    """A NaN reaches those outputs that the reference says, and a weight without a key none."""
    options: dict[str, Any] = {"is_causal": (True, False), "dilation": (1, 2), "heads_kv": 1, "dtype": "float64"}
    problem = UnfusedProblem.make(kind, (6, 9), (4, 3), 2, 8, **options)
    inputs = (argument for argument in problem.arguments() if argument.role == "input")
    tensors = draw(inputs, 1, "cpu", torch.Generator().manual_seed(0))
    tensors[0][0, 3, 4, 0, 1] = math.nan
    if kind not in ("qk", "dots"):
        _, _, exists = reference.windows(problem.forward, torch.device("cpu"))
        assert not exists.all()
        tensors[0].masked_fill_(~exists.reshape(1, 6, 9, 1, 12), math.nan)
    if kind != "bias_parts":
        tensors[1][0, 2, 5, 0, 3] = math.nan
    expected = _expected(problem, tensors)
    out = torch.full(expected.shape, 7.0, dtype=torch.float64)
    run(of(problem), (*tensors, torch.tensor([_SCALE], dtype=torch.float64)), out)
    assert 0 < expected.isnan().sum() < expected.numel() / 3
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.isinf(), expected.isinf())
    there = expected.isfinite()
    assert relative_error(out[there], expected[there]) <= TOLERANCE["float64"]


def test_parts_add_up_to_the_sums() -> None:
    parts = UnfusedProblem.make("bias_parts", (23, 20), (5, 3), 2, 1, dilation=(1, 2), dtype="float64")
    assert parts.part == (6, 20) and parts.parts == 4
    whole = make_case(dataclasses.replace(parts, kind="bias_sums"), 2, "cpu").expected[0]
    found = make_case(parts, 2, "cpu").expected[0]
    assert found.shape == (2, 4, 2, 9, 5)
    assert torch.allclose(found.sum((0, 1)), whole, rtol=1e-12, atol=1e-12)
    assert UnfusedProblem.make("bias_parts", 300, 3, 1, 1).part == (1, 128)
    assert UnfusedProblem.make("bias_parts", 300, 3, 1, 1).parts == 3


# --- what the emulation notices


def noticed(kernel: CudaKernel, source: str) -> bool:
    """Whether damage is noticed."""
    damaged = kernel.with_source(source)

    def error(seed: int) -> float:
        try:
            check(damaged, 1, seed)
        except WrongNumbers:
            return math.inf
        return 0.0

    return damage_is_noticed(error, 0.0)


@pytest.mark.parametrize(("kind", "channels"), [("qk", 32), ("av", 32)])
def test_missing_barriers_are_noticed(kind: str, channels: int) -> None:
    problem = UnfusedProblem.make(kind, (14, 14), 7, 2, channels)
    kernel = kernel_of(problem, scheduled(problem, plan=Plan(like={"keys at once": 7})))
    assert not noticed(kernel, kernel.source)
    assert barriers(kernel.source) == 2
    for n in range(2):
        assert noticed(kernel, without_barrier(kernel.source, n)), n


@pytest.mark.parametrize("kind", OF_GPUS)
def test_a_shifted_window_is_noticed(kind: str) -> None:
    problem = UnfusedProblem.make(kind, (14, 14), 7, 1, 8)
    kernel = of(problem)
    assert noticed(kernel, replaced(kernel.source, "- 3), 7), 0)", "- 2), 7), 0)"))


# --- what nvcc makes of them

NAMED = {
    "nat": (((56, 56), 7, 2, 32), {"dtype": "float16"}),
    "wide heads": (((9, 8), 5, 2, 256), {"dtype": "bfloat16"}),
    "3d": (((8, 8, 8), (3, 5, 3), 2, 24), {}),
    "1d": ((57, 7, 3, 20), {"dilation": 5, "is_causal": True, "dtype": "float64"}),
}


@needs_nvcc
@pytest.mark.parametrize(
    ("name", "kinds", "arch"),
    [
        ("nat", ("qk", "av", "av_transposed", "bias_parts"), "sm_90"),
        ("nat", ("qk", "av_transposed"), "sm_80"),
        ("wide heads", ("qk",), "sm_80"),
        ("3d", ("av_transposed", "bias_parts"), "sm_80"),
        ("1d", ("qk",), "sm_80"),
    ],
)
def test_defaults_fit_registers(name: str, kinds: tuple[str, ...], arch: str) -> None:
    sizes, options = NAMED[name]
    for kind in kinds:
        problem = UnfusedProblem.make(kind, *sizes, bias=kind == "qk", **options)
        found = inspect_kernel(of(problem).source, arch)
        # Where loops are three deep, the assembler takes 32 registers, and keeps two numbers of outer ones in memory.
        assert found.registers <= 128 and found.spill_bytes <= (16 if name == "3d" else 0), problem
        assert found.shared_bytes <= 48 * 1024


def test_scores_and_weights_are_read_and_written_in_one_piece() -> None:
    """Neighboring threads have neighboring elements, whatever the window."""
    for kind, pointer in (("qk", "out_ptr["), ("av", "attn_ptr[")):
        problem = UnfusedProblem.make(kind, (56, 56), 7, 2, 32, dtype="float16")
        kernel = of(problem)
        (line,) = (line for line in kernel.source.splitlines() if pointer in line)
        assert kernel.launches[0].block == (4, 28, 1)
        assert "(((int)threadIdx.y) * 4)) + ((int)threadIdx.x))]" in line


# --- what the space serves


def test_the_space_serves_all_but_whole_sums_for_a_bias() -> None:
    for kind in KINDS:
        for dtype in DTYPES:
            problem = UnfusedProblem.make(kind, (5, 5), 3, 1, 4, dtype=dtype)
            names = [space.name for space in spaces_for(problem, TARGET)]
            assert names == ([] if kind == "bias_sums" else ["cuda-unfused"])
    whole = UnfusedProblem.make("bias_sums", (5, 5), 3, 1, 4)
    assert "bias_parts" in whole.unsupported(TARGET.kind)
    with pytest.raises(NotImplementedError, match="no kernel for bias_sums .* bias_parts"):
        build.scheduled_module(whole, TARGET)
    with pytest.raises(ValueError, match="problem: required another kind than bias_sums"):
        gathered(whole, UnfusedTile())


def test_the_space_refuses_what_is_not_its_own() -> None:
    problem = UnfusedProblem.make("qk", (5, 5), 3, 1, 6)
    func = formulations(problem)[0]
    assert cuda_unfused.SPACE.apply(func, parse_target("llvm-x86-avx2")) is None
    assert cuda_unfused.SPACE.apply(func.without_attr("tvm_na.formulation"), TARGET) is None
    with pytest.raises(ValueError, match="sketch: required one of through the cache"):
        cuda_unfused.SPACE.apply(func, TARGET, Plan("none"))
    for tile in (UnfusedTile(parts=4), UnfusedTile(width=0)):
        with pytest.raises(ValueError, match="(parts|width): required a divisor of 6 channels, got"):
            gathered(problem, tile)


@pytest.mark.parametrize("kind", OF_GPUS)
def test_points_are_drawn_and_told(kind: str) -> None:
    problem = UnfusedProblem.make(kind, (16, 16), 7, 4, 32, dtype="float16")
    for formulation in range(len(formulations(problem))):
        points = {tuple(scheduled(problem, formulation, Plan(sample=True, seed=n + 1)).parameters) for n in range(5)}
        assert len(points) > 1
        assert scheduled(problem, formulation).points >= 12
