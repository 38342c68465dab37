"""Small launches, and what the kernels of this package should compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.cuda_emulator import fragments
from tests.cuda_emulator.emulate import Counts, Emulated
from tests.cuda_emulator.kernels import in_bfloat16, source

#: Sources that are CUDA for nvcc as well.
SOURCES = {
    **{name: source(name) for name in ("collectives", "functions", "matmul", "numbers", "reduce", "vectors")},
    **{f"{name} in bfloat16": in_bfloat16(source(name)) for name in ("matmul", "numbers")},
    **{f"mma {element} {depth}": fragments.mma_source(element, depth) for element, depth in fragments.SHAPES},
    **{f"ldmatrix x{n}{' trans' * t}": fragments.ldmatrix_source(n, t) for n in (1, 2, 4) for t in (False, True)},
}


def launch(name: str, kernel: str, grid: int, block: int | tuple[int, int], *args: Any, **more: Any) -> Counts:
    """A launch of blocks along x; threads along x, or x and y."""
    block = block if isinstance(block, tuple) else (block, 1)
    return Emulated(SOURCES[name]).launch(kernel, (grid, 1, 1), (*block, 1), args, **more)


def kernel(body: str, parameters: str = "float* __restrict__ a", threads: int = 64) -> Emulated:
    """A source with one kernel, ``k``."""
    head = f'extern "C" __global__ void __launch_bounds__({threads}) k({parameters})'
    return Emulated(f"#define uint unsigned int\n{head} {{\n{body}\n}}\n")


def run(body: str, *args: Any, parameters: str = "float* __restrict__ a", block: int = 64, **more: Any) -> None:
    """A launch of one block."""
    kernel(body, parameters, block).launch("k", (1, 1, 1), (block, 1, 1), args, **more)


def zeros(n: int = 64) -> np.ndarray:
    return np.zeros(n, np.float32)


def sums_right(text: str, seed: int, late: bool) -> bool:
    """Whether the two kernels of reduce.cu compute what they should."""
    kernels = Emulated(text)
    a = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    sums = np.full(8, np.nan, np.float32)
    kernels.launch("block_sum_kernel", (4, 1, 1), (256, 1, 1), [a, sums], seed=seed, late_copies=late)
    return np.allclose(sums, a.sum(1), atol=1e-3)


def product_right(text: str, seed: int, late: bool) -> bool:
    """Whether the kernel of matmul.cu does."""
    dtype = torch.bfloat16 if "nv_bfloat16" in text else torch.float16
    a, b, c = torch.randn(64, 128).to(dtype), torch.randn(128, 32).to(dtype), torch.full((64, 32), torch.nan)
    Emulated(text).launch("matmul_kernel", (1, 2, 1), (32, 4, 1), [a, b, c, 64, 32, 128], 5632, seed, late)
    return torch.allclose(c.double(), a.double() @ b.double(), atol=1e-3, rtol=0)


def halves_right(text: str, seed: int, late: bool) -> bool:
    """Whether halves_kernel of collectives.cu does."""
    a, b = torch.rand(32) + 0.5, torch.zeros(32)
    Emulated(text).launch("halves_kernel", (1, 1, 1), (32, 1, 1), [a, b], seed=seed, late_copies=late)
    return torch.allclose(b, (a[:16].sum() - a[16:].prod()).expand(32), atol=1e-4)


def transposed_right(text: str, seed: int, late: bool) -> bool:
    """Whether transpose_kernel and reverse_kernel of vectors.cu do."""
    a, b = torch.arange(1024, dtype=torch.int32).view(32, 32), torch.zeros(32, 32, dtype=torch.int32)
    kernels = Emulated(text)
    kernels.launch("transpose_kernel", (1, 1, 1), (32, 4, 1), [a, b], seed=seed, late_copies=late)
    x, y = torch.randn(2, 256).half(), torch.zeros(2, 256).half()
    kernels.launch("reverse_kernel", (2, 1, 1), (32, 1, 1), [x, y], 512, seed, late)
    return torch.equal(b, a.T) and torch.equal(y, x.flip(1))


SYNCHRONISED = {
    "reduce": (source("reduce"), sums_right),
    "matmul": (source("matmul"), product_right),
    "matmul in bfloat16": (in_bfloat16(source("matmul")), product_right),
    "halves": ("extern" + source("collectives").rpartition("extern")[2], halves_right),
    "vectors": (source("vectors"), transposed_right),
}
