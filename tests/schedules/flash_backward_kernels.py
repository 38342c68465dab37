"""Kernels of gradients on tensor cores for tests: named problems, each with a point."""

from __future__ import annotations

import functools
from typing import Any

from tests.schedules.cuda_kernels import TARGET, CudaKernel, kernel_of
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.schedules.base import Plan
from tvm_na.schedules.cuda import flash_backward
from tvm_na.te.attention.flash_tile import SIDE, FlashShape, can_be_swizzled
from tvm_na.te.backward.flash_tile import BackwardFlashShape, BackwardFlashTile

_SMALL = ((1, 1, 1), (1, 1, 1), 16, 2, False, True)
#: Sizes, options, rows of a sub-tile, and of queries and of keys: sub-tiles and warps along each axis, columns at once,
#: stages, rows permuted, rows in registers.
NAMED: dict[str, tuple[Any, dict[str, Any], int, tuple[Any, ...], tuple[Any, ...]]] = {
    "2D": (
        ((9, 20), (5, 7), 1, 32),
        {},
        1,
        ((1, 1, 1), (1, 2, 1), 16, 2, False, True),
        ((1, 2, 1), (1, 2, 1), 32, 3, False, False),
    ),
    "3D": (
        ((4, 5, 10), (3, 3, 5), 1, 16),
        {"is_causal": (False, True, False), "stride": (1, 1, 2)},
        2,
        ((2, 1, 1), (1, 2, 1), 16, 3, True, False),
        ((1, 1, 1), (2, 1, 2), 16, 2, True, True),
    ),
    "1D": (((60,), 21, 1, 64), {"return_lse": True}, 1, ((1, 1, 2), (1, 1, 1), 32, 4, True, True), _SMALL),
    "whole map": (((6, 20), (6, 20), 1, 16), {}, 4, _SMALL, ((1, 1, 2), (1, 2, 1), 16, 2, False, True)),
    "bias": (
        ((7, 11), (3, 6), 4, 32),
        {"heads_kv": 2, "bias": True, "return_lse": True},
        2,
        ((1, 1, 1), (1, 2, 1), 16, 2, True, True),
        ((1, 2, 1), (1, 2, 1), 16, 2, True, True),
    ),
    "bias of a line": (((70,), 6, 2, 16), {"bias": True}, 1, _SMALL, ((1, 1, 1), (1, 1, 2), 48, 2, True, True)),
    "bias in 3D": (
        ((3, 4, 7), (3, 2, 4), 1, 16),
        {"bias": True},
        4,
        _SMALL,
        ((2, 1, 1), (2, 1, 2), 16, 2, False, False),
    ),
    "causal": (((7, 18), (4, 9), 1, 32), {"is_causal": (True, False)}, 1, _SMALL, _SMALL),
    "causal line": (((50,), 50, 1, 16), {"is_causal": True}, 1, _SMALL, ((1, 1, 1), (1, 1, 2), 16, 3, False, True)),
    "uneven groups": (
        ((11, 19), (3, 4), 1, 16),
        {"dilation": (2, 3), "bias": True, "return_lse": True},
        4,
        _SMALL,
        ((1, 1, 1), (1, 2, 2), 16, 2, True, True),
    ),
    "strided": (((9, 17), (4, 6), 1, 32), {"stride": (2, 3)}, 2, ((1, 1, 2), (1, 2, 1), 32, 2, False, False), _SMALL),
    "wide values": (
        ((5, 9), 3, 4, 16),
        {"heads_kv": 1, "head_dim_v": 48, "bias": True},
        2,
        _SMALL,
        ((1, 2, 2), (1, 2, 1), 16, 2, False, True),
    ),
    "odd dims": (((5, 17), 5, 1, 20), {"head_dim_v": 42}, 1, _SMALL, ((1, 1, 1), (1, 2, 1), 16, 2, False, True)),
    "wide": (((3, 17), 3, 1, 256), {"head_dim_v": 24}, 1, ((1, 1, 1), (1, 1, 1), 16, 2, False, False), _SMALL),
    "window of one": (((5, 9), 1, 1, 16), {"bias": True}, 2, _SMALL, ((1, 1, 2), (1, 4, 1), 16, 2, True, True)),
}

#: Those that are tried by default: every rank, mask, and way to share keys, both dtypes.
FEW = {"bias": "float16", "1D": "float16", "3D": "bfloat16"}
EVERY = {name: ("float16", "bfloat16")[n % 2] for n, name in enumerate(NAMED)}


def problem_of(name: str, dtype: str) -> NAProblem:
    sizes, options, *_ = NAMED[name]
    return NAProblem.make(*sizes, dtype=dtype, **options)


def kernel_with(problem: NAProblem, tile: BackwardFlashTile, shape: BackwardFlashShape) -> CudaKernel:
    """The kernels of a point."""
    numbers: list[int] = []
    for half in (shape.queries, shape.keys):
        numbers += [*half.tiles[3 - problem.rank :], *half.warps[3 - problem.rank :], half.keys, half.stages]
        numbers += [int(half.swizzled)] if can_be_swizzled(problem) else []
        numbers.append(int(half.keeps_queries))
    gradients = BackwardProblem(problem)
    func = flash_backward.SPACE.formulation(gradients, tile)
    point = flash_backward.SPACE.apply(func, TARGET, Plan(exact=numbers))
    assert point is not None
    return kernel_of(gradients, point)


@functools.cache
def kernel_for(name: str, dtype: str) -> CudaKernel:
    """The named kernels, the same for all tests."""
    _, _, rows, *halves = NAMED[name]
    shape = BackwardFlashShape(*(FlashShape(*half) for half in halves))
    return kernel_with(problem_of(name, dtype), BackwardFlashTile(rows, SIDE // rows), shape)
