"""Gradients on GPUs without one: kernels in the emulation against autograd of the reference, and what nvcc makes of
them."""

from __future__ import annotations

import dataclasses
import functools
import math
import random

import pytest
import torch

from tests.cuda.cuda_funcs import needs_nvcc
from tests.cuda_emulator.mutate import barriers, replaced, without_barrier
from tests.helpers import random_inputs, reference64, relative_error
from tests.ops.gradients import assert_as_exact_as_pytorch, assert_right_where_one_key_counts
from tests.schedules.cuda_backward_kernels import (
    BUDGET,
    assert_right,
    errors,
    random_gradients,
    run,
)
from tests.schedules.cuda_kernels import (
    POINTS,
    TARGET,
    CudaKernel,
    damage_is_noticed,
    drawn_problem,
    fitting_point,
    formulations,
    kernel_of,
    scheduled,
)
from tests.te.expressions import assert_gradients_local
from tests.te.test_attention import PROBLEMS
from tvm_na.cuda import toolchain
from tvm_na.cuda.inspection import resources_of
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import STATISTICS, BackwardProblem, most_bias_chunks
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Plan
from tvm_na.schedules.cuda import backward as cuda_backward
from tvm_na.schedules.cuda.backward_sizes import tiles
from tvm_na.targets.target import parse_target
from tvm_na.te.backward.gather import backward
from tvm_na.te.backward.gather_tile import BackwardGatherTile

NAMED = {
    "nat": NAProblem.make((11, 9), 7, 2, 32, bias=True, return_lse=True),
    "the whole map": NAProblem.make((7, 7), 7, 4, 32, bias=True, dtype="float16"),
    "one position": NAProblem.make((1, 1), 1, 1, 1, bias=True),
    "a window of one": NAProblem.make((5, 6), 1, 2, 4, bias=True, return_lse=True, dtype="float64"),
    "uneven groups": NAProblem.make((11, 13), 3, 2, 16, dilation=(2, 3), bias=True),
    "causal and strided": NAProblem.make((9, 8), (5, 4), 2, 8, stride=(3, 2), is_causal=(True, False), bias=True),
    "heads that share keys": NAProblem.make((7, 8), 3, 6, 24, heads_kv=2, head_dim_v=5, bias=True, dtype="bfloat16"),
    "values wider than keys": NAProblem.make((6, 7), 3, 4, 5, heads_kv=2, head_dim_v=20, dtype="float64"),
    "wide heads": NAProblem.make((6, 5), 3, 2, 256, dtype="float16", return_lse=True),
    "1d": NAProblem.make(57, 7, 3, 20, dilation=5, dtype="bfloat16", bias=True),
    "3d": NAProblem.make((5, 6, 7), (3, 2, 3), 2, 5, dilation=(1, 2, 2), is_causal=(True, False, True), bias=True),
    "large window": NAProblem.make((14, 14), 13, 1, 16, bias=True, dtype="float16", return_lse=True),
}


@functools.cache
def of(problem: NAProblem, formulation: int = 0) -> CudaKernel:
    """The kernels of a default point, the same for all tests."""
    gradients = BackwardProblem(problem)
    return kernel_of(gradients, scheduled(gradients, formulation))


def apart(problem: NAProblem) -> int:
    """The formulation that adds up the bias in a kernel of its own."""
    found = tiles(BackwardProblem(problem))
    return found.index(next(tile for tile in found if not tile.rows))


@pytest.mark.parametrize("name", NAMED)
def test_the_default_is_right(name: str) -> None:
    assert_right(of(NAMED[name]), batch=3)


@pytest.mark.parametrize("name", ["uneven groups", "causal and strided", "heads that share keys", "3d", "1d"])
def test_a_kernel_for_the_bias_alone_is_right(name: str) -> None:
    problem = NAMED[name]
    assert apart(problem) > 0  # the default is another
    assert_right(of(problem, apart(problem)), batch=2)


def test_every_formulation_is_right() -> None:
    problem = NAMED["nat"]
    for formulation in range(1, len(formulations(BackwardProblem(problem)))):
        assert_right(of(problem, formulation), seed=formulation)


#: Of small problems, by their rank.
SIZES = {1: (5, 60), 2: (5, 14), 3: (3, 6)}


@pytest.mark.parametrize("seed", range(-(-POINTS // 3)))
def test_random_points_of_random_problems(seed: int) -> None:
    problem = drawn_problem(seed, SIZES)
    rng = random.Random(seed)
    formulation = rng.randrange(len(formulations(BackwardProblem(problem))))
    kernels = fitting_point(BackwardProblem(problem), formulation, seed)
    assert_right(kernels, batch=rng.choice([1, 2]), seed=seed)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_any_scale(dtype: str) -> None:
    kernels = of(NAProblem.make((7, 9), 5, 2, 16, dtype=dtype, return_lse=True, bias=True))
    for scale in (0.0, -1.5, 8.0):
        assert_right(kernels, scale=scale)


@pytest.mark.parametrize("part", [0, 1], ids=["bias beside the keys", "bias alone"])
def test_large_scores(part: int) -> None:
    problem = NAProblem.make((7, 9), (5, 3), 2, 16, return_lse=bool(part), bias=True)
    kernels = of(problem, apart(problem) if part else 0)
    assert_as_exact_as_pytorch(problem, functools.partial(run, kernels))
    assert_right_where_one_key_counts(problem, functools.partial(run, kernels))
    *tensors, rpb = random_inputs(problem, 1, 0)
    nothing = run(kernels, (*tensors, torch.full_like(rpb, -torch.inf)), random_gradients(problem, 1), 0.3)
    assert not any(t.any() for t in nothing.values())


def test_the_log_sum_exp_alone_has_a_gradient() -> None:
    problem = NAMED["nat"]
    kernels, inputs = of(problem), random_inputs(problem, 1, 0)
    d_out, d_lse = random_gradients(problem, 1, 0)
    found = run(kernels, inputs, (torch.zeros_like(d_out), d_lse), 0.5)
    assert not found["d_value"].any()
    leaves = [t.double().requires_grad_() for t in inputs if t is not None]
    lse = reference64(problem, (*leaves[:3], leaves[3]), 0.5)[1]
    for name, leaf in zip(("d_query", "d_key", "d_rpb"), (leaves[0], leaves[1], leaves[3]), strict=True):
        (wanted,) = torch.autograd.grad(lse, leaf, d_lse.double(), retain_graph=True)
        assert relative_error(found[name], wanted) <= BUDGET["float32"], name


@pytest.mark.parametrize("part", [0, 1], ids=["bias beside the keys", "bias alone"])
def test_sums_have_one_order(part: int) -> None:
    """Bits do not depend on the order in which threads come; those of the first sample not on the batch."""
    problem = NAMED["heads that share keys"]
    kernels = of(problem, apart(problem) if part else 0)
    inputs, gradients = random_inputs(problem, 2, 0), random_gradients(problem, 2, 0)
    first = run(kernels, inputs, gradients, 0.5, seed=1)
    for seed in (2, 3):
        again = run(kernels, inputs, gradients, 0.5, seed=seed)
        assert all(torch.equal(again[name], first[name]) for name in first)
    alone = run(kernels, (*(t[:1] for t in inputs[:3]), inputs[3]), (gradients[0][:1], None), 0.5)
    assert all(torch.equal(alone[name], first[name][:1]) for name in ("d_query", "d_key", "d_value"))


@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("name", ["1d-causal-dilated", "2d-gqa", "2d-half-causal", "3d-all"])
def test_what_a_query_does_not_see_does_not_act(name: str, poison: float) -> None:
    kernels = of(PROBLEMS[name])
    run_on = lambda inputs, gradients: run(kernels, inputs, gradients, 0.6)  # noqa: E731
    assert_gradients_local(PROBLEMS[name], run_on, poison, step=4)


# --- what the emulation notices


def test_damage_is_noticed() -> None:
    kernels = of(NAProblem.make((7, 8), 3, 2, 16, bias=True))

    def noticed(source: str) -> bool:
        damaged = kernels.with_source(source)
        return damage_is_noticed(lambda seed: max(errors(damaged, seed=seed).values()), BUDGET["float32"])

    assert not noticed(kernels.source)
    assert barriers(kernels.source) == 2  # between zeros and sums, and between sums and their end
    assert noticed(without_barrier(kernels.source, 1))
    assert noticed(kernels.source.replace("value += __shfl", "value -= __shfl"))
    for old, new, n in (
        ("threadIdx.x) == 0", "threadIdx.x) >= 0", 1),  # a group's sum for the bias is added twice
        ("end0_ptr[0] - start0_ptr[0]", "end0_ptr[0] - start0_ptr[0] - 1", 0),  # a row of queries less
    ):
        assert noticed(replaced(kernels.source, old, new, n)), old


# --- what the space says


def test_it_serves_every_problem_on_a_gpu_and_none_elsewhere() -> None:
    for problem in map(BackwardProblem, NAMED.values()):
        for arch in (75, 80, 90, 120):
            assert spaces_for(problem, parse_target(f"cuda-sm_{arch}"))[-1].name == "cuda-backward"
        (func, *_) = formulations(problem)
        assert cuda_backward.SPACE.apply(func, parse_target("llvm-x86-avx2")) is None
    with pytest.raises(ValueError, match="sketch: required one of .*, got none"):
        scheduled(problem, plan=Plan("none"))
    forward = spaces_for(PROBLEMS["2d"], TARGET)[0].formulations(PROBLEMS["2d"], TARGET)[0]
    assert cuda_backward.SPACE.apply(forward, TARGET) is None


def test_what_is_no_form_is_refused() -> None:
    plain, biased = BackwardProblem(PROBLEMS["2d"]), BackwardProblem.make((40, 40), 7, 2, 4, bias=True)
    for lanes in (0, 3, 64):
        with pytest.raises(ValueError, match=f"lanes: required a power of two up to 32, got {lanes}"):
            backward(plain, BackwardGatherTile(lanes))
    with pytest.raises(ValueError, match="rows: required 0 without a bias, got 2"):
        backward(plain, BackwardGatherTile(4, 2, 2))
    with pytest.raises(ValueError, match="rows: required at most .* blocks of a sample, got 1600"):
        backward(biased, BackwardGatherTile(4, 1, 1))


@pytest.mark.parametrize("seed", range(40))
def test_scratch_memory_is_bounded(seed: int) -> None:
    """And every form fits into it, and into shared memory."""
    problem = BackwardProblem(dataclasses.replace(drawn_problem(1000 + seed, SIZES), bias=True))
    forward = problem.forward
    tokens = math.prod(forward.spatial) * forward.heads
    statistics, sums = (math.prod(argument.shape) for argument in problem.scratch())
    assert statistics == STATISTICS * tokens
    entries = math.prod(forward.bias_shape[1:])
    assert sums <= max(tokens * (forward.head_dim + forward.head_dim_v), forward.heads * entries)
    found = tiles(problem)
    assert len(found) == len(set(found)) and any(not tile.rows for tile in found)
    for tile in found:
        chunks = -(-forward.spatial[-1] // tile.columns) if tile.rows else 1
        if tile.rows and forward.rank > 1:
            chunks *= math.prod(forward.spatial[:-2]) * -(-forward.spatial[-2] // tile.rows)
        assert chunks <= most_bias_chunks(problem)
        size = 8 if forward.dtype == "float64" else 4
        assert tile.rows * tile.columns * entries * size <= 48 * 1024


def test_scratch_memory_comes_last() -> None:
    problem = BackwardProblem.make((5, 6), 3, 2, 4, bias=True, return_lse=True, dtype="float16")
    func = backward(problem, BackwardGatherTile(1))
    names = [buffer.name for buffer in func.params]
    assert names[-6:] == ["d_query", "d_key", "d_value", "d_rpb", "statistics", "bias_sums"]
    assert {str(buffer.dtype) for buffer in func.params[-2:]} == {"float32"}
    assert BackwardProblem.from_json(str(func.attrs["tvm_na.problem"])) == problem


# --- what nvcc makes of them


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", ["nat", "the whole map", "3d", "wide heads"])
def test_defaults_fit_registers(name: str, arch: str) -> None:
    kernels = of(NAMED[name])
    assert kernels.fits and kernels.sizes.static_shared <= 48 * 1024
    _, log = toolchain.find_nvcc().run(kernels.source, "--cubin", f"-arch={arch}", "-Xptxas=-v")
    found = resources_of(log)
    assert found.keys() == {launch.name for launch in kernels.launches}
    for resources in found.values():
        # With 64 registers twice as many threads fit as with 65: for that the assembler spills two or four.
        few = 32 if resources.registers == 64 else 0
        assert resources.registers <= 128 and resources.spill_bytes <= few and resources.stack_bytes <= few, found
