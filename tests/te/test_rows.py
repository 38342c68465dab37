"""Rows, all axes but the last as one: against the brute-force definition of windows, for one to three axes."""

from __future__ import annotations

import itertools
import random
from math import prod

import pytest

from tests import brute
from tests.helpers import random_problem
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.schedules.cpu import attention as cpu
from tvm_na.schedules.cpu import backward as cpu_backward
from tvm_na.targets.target import detect_target
from tvm_na.te.attention.lanes_tile import Geometry
from tvm_na.te.backward.lanes_tile import Chunks
from tvm_na.te.common.rows import Rows


def problems(count: int = 60) -> list[NAProblem]:
    rng = random.Random(3)
    return [random_problem(rng, rank=1 + n % 3, sizes=(2, 9 if n % 3 == 2 else 20)) for n in range(count)]


def windows(problem: NAProblem, i: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The rows of keys that row ``i`` sees, in order, each with its row of a bias; both as indices along the axes."""
    rows = list(itertools.product(*(range(n) for n in problem.spatial[:-1])))
    seen = [brute.neighbors(p, *axis) for p, axis in zip(rows[i], problem.axes, strict=False)]
    found = []
    for key in itertools.product(*seen):
        relative = zip(key, rows[i], problem.dilation, problem.kernel_size, strict=False)
        found.append((key, tuple((p - q) // d + k - 1 for p, q, d, k in relative)))
    return found


@pytest.mark.parametrize("problem", problems(), ids=str)
def test_rows_are_those_of_the_windows(problem: NAProblem) -> None:
    rows = Rows(problem)
    assert rows.count == prod(problem.spatial[:-1])
    for i in range(rows.count):
        there = [a for a in range(rows.keys) if all(rows.exists(i, a))]
        found = [(rows.place(rows.key_row(i, a)), rows.bias_place(rows.bias_row(i, a))) for a in there]
        assert found == windows(problem, i)
        # What causality masks can be read all the same.
        assert all(0 <= rows.key_row(i, a) < rows.count for a in range(rows.keys))
        assert all(0 <= rows.bias_row(i, a) < rows.bias_rows for a in range(rows.keys))
        assert all(rows.packed_row(*rows.key(i, a)) == rows.key_row(i, a) for a in range(rows.keys))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 100])
def test_chunks_reach_every_row_that_their_own_see(count: int) -> None:
    for problem in problems():
        rows = Rows(problem)
        chunks = Chunks.of(rows, count)
        assert 1 <= chunks.count <= min(count, rows.count)
        assert (chunks.count - 1) * chunks.rows < rows.count <= chunks.count * chunks.rows
        assert count > 1 or chunks.reach <= rows.count
        for chunk in range(chunks.count):
            first = chunks.first_key_row(chunk)
            assert 0 <= first <= rows.count - chunks.reach
            for i in range(chunk * chunks.rows, min((chunk + 1) * chunks.rows, rows.count)):
                assert all(first <= rows.key_row(i, a) < first + chunks.reach for a in range(rows.keys))


def test_packed_copies_are_within_the_bound_that_guards_32_bits() -> None:
    target = detect_target()
    for problem in problems(90):
        with_sums = cpu_backward.tiles(BackwardProblem(problem), target)
        for tile in [*cpu.tiles(problem, target), *with_sums]:
            geometry = Geometry(problem, tile)
            packed = prod(geometry.rows.groups) * geometry.dilation * geometry.packed_width
            assert packed <= problem.padded_tokens, (problem, tile)
        for tile in with_sums:
            chunks = Chunks.of(Rows(problem), tile.chunks)
            assert chunks.count * chunks.reach <= 2 * chunks.map_rows, (problem, tile)


def test_a_bound_of_padding_is_near_the_map() -> None:
    for spatial in (100_000, (400, 500), (50, 60, 70)):
        problem = NAProblem.make(spatial, 5, 2, 16, dilation=2)
        assert problem.padded_tokens < 8 * prod(problem.spatial)
