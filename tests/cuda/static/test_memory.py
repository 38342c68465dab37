"""Cycles of shared memory and sectors, against loops that spell out what banks and sectors are."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tvm_na.cuda.static.memory import sectors, wavefronts


def cycles(addresses: list[int | None], width: int) -> int:
    """Of one warp: lanes come in groups of 128 bytes, words of a bank one after the other."""
    found, lanes = 0, min(32, 128 // max(4, width))
    for first in range(0, 32, lanes):
        words = {
            address // 4 + word
            for address in addresses[first : first + lanes]
            if address is not None
            for word in range(max(1, width // 4))
        }
        found += max((sum(word % 32 == bank for word in words) for bank in range(32)), default=0)
    return found


@pytest.mark.parametrize("width", [2, 4, 8, 16])
@pytest.mark.parametrize("stride", [0, 1, 2, 5, 17, 32])
def test_cycles_of_rows(width: int, stride: int) -> None:
    addresses = np.arange(32) * max(4, width) * stride
    found = wavefronts(addresses[None], width, np.ones((1, 32), bool))
    assert found.tolist() == [cycles(addresses.tolist(), width)]


def test_known_conflicts() -> None:
    lanes, everyone = np.arange(32), np.ones((1, 32), bool)
    assert wavefronts(lanes[None] * 4, 4, everyone) == [1]
    assert wavefronts(lanes[None] * 128, 4, everyone) == [32]
    assert wavefronts(lanes[None] * 16, 16, everyone) == [4]
    assert wavefronts(lanes[None] * 64, 16, everyone) == [4 * 4]  # rows of 64 bytes: every second has its bank
    assert wavefronts(lanes[None] * 80, 16, everyone) == [4]  # rows of 64 bytes and 16 more


@pytest.mark.parametrize("seed", range(20))
def test_random_addresses_of_some_lanes(seed: int) -> None:
    rng = random.Random(seed)
    width = rng.choice([2, 4, 8, 16])
    warps = [[rng.randrange(0, 64) * width for _ in range(32)] for _ in range(3)]
    active = [[rng.random() < 0.7 for _ in range(32)] for _ in range(3)]
    active[2] = [False] * 32
    found = wavefronts(np.array(warps), width, np.array(active))
    there = [[a if on else None for a, on in zip(*pair, strict=True)] for pair in zip(warps, active, strict=True)]
    assert found.tolist() == [cycles(addresses, width) for addresses in there]
    touched = {(w, (a + n) // 32) for w, one in enumerate(there) for a in one if a is not None for n in (0, width - 1)}
    assert {tuple(pair) for pair in sectors(np.array(warps), width, np.array(active)).tolist()} == touched
