"""What the emulator notices about threads: missing barriers and waits, and collectives that not all reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.cuda_emulator.checks import SYNCHRONISED, run, zeros
from tests.cuda_emulator.emulate import Emulated
from tests.cuda_emulator.errors import Divergence, EmulationError
from tests.cuda_emulator.kernels import source
from tests.cuda_emulator.mutate import barriers, replaced, without_barrier

MODES = [(seed, late) for seed in range(4) for late in (True, False)]


def noticed(name: str, text: str) -> list[tuple[int, bool]]:
    """The modes in which a source is not what it should be."""

    def wrong(seed: int, late: bool) -> bool:
        try:
            return not SYNCHRONISED[name][1](text, seed, late)
        except EmulationError:
            return True

    return [mode for mode in MODES if wrong(*mode)]


@pytest.mark.parametrize("name", SYNCHRONISED)
def test_sources_are_right_in_every_order(name: str) -> None:
    assert noticed(name, SYNCHRONISED[name][0]) == []


@pytest.mark.parametrize(
    ("name", "n"), [(name, n) for name in SYNCHRONISED for n in range(barriers(SYNCHRONISED[name][0]))]
)
def test_a_missing_barrier_is_noticed(name: str, n: int) -> None:
    assert noticed(name, without_barrier(SYNCHRONISED[name][0], n))


def test_barriers_are_counted() -> None:
    assert {name: barriers(text) for name, (text, _) in SYNCHRONISED.items()} == {
        "reduce": 6,
        "matmul": 3,
        "matmul in bfloat16": 3,
        "halves": 1,
        "vectors": 2,
    }
    assert barriers(source("matmul").replace("__syncthreads();", "/* __syncthreads(); */")) == 1
    with pytest.raises(IndexError):
        without_barrier(source("matmul"), 3)


def test_late_copies_show_missing_waits_and_early_ones_early_overwriting() -> None:
    text = source("matmul")
    assert {late for _, late in noticed("matmul", replaced(text, "wait_group 1;", "wait_group 2;"))} == {True}
    last_barrier = without_barrier(text, 2)
    assert {late for _, late in noticed("matmul", last_barrier)} == {False}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_wait_group_1();\n", "_commit_group();\n"),
        ("step + 1, m", "step, m"),
        ("* 24) + column", "* 16) + column"),
        ("x4.trans", "x4"),
        ("of < m", "of < m - 1"),
    ],
)
def test_other_damage_to_a_matmul_is_noticed(old: str, new: str) -> None:
    assert noticed("matmul", replaced(source("matmul"), old, new))


DIVERGENT = {
    "if (threadIdx.x < 40) { __syncthreads(); }": (
        r"in warp 0 lanes 0-31 wait at __syncthreads \(line 3\); in warp 1 lanes 0-7 wait .*, lanes 8-31 have returned"
    ),
    "if (threadIdx.x == 5) { return; }\n__syncthreads();": "lanes 0-4,6-31 wait .* lanes 5 have returned",
    "if (threadIdx.x < 32) { __syncthreads(); }\nelse { __syncthreads(); }": r"\(line 3\); in warp 1 .*\(line 4\)",
    "if (threadIdx.x < 3) { a[0] = __shfl_xor_sync(0xffffffff, a[0], 1); }": (
        r"lanes 0-2 wait at __shfl_xor_sync \(line 3\) for lanes 0xffffffff, lanes 3-31 have returned"
    ),
    "if (threadIdx.x % 2) { __syncwarp(); } else { __syncthreads(); }": "lanes 1,3,5.* wait at __syncwarp",
    "a[0] = __shfl_sync(0x0000ffff, a[0], 0);": "__shfl_sync by lane .*, which is not in its mask 0x0000ffff",
    "a[0] = threadIdx.x < 9 ? __shfl_up_sync(-1u, a[0], 1) : __shfl_down_sync(-1u, a[0], 1);": (
        "lanes 0-8 wait at __shfl_up_sync .* lanes 9-31 wait at __shfl_down_sync"
    ),
}


@pytest.mark.parametrize("body", DIVERGENT)
def test_threads_that_do_not_arrive(body: str) -> None:
    for seed in range(3):
        with pytest.raises(Divergence, match=DIVERGENT[body]):
            run(body, zeros(), seed=seed)


def test_a_warp_of_fewer_lanes_shuffles_among_them_but_does_not_multiply() -> None:
    a = np.arange(40, dtype=np.float32)
    run("a[threadIdx.x] = __shfl_xor_sync(__activemask(), a[threadIdx.x], 1);", a, block=40)
    np.testing.assert_array_equal(a, np.arange(40) ^ 1)
    run("a[threadIdx.x] = __shfl_xor_sync(0xffffffff, a[threadIdx.x], 8);", a, block=40)
    assert np.isnan(a[32:]).all() and not np.isnan(a[:32]).any()  # lanes that are not there have nothing to give
    parts = source("matmul").replace("__launch_bounds__(128)", "__launch_bounds__(120)")
    tensors = [torch.zeros(32, 16).half(), torch.zeros(16, 32).half(), torch.zeros(32, 32), 32, 32, 16]
    with pytest.raises(Divergence, match=r"lanes 0-23 wait at ldmatrix \(line \d+\)"):
        Emulated(parts).launch("matmul_kernel", (1, 1, 1), (30, 4, 1), tensors, 5632)
