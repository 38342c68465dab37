"""Kernels of linear layers and convolutions: their numbers are PyTorch's in float64, on every target they compile."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import TOLERANCE
from tests.te.dense_kernels import compile_all, error_of, random_problem, scheduled
from tvm_na.jit import build
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.dense import DenseProblem
from tvm_na.schedules import base, spaces_for
from tvm_na.schedules.base import Plan
from tvm_na.schedules.cpu import dense as cpu_dense
from tvm_na.targets.target import detect_target, list_targets, parse_target
from tvm_na.te.dense.product import DenseTile, forward, pack_weight, packed_shape, positions_of, tile_of, tiles_of

# Of tensors and of weights, such as are tested together.
KINDS: list[list[tuple[str, str | None]]] = [
    [("float32", None), ("float64", None), ("float32", "int8"), ("float64", "int8")],
    [("bfloat16", None), ("float16", None)],
    [("float32", "float16"), ("bfloat16", "int8")],
]


@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_20_random_problems_agree_with_pytorch(kinds: list[tuple[str, str | None]]) -> None:
    rng = random.Random(str(kinds))
    problems = [random_problem(rng, *kinds[n % len(kinds)]) for n in range(20)]
    points = [scheduled(problem) for problem in problems]
    kernels = compile_all([point for _, point in points])
    for n, (problem, (tile, _), kernel) in enumerate(zip(problems, points, kernels, strict=True)):
        error = error_of(problem, tile, kernel, 1 + n % 3, seed=n)
        assert error <= TOLERANCE[problem.dtype], (str(problem), tile, error)


@pytest.mark.parametrize("name", ["llvm-x86-avx2", "llvm-x86-sse4"])
@pytest.mark.parametrize(("dtype", "weight_dtype"), [*KINDS[1], ("float32", "float16")])
@pytest.mark.parametrize("convolution", [True, False])
def test_halves_are_converted_in_vectors(name: str, dtype: str, weight_dtype: str | None, convolution: bool) -> None:
    """No call for a number, with and without instructions for float16; all rows of a tile use a widened weight."""
    import tvm

    target, options = parse_target(name), {"residual": True, "dtype": dtype, "weight_dtype": weight_dtype}
    problem = DenseProblem.make((14, 14), 64, 96, kernel_size=3, padding=1, **options)
    problem = problem if convolution else DenseProblem.make(196, 64, 96, activation="gelu", **options)
    module = tvm.compile(build.scheduled_module(problem, target)[0], target=target.tvm_target()).mod
    assembly = module.inspect_source("s")
    assert not re.search(r"call\w*\s+\S*(extend|trunc|half|bf|gnu_)", assembly)
    lines = [line.split("#")[0] for line in assembly.splitlines()]
    widen = "vcvtph2ps" if (weight_dtype or dtype) == "float16" else "vpslld"
    if name == "llvm-x86-avx2":
        assert sum(widen in line and "ymm" in line for line in lines) > 0
        assert not any("vcvtph2ps" in line and "ymm" not in line for line in lines)


CORNERS = {
    "one-of-everything": DenseProblem.make(1, 1, 1),
    "one-token": DenseProblem.make(1, 64, 1000, activation="gelu"),
    "prime-tokens": DenseProblem.make(53, 24, 64, residual=True),
    "window-of-padding": DenseProblem.make((2, 2), 8, 16, kernel_size=7, padding=6, stride=4),
    "one-place": DenseProblem.make((7, 7), 3, 10, kernel_size=7),
    "padding-unreached": DenseProblem.make((8, 6), 5, 8, kernel_size=3, padding=1, stride=4, residual=True),
    "volume": DenseProblem.make((5, 4, 6), 3, 8, kernel_size=(3, 1, 2), padding=(2, 0, 1), activation="gelu"),
    "plain": DenseProblem.make((9, 9), 16, 48, bias=False),
}


@pytest.mark.parametrize("problem", CORNERS.values(), ids=CORNERS)
def test_corners(problem: DenseProblem) -> None:
    tile, point = scheduled(problem)
    assert error_of(problem, tile, compile_all([point])[0], 2) <= TOLERANCE["float32"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_every_epilogue_for_every_batch(bias: bool, residual: bool, activation: str) -> None:
    problem = DenseProblem.make(23, 16, 24, bias=bias, residual=residual, activation=activation)
    tile, point = scheduled(problem)
    (kernel,) = compile_all([point])
    for batch in (1, 2, 5):
        assert error_of(problem, tile, kernel, batch, seed=batch) <= TOLERANCE["float32"]


def test_drawn_points_give_the_same_numbers() -> None:
    rng = random.Random(3)
    problems = [*CORNERS.values(), *(random_problem(rng) for _ in range(4))]
    drawn = []
    for seed, problem in enumerate(problems):
        offered = len(cpu_dense.SPACE.formulations(problem, detect_target()))
        for sketch in cpu_dense.SKETCHES:
            plan = Plan(sketch, sample=True, seed=seed + 1)
            drawn.append((problem, *scheduled(problem, rng.randrange(offered), plan)))
    kernels = compile_all([point for _, _, point in drawn])
    for (problem, tile, point), kernel in zip(drawn, kernels, strict=True):
        error = error_of(problem, tile, kernel, 2)
        assert error <= TOLERANCE["float32"], (str(problem), tile, point.sketch, point.parameters, error)


def test_plans() -> None:
    problem, target = DenseProblem.make((14, 14), 16, 48, kernel_size=3, padding=1), detect_target()
    func = cpu_dense.SPACE.formulations(problem, target)[0]

    def made(plan: Plan) -> base.Scheduled:
        point = cpu_dense.SPACE.apply(func, target, plan)
        assert point is not None
        assert base.sketch_of(point.schedule.trace) == point.sketch
        return point

    values = [{c.name: c.value for c in made(Plan(name)).parameters} for name in cpu_dense.SPACE.sketches(func, target)]
    assert values[0].keys() == values[1].keys()
    assert {c.name: c.value for c in made(Plan(like={"channels at once": 7})).parameters}["channels at once"] == 8
    assert made(Plan(sample=True, seed=5)).parameters == made(Plan(sample=True, seed=5)).parameters
    with pytest.raises(ValueError, match="sketch: required one of"):
        made(Plan("none"))


def test_what_is_larger_decides_the_default_sketch() -> None:
    target = detect_target()
    for problem, first in ((DenseProblem.make(3136, 64, 64), "rows"), (DenseProblem.make(49, 512, 512), "weights")):
        func = forward(problem, cpu_dense.tiles(problem, target)[0], 1)
        assert cpu_dense.SPACE.sketches(func, target)[0] == f"{first} outside"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [n for n in list_targets() if n.startswith("llvm")])
def test_every_target_compiles_with_sums_in_registers(name: str, dtype: str) -> None:
    import tvm

    target = parse_target(name)
    problem = DenseProblem.make(
        (14, 14), 16, 96, kernel_size=3, stride=2, activation="gelu", residual=True, dtype=dtype
    )
    for tile in cpu_dense.tiles(problem, target):
        assert tile.vector * (8 if dtype == "float64" else 4) == target.vector_bytes
        assert tile.rows * tile.vectors < target.vector_registers
    assembly = tvm.compile(build.scheduled_module(problem, target)[0], target=target.tvm_target()).mod.inspect_source(
        "s"
    )
    register = {"llvm-x86-avx512": "%zmm", "llvm-x86-avx2": "%ymm", "llvm-x86-sse4": "%xmm"}.get(name, "v")
    multiply = ("vfmadd", "mulp", "fmla")
    if target.is_wasm:
        register, multiply = "x2." if dtype == "float64" else "x4.", (".mul", ".relaxed_madd")
    products = [line for line in assembly.splitlines() if any(p in line for p in multiply)]
    assert len([line for line in products if register in line]) > 40
    assert "erf" not in assembly
    assert "AllocWorkspace" not in assembly  # sums fit on the stack, and nothing is padded


@pytest.mark.parametrize(
    ("name", "widen"),
    [("llvm-x86-avx2", "vpmovsxbd"), ("llvm-x86-avx512", "vpmovsxbd"), ("llvm-aarch64-neon", "scvtf")],
)
def test_every_row_of_a_tile_uses_a_widened_weight(name: str, widen: str) -> None:
    import tvm

    target = parse_target(name)
    problem = DenseProblem.make(196, 256, 768, weight_dtype="int8")
    rows = cpu_dense.tiles(problem, target)[0].rows
    module = build.scheduled_module(problem, target)[0]
    assembly = tvm.compile(module, target=target.tvm_target()).mod.inspect_source("s").splitlines()
    widened = sum(widen in line for line in assembly)
    products = sum("vfmadd" in line or "fmla" in line for line in assembly)
    assert rows > 1 and 0 < widened * rows <= products
    wide = cpu_dense.tiles(DenseProblem.make(196, 256, 768), target)[0].rows
    assert rows > wide if name == "llvm-x86-avx2" else rows >= wide


def test_gelu_is_accurate_where_it_bends_and_far_out() -> None:
    points = torch.cat([torch.linspace(-8, 8, 4001), torch.tensor([-1e30, -100.0, 100.0, 1e30, math.nan])])
    for dtype, budget in ((torch.float32, 2e-7), (torch.float64, 1e-15)):
        x = points.to(dtype).reshape(1, -1, 1)
        problem = DenseProblem.make(len(points), 1, 8, bias=False, activation="gelu", dtype=str(dtype)[6:])
        tile, point = scheduled(problem)
        packed = torch.from_numpy(pack_weight(np.ones((8, 1, 1), problem.dtype), problem, tile)).clone()
        out = torch.zeros(1, len(points), 8, dtype=dtype)
        compile_all([point])[0](x, packed, out)
        assert out[0, -1].isnan().all()
        wanted = torch.nn.functional.gelu(points.to(dtype).double())[:-1]
        scale = points[:-1].double().abs().clamp(min=1)
        assert float(((out[0, :-1, 0].double() - wanted).abs() / scale).max()) <= budget
        assert float(out[0, -5:-3, 0].abs().max()) == 0  # not x times the rounding error of erf


def test_packing() -> None:
    problem, tile = DenseProblem.make((5, 5), 3, 10, kernel_size=2), DenseTile(4, 1, 8)
    weight = np.arange(10 * 2 * 2 * 3, dtype="float32").reshape(problem.weight_shape)
    packed = pack_weight(weight, problem, tile)
    assert packed.shape == packed_shape(problem, tile) == (2, 2, 2, 3, 8)
    assert packed.flags.c_contiguous
    for o in range(16):
        expected = weight[o] if o < 10 else np.zeros((2, 2, 3))
        assert (packed[o // 8, ..., o % 8] == expected).all()
    with pytest.raises(ValueError, match=r"weight: required shape \(10, 2, 2, 3\), got \(10, 12\)"):
        pack_weight(weight.reshape(10, 12), problem, tile)
    with pytest.raises(TypeError, match="weight: required dtype float32, got float64"):
        pack_weight(weight.astype("float64"), problem, tile)


def test_a_function_knows_its_tile() -> None:
    from tvm_na.te.attention.definition import forward as attention

    problem = DenseProblem.make(49, 8, 16)
    module, space = build.scheduled_module(problem, detect_target())
    assert space.name == "cpu-dense"
    assert tile_of(module["main"]) == cpu_dense.tiles(problem, detect_target())[0]
    with pytest.raises(ValueError, match="func: required a PrimFunc in the formulation dense"):
        tile_of(attention(NAProblem.make((5, 5), 3, 1, 4)))


def test_tiles_cover_all_positions_with_few_more() -> None:
    rng = random.Random(4)
    for _ in range(200):
        problem = DenseProblem.make(rng.randint(1, 4000), 8, 8)
        tile = DenseTile(rng.randint(1, 8), 1, 8)
        needed = -(-positions_of(problem) // tile.rows)
        assert needed <= tiles_of(problem, tile) <= 1.02 * needed


def test_the_space_serves_cpus_alone() -> None:
    problem = DenseProblem.make(49, 8, 16)
    cuda = parse_target("cuda-sm_90")
    assert spaces_for(problem, cuda) == []
    func = cpu_dense.SPACE.formulations(problem, detect_target())[0]
    assert cpu_dense.SPACE.apply(func, cuda) is None
    with pytest.raises(NotImplementedError, match="linear layers and convolutions are compiled for CPUs, not for cuda"):
        build.scheduled_module(problem, cuda)
    attention = NAProblem.make((9, 9), 3, 1, 8)
    assert [space.name for space in spaces_for(attention, detect_target())] == ["cpu-lanes"]
    (lanes,) = spaces_for(attention, detect_target())
    assert cpu_dense.SPACE.apply(lanes.formulations(attention, detect_target())[0], detect_target()) is None
    assert lanes.apply(func, detect_target(), Plan()) is None


def test_a_convolution_of_a_map_takes_and_gives_maps() -> None:
    problem: Any = DenseProblem.make((6, 8), 4, 8, kernel_size=3, padding=1, residual=True)
    func = forward(problem, DenseTile(4, 1, 8), 3)
    shapes = [[int(n) for n in buffer.shape] for buffer in func.params]
    assert shapes == [[3, 6, 8, 4], [1, 3, 3, 4, 8], [8], [3, 6, 8, 8], [3, 6, 8, 8]]
    assert dataclasses.asdict(tile_of(func)) == {"rows": 4, "vectors": 1, "vector": 8}
