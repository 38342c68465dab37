"""The emulator of CUDA: right numbers from real CUDA sources. What it notices is tested in the folder emulation."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cuda_emulator import fragments
from tests.cuda_emulator.checks import SOURCES, launch
from tests.cuda_emulator.emulate import Emulated

MODES = [(seed, late) for seed in range(4) for late in (True, False)]


@pytest.mark.parametrize("seed", range(4))
def test_sums_through_shared_memory_and_shuffles(seed: int) -> None:
    a = np.random.default_rng(0).standard_normal((70, 256)).astype(np.float32)
    sums, total = np.full(70, np.nan, np.float32), np.full((2, 32), np.nan, np.float32)
    counts = launch("reduce", "block_sum_kernel", 35, 256, a, sums, seed=seed)
    np.testing.assert_allclose(sums, a.sum(1, dtype=np.float64), atol=1e-4)
    assert counts.barriers == 35 * 12 and counts.shuffles == 0
    counts = launch("reduce", "warp_sum_kernel", 1, (32, 2), sums, total, 35, seed=seed)
    np.testing.assert_allclose(total, sums.reshape(2, 35).sum(1, keepdims=True).repeat(32, 1), atol=1e-4)
    assert counts.shuffles == 2 * 6 and counts.barriers == 0


@pytest.mark.parametrize(("seed", "late"), MODES)
@pytest.mark.parametrize(("name", "dtype"), [("matmul", torch.float16), ("matmul in bfloat16", torch.bfloat16)])
def test_matmul_on_tensor_cores(name: str, dtype: torch.dtype, seed: int, late: bool) -> None:
    m, n, k = 70, 64, 80
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    c = torch.full((m, n), torch.nan)
    kernels = Emulated(SOURCES[name])
    counts = kernels.launch("matmul_kernel", (2, 3, 1), (32, 4, 1), [a, b, c, m, n, k], 5632, seed, late)
    # The products are exact, and 80 of them are added up in float32.
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=0, atol=1e-4)
    steps, warps = 5, 2 * 3 * 4
    assert counts.mma == counts.ldmatrix == 2 * warps * steps
    assert counts.copies == (64 * 2 * 3 + 70 * 2 * 2) * steps  # the rows of a that there are, in chunks of 8 numbers


@pytest.mark.parametrize(("element", "depth"), fragments.SHAPES)
def test_mma_has_the_manuals_layout(element: str, depth: int) -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((16, depth), (depth, 8), (16, 8)))
    a_count = fragments.SHAPES[element, depth]
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}[element]

    def registers(matrix: np.ndarray, places: list[list[tuple[int, int]]]) -> np.ndarray:
        numbers = np.array([[matrix[place] for place in lane] for lane in places], np.float32)
        return torch.from_numpy(numbers).to(dtype).view(torch.int32).numpy()

    of_a = registers(a, [[fragments.place_in_a(element, depth, n, i) for i in range(a_count)] for n in range(32)])
    of_b = registers(b, [[fragments.place_in_b(element, depth, n, i) for i in range(a_count // 2)] for n in range(32)])
    if element == "tf32":
        of_a, of_b = of_a | 0x1FFF, of_b | 0x1FFF  # bits that tf32 does not have
    of_c = np.array([[c[fragments.place_in_c(n, i)] for i in range(4)] for n in range(32)])
    of_d = np.full((32, 4), np.nan, np.float32)
    counts = launch(f"mma {element} {depth}", "mma_kernel", 1, 32, of_a, of_b, of_c, of_d)
    d = a @ b + c
    np.testing.assert_array_equal(of_d, [[d[fragments.place_in_c(n, i)] for i in range(4)] for n in range(32)])
    assert counts.mma == 1


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_has_the_manuals_layout(count: int, transposed: bool) -> None:
    matrices = np.arange(256, dtype=np.float16).reshape(32, 8)
    rows = np.random.default_rng(0).permutation(32)  # where each lane's row is
    result = np.zeros((32, count), np.uint32)
    name = f"ldmatrix x{count}{' trans' * transposed}"
    counts = launch(name, "ldmatrix_kernel", 1, 32, matrices, (rows * 8).astype(np.int32), result)
    pairs = result.view(np.float16).reshape(32, count, 2)
    for lane in range(32):
        for m in range(count):
            matrix = matrices[rows[8 * m : 8 * m + 8]]
            assert tuple(pairs[lane, m]) == fragments.loaded(matrix, lane, transposed)
    assert counts.ldmatrix == 1


def test_vectors_of_floats() -> None:
    a, b = np.arange(1025, dtype=np.float32), np.zeros(1024, np.float32)
    launch("vectors", "scale_kernel", 4, 64, a, b, 0, 1.5)
    np.testing.assert_array_equal(b, a[:1024] * np.float32(1.5))


def test_vectors_of_other_widths() -> None:
    a = np.random.default_rng(0).integers(-1000, 1000, (96, 2))
    b, c = np.zeros((96, 2)), np.zeros((96, 4), np.uint8)
    launch("vectors", "widths_kernel", 1, 96, a, b, c)
    np.testing.assert_array_equal(b, a[:, ::-1])
    wanted = np.stack([a[:, 0] & 255, a[:, 1] & 255, np.arange(96), np.full(96, 255)], 1)
    np.testing.assert_array_equal(c, wanted)


def test_atomics_of_blocks_on_several_threads() -> None:
    n = 50000
    a = np.random.default_rng(0).integers(0, 16, n).astype(np.int32)
    counts, total = np.zeros(17, np.int32), np.zeros(1, np.float32)
    launch("vectors", "histogram_kernel", -(-n // 256), 256, a, counts, total, n)
    np.testing.assert_array_equal(counts[:16], np.bincount(a, minlength=16))
    assert total[0] == a.sum() and counts[16] == 15


@pytest.mark.parametrize("width", [2, 8, 16, 32])
@pytest.mark.parametrize("by", [0, 1, 3, 5, 16, 31])
def test_shuffles_of_each_width(width: int, by: int) -> None:
    a, b = torch.randperm(64, dtype=torch.int32), torch.full((4, 2, 32), -7, dtype=torch.int32)
    launch("collectives", "shuffle_kernel", 1, 64, a, b, by, width)

    def source_lanes(lane: int) -> list[int]:
        first = lane // width * width
        up, down, across = lane - by, lane + by, lane ^ by
        return [
            first + by % width,
            up if up >= first else lane,
            down if down < first + width else lane,
            across if across < first + width else lane,
        ]

    lanes = torch.tensor([source_lanes(lane) for lane in range(32)]).T
    assert torch.equal(b, a.view(1, 2, 32).expand(4, 2, 32).gather(2, lanes[:, None, :].expand(4, 2, 32)))


def test_shuffles_of_each_size() -> None:
    a, b, c = torch.randn(64), torch.randn(64, dtype=torch.float64), torch.randint(-(2**60), 2**60, (64,))
    wanted = [x[torch.arange(64) ^ i] for x, i in ((a, 1), (b, 2), (c, 4))]
    launch("collectives", "types_kernel", 1, 64, a, b, c)
    assert all(torch.equal(x, y) for x, y in zip((a, b, c), wanted, strict=True))


@pytest.mark.parametrize("kind", ["some", "none", "all", "one warp"])
def test_votes(kind: str) -> None:
    a = {"some": np.arange(64) % 5 - 1, "none": np.zeros(64), "all": np.ones(64), "one warp": np.arange(64) // 32}[kind]
    b = np.zeros((7, 2, 32), np.uint32)
    launch("collectives", "vote_kernel", 1, 64, a.astype(np.int32), b)
    yes = (a > 0).reshape(2, 32)
    ballots = [sum(1 << lane for lane in range(32) if warp[lane]) for warp in yes]
    third = [sum(1 << lane for lane in range(32) if (32 * warp + lane) % 3 == 0) for warp in range(2)]
    for warp in range(2):
        assert (b[0, warp] == ballots[warp]).all() and (b[1, warp] == yes[warp].any()).all()
        assert (b[2, warp] == yes[warp].all()).all() and (b[4, warp] == yes[warp].sum()).all()
        active = np.where(np.arange(32 * warp, 32 * warp + 32) % 3 == 0, third[warp], 0)
        np.testing.assert_array_equal(b[6, warp], active)
    assert (b[3] == yes.sum()).all() and (b[5] == 2 * yes.any() + yes.all()).all()


def test_seeds_decide_the_order_and_nothing_else() -> None:
    racy = """
extern "C" __global__ void __launch_bounds__(96) order_kernel(int* __restrict__ order, int* __restrict__ next) {
  order[atomicAdd(next, 1)] = ((int)threadIdx.x);
}
"""
    kernels = Emulated(racy)

    def order(seed: int) -> list[int]:
        found, following = np.full(96, -1, np.int32), np.zeros(1, np.int32)
        kernels.launch("order_kernel", (1, 1, 1), (96, 1, 1), [found, following], seed=seed)
        return found.tolist()

    orders = [order(seed) for seed in range(6)]
    assert orders == [order(seed) for seed in range(6)]
    assert len({tuple(x) for x in orders}) == 6 and all(sorted(x) == list(range(96)) for x in orders)
    for x in orders:  # warps in turn, each in some order of its lanes
        assert all(len({thread // 32 for thread in x[i : i + 32]}) == 1 for i in (0, 32, 64))
        assert any(x[i : i + 32] != sorted(x[i : i + 32]) for i in (0, 32, 64))


def test_sources_are_compiled_once(tmp_path: Path) -> None:
    Emulated(SOURCES["vectors"], folder=tmp_path)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    Emulated(SOURCES["vectors"], folder=tmp_path)
    assert len(made) == 3 and made == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    Emulated(SOURCES["vectors"].replace("248", "240"), folder=tmp_path)
    assert len(list(tmp_path.glob("kernel-*"))) == 2 and len(list(tmp_path.iterdir())) == 4


def test_kernels_and_their_parameters() -> None:
    kernels = Emulated(SOURCES["reduce"]).kernels
    assert list(kernels) == ["block_sum_kernel", "warp_sum_kernel"]
    warp_sum = kernels["warp_sum_kernel"]
    assert [(p.name, p.type, p.pointer) for p in warp_sum.parameters] == [
        ("sums", "float", True),
        ("total", "float", True),
        ("rows", "int", False),
    ]
    assert warp_sum.most_threads == 64


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("name", SOURCES)
def test_sources_are_cuda(name: str, tmp_path: Path) -> None:
    path = tmp_path / (re.sub(r"\W", "-", name) + ".cu")
    path.write_text(SOURCES[name])
    command = ["nvcc", "-cubin", "-arch=sm_80", "-o", str(tmp_path / "made.cubin"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
