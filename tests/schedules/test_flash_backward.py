"""Gradients on tensor cores without a GPU: kernels in the emulation, and what nvcc makes of them."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import pytest
import torch

from tests.conftest import TOLERANCE
from tests.cuda.cuda_funcs import needs_nvcc
from tests.cuda_emulator.mutate import barriers, replaced, without_barrier
from tests.helpers import PROBLEMS, random_inputs, relative_error, share
from tests.ops.gradients import large_inputs, random_gradients, wanted_by_name
from tests.schedules.cuda_backward_kernels import errors, run
from tests.schedules.cuda_kernels import FLASH_BACKWARD, TARGET, CudaKernel, damage_is_noticed, kernel_of
from tests.schedules.flash_backward_kernels import EVERY, FEW, NAMED, kernel_for, kernel_with, problem_of
from tests.schedules.test_flash import LARGE, drawn_point, drawn_problem
from tvm_na.cuda import toolchain
from tvm_na.cuda.inspection import resources_of
from tvm_na.cuda.library import generated
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.schedules import spaces_for
from tvm_na.schedules.base import Plan
from tvm_na.schedules.cuda import flash_backward
from tvm_na.schedules.cuda.flash_backward_sizes import COLUMNS, Half, default_shape, has_scratch
from tvm_na.schedules.cuda.flash_sizes import work
from tvm_na.targets.target import parse_target
from tvm_na.te.attention.flash_tile import FlashShape
from tvm_na.te.backward.flash_tile import BackwardFlashShape, BackwardFlashTile

#: Whether everything is tried, for which a machine takes some minutes.
ALL = PROBLEMS >= 100
GATHER = "cuda-backward"


def assert_right(kernel: CudaKernel, **options: Any) -> None:
    found = errors(kernel, **options)
    budget = TOLERANCE[kernel.problem.dtype]
    assert all(error <= budget for error in found.values()), (str(kernel.problem), found)


@pytest.mark.parametrize(("name", "dtype"), (EVERY if ALL else FEW).items())
def test_named_problems_are_right(name: str, dtype: str) -> None:
    kernel = kernel_for(name, dtype)
    assert kernel.fits
    for late_copies in (True, False):
        assert_right(kernel, batch=1 + (name == "bias"), late_copies=late_copies)


# --- random points of random problems


def drawn_gradients(problem: NAProblem, rng: random.Random) -> tuple[BackwardFlashTile, BackwardFlashShape] | None:
    """A sub-tile and shapes that a GPU can have; None if there seem to be none."""
    for _ in range(100):
        of_queries, queries = drawn_point(problem, rng)
        tile = BackwardFlashTile(of_queries.rows, of_queries.columns)
        keys = drawn_point(problem, rng)[1]
        if {queries.keys, keys.keys} <= set(COLUMNS) and has_scratch(problem, tile, keys):
            halves = (Half(problem, of_keys=False), queries), (Half(problem, of_keys=True), keys)
            if all(h.shared_bytes(s) <= TARGET.max_shared_bytes and h.registers(s) <= 255 for h, s in halves):
                return tile, BackwardFlashShape(queries, keys)
    return None


@pytest.mark.parametrize("seed", range(share(12) if not ALL else share(3)))
def test_random_points_of_random_problems(seed: int) -> None:
    rng = random.Random(seed)
    point = None
    while point is None:
        problem = drawn_problem(rng)
        point = drawn_gradients(problem, rng)
    assert_right(kernel_with(problem, *point), seed=seed, late_copies=bool(seed & 1))


@pytest.mark.skipif(not ALL, reason="TVM_NA_TEST_PROBLEMS is less than 100")
def test_points_that_metaschedule_draws_are_right() -> None:
    problem = BackwardProblem(problem_of("2D", "float16"))
    func = flash_backward.SPACE.formulations(problem, TARGET)[0]
    points = (flash_backward.SPACE.apply(func, TARGET, Plan(sample=True, seed=seed)) for seed in range(1, 40))
    kernels = (kernel_of(problem, point) for point in points if point is not None)
    assert_right(next(kernel for kernel in kernels if kernel.fits and kernel.sizes.threads <= 256))


# --- scales, sizes, order


@pytest.mark.parametrize("name", ["1D", "bias"])
def test_any_scale(name: str) -> None:
    """A negative factor turns the order of products around, and zero makes all scores equal."""
    for scale in (0.0, -1.5, 8.0):
        assert_right(kernel_for(name, "float16"), scale=scale)


@pytest.mark.parametrize(("size", "other"), [(2.0**-16, 2.0**13), (2.0**12, 2.0**-6)])
def test_any_size_of_gradients(size: float, other: float) -> None:
    """Gradients of scores are smaller, or larger, than float16 holds; those of queries and keys are not, since keys, or
    queries, are large or small."""
    kernel = kernel_for("1D", "float16")
    problem = kernel.problem.forward
    query, key, value, _ = random_inputs(problem, 1, 0)
    d_out, d_lse = random_gradients(problem, 1, 0)
    gradients = (d_out * size, d_lse * size)
    for name, factor in (("d_query", 1 / other), ("d_key", other)):
        inputs = (query * factor, key / factor, value, None)
        found, wanted = run(kernel, inputs, gradients, 0.125), wanted_by_name(problem, inputs, gradients, 0.125)
        assert relative_error(found[name], wanted[name]) <= TOLERANCE["float16"], name


@pytest.mark.parametrize("size", [37.0, 380.0, 3400.0])
def test_large_scores(size: float) -> None:
    """Weights are as exact as differences of scores."""
    kernel = kernel_for("1D", "float16")
    problem = kernel.problem.forward
    inputs, gradients = large_inputs(problem, size), random_gradients(problem, 1)
    found, wanted = run(kernel, inputs, gradients, 0.125), wanted_by_name(problem, inputs, gradients, 0.125)
    for name, gradient in found.items():
        assert relative_error(gradient, wanted[name]) <= TOLERANCE["float16"], name


def test_sums_have_one_order() -> None:
    """Bits do not depend on the order in which threads come; those of the first sample not on the batch."""
    kernel = kernel_for("bias", "float16")
    problem = kernel.problem.forward
    inputs, gradients = random_inputs(problem, 2, 0), random_gradients(problem, 2, 0)
    first = run(kernel, inputs, gradients, 0.5, seed=1)
    again = run(kernel, inputs, gradients, 0.5, seed=2, late_copies=False)
    assert all(torch.equal(again[name], first[name]) for name in first)
    of_first = (gradients[0][:1], None if gradients[1] is None else gradients[1][:1])
    alone = run(kernel, (*(t[:1] for t in inputs[:3]), inputs[3]), of_first, 0.5)
    assert all(torch.equal(alone[name], first[name][:1]) for name in ("d_query", "d_key", "d_value"))


@pytest.mark.parametrize("name", ["query", "value", "d_out"])
def test_a_bad_number_reaches_no_other_head(name: str) -> None:
    """And is not lost."""
    kernel = kernel_for("bias", "float16")
    problem = kernel.problem.forward
    query, key, value, rpb = random_inputs(problem, 1, 0)
    d_out, d_lse = random_gradients(problem, 1, 0)
    tensors = {"query": query, "key": key, "value": value, "d_out": d_out}

    def gradients() -> dict[str, torch.Tensor]:
        return run(kernel, (tensors["query"], tensors["key"], tensors["value"], rpb), (tensors["d_out"], d_lse), 0.5)

    clean = gradients()
    for poison in (math.nan, math.inf):
        bad = tensors[name].clone()
        bad[0, 2, 4, 0, 3] = poison
        tensors[name], kept = bad, tensors[name]
        found = gradients()
        tensors[name] = kept
        assert not found["d_query"][0, 2, 4, 0].isfinite().all() and not found["d_key"][0, 2, 4, 0].isfinite().all()
        assert torch.equal(found["d_query"][..., 2:, :], clean["d_query"][..., 2:, :])
        assert torch.equal(found["d_rpb"][2:], clean["d_rpb"][2:])
        for other in ("d_key", "d_value"):
            assert torch.equal(found[other][..., 1, :], clean[other][..., 1, :])


# --- what is served by what


NAT = {n: NAProblem.make((n, n), 7, h, 32, dtype="float16", bias=True) for n, h in ((56, 2), (28, 4), (14, 8), (7, 16))}
DINAT = [dataclasses.replace(NAT[n], dilation=(d, d)) for n, d in ((56, 8), (56, 4), (28, 4), (28, 2), (14, 2))]


@pytest.mark.parametrize(
    ("problem", "names"),
    [
        *((problem, [FLASH_BACKWARD, GATHER]) for problem in (*LARGE.values(), *NAT.values(), *DINAT)),
        (NAProblem.make((56, 56), 7, 2, 96, stride=2, dtype="bfloat16"), [FLASH_BACKWARD, GATHER]),
        # A warp's sums for the bias are larger than shared memory.
        (dataclasses.replace(LARGE["FLUX"], bias=True), [GATHER]),
        (NAProblem.make((56, 56), 7, 2, 33, dtype="float16"), [GATHER]),
        (NAProblem.make((56,), 7, 2, 32), [GATHER]),
    ],
    ids=str,
)
def test_what_serves_a_problem(problem: NAProblem, names: list[str]) -> None:
    gradients = BackwardProblem(problem)
    for arch in ("sm_80", "sm_90"):
        assert [space.name for space in spaces_for(gradients, parse_target(f"cuda-{arch}"))] == names
    assert FLASH_BACKWARD not in {space.name for space in spaces_for(gradients, parse_target("cuda-sm_75"))}


@pytest.mark.parametrize(("name", "products", "keys"), [("FLUX", 1.25, 70), ("Hunyuan", 1.5, 150), ("line", 1.05, 20)])
def test_defaults_multiply_little_more_than_windows(name: str, products: float, keys: float) -> None:
    """And read far less than what each query, or key, meets."""
    problem = LARGE[name]
    tile = flash_backward.tiles(problem, TARGET)[0]
    shape = default_shape(problem, tile, TARGET)
    assert shape is not None
    for half, of_half in ((Half(problem, of_keys=False), shape.queries), (Half(problem, of_keys=True), shape.keys)):
        done = work(problem, tile, of_half, half.axis)
        assert 1 <= done.products / math.prod(problem.kernel_size) <= products
        assert done.keys <= keys


@pytest.mark.parametrize("name", ["1D", "bias", "3D"])
def test_shared_memory_is_what_was_reckoned(name: str) -> None:
    problem, halves = problem_of(name, FEW[name]), [FlashShape(*half) for half in NAMED[name][3:]]
    reckoned = [Half(problem, of_keys=bool(n)).shared_bytes(shape) for n, shape in enumerate(halves)]
    assert kernel_for(name, FEW[name]).sizes.dynamic_shared == max(reckoned)


# --- what the emulation notices


#: Text, what it becomes, and which of them.
_DAMAGE = (
    ("(uint)most0_ptr[0]", "(uint)999", 1),  # masks of a key, and of a query in both turns
    ("10) - 2));", "10) - 1));", 0),  # windows of a lane's key, and of its query in both turns
    ("const int at = entry + row", "const int at = entry + 1 + row", 0),
    ("(uint)most0_ptr[0]", "(uint)999", 0),
    ("(uint)most0_ptr_1[0]", "(uint)999", 0),
    ("10) - 3), 5), 0)", "10) - 2), 5), 0)", 0),
    ("10) - 3), 5), 0)", "10) - 2), 5), 0)", 1),
    ("if (query >= 0 && query < 16)", "if (query > 0 && query < 16)", 0),
)


def test_damage_is_noticed() -> None:
    """Missing barriers and waits, windows that are shifted, masks that are left out, in both kernels."""
    kernel = kernel_for("bias", "float16")

    def noticed(source: str) -> bool:
        damaged = kernel.with_source(source)

        def worst(seed: int) -> float:
            found = errors(damaged, seed=seed, late_copies=bool(seed % 2)).values()
            return math.nan if any(map(math.isnan, found)) else max(found)

        return damage_is_noticed(worst, TOLERANCE["float16"])

    source = kernel.source
    assert not noticed(source) and barriers(source) == 15
    # By default the ring of keys, a mask and a window of keys, and the sums for the bias.
    for number in range(15) if ALL else (8, 13):
        assert noticed(without_barrier(source, number)), number
    for old, new, n in _DAMAGE if ALL else _DAMAGE[:3]:
        assert noticed(replaced(source, old, new, n)), old


# --- what nvcc makes of them

_COMPILED = [("nat", NAT[56], "sm_90")]
if ALL:
    _COMPILED = [
        (str(problem), problem, arch)
        for problem in (*LARGE.values(), *NAT.values(), *DINAT[:2])
        for arch in ("sm_80", "sm_90")
    ]


@needs_nvcc
@pytest.mark.parametrize(("problem", "arch"), [case[1:] for case in _COMPILED], ids=[case[0] for case in _COMPILED])
def test_defaults_fit_registers(problem: NAProblem, arch: str) -> None:
    target, gradients = parse_target(f"cuda-{arch}"), BackwardProblem(problem)
    point = flash_backward.SPACE.apply(flash_backward.SPACE.formulations(gradients, target)[0], target)
    assert point is not None
    _, log = toolchain.find_nvcc().run(
        generated(point.schedule.mod, target)[0], "--cubin", f"-arch={arch}", "-Xptxas=-v"
    )
    found = resources_of(log)
    assert len(found) == 2 + problem.bias
    for resources in found.values():
        assert resources.registers <= 255 and resources.spill_bytes == resources.stack_bytes == 0, found
