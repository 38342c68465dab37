"""Windows along one axis: Python integers against the brute-force definition, TVM expressions against both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests import brute
from tvm_na.te.common.window import axis_queries, axis_window, group_length, group_queries, group_window, most_queries

Axis = tuple[int, int, int, int, bool]

#: length, kernel_size, stride, dilation, is_causal
SAMPLE: list[Axis] = [
    (7, 7, 1, 1, False),
    (9, 3, 1, 1, False),
    (9, 4, 1, 2, False),
    (13, 3, 2, 2, False),
    (20, 6, 5, 3, False),
    (11, 1, 1, 1, True),
    (11, 4, 1, 1, True),
    (17, 5, 3, 3, True),
    (20, 5, 5, 4, True),
]


def axes(length: int, is_causal: bool) -> Iterator[Axis]:
    """Every legal kernel, stride and dilation of an axis."""
    for kernel_size in range(1, length + 1):
        for dilation in range(1, length // kernel_size + 1):
            for stride in range(1, kernel_size + 1):
                yield length, kernel_size, stride, dilation, is_causal


@pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("length", range(1, 21))
def test_neighbors_of_every_axis(length: int, is_causal: bool) -> None:
    for axis in axes(length, is_causal):
        dilation = axis[3]
        for i in range(length):
            residue, start, end = axis_window(i, *axis)
            assert [residue + dilation * t for t in range(start, end)] == brute.neighbors(i, *axis), (i, axis)


@pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("length", [1, 2, 7, 12, 20])
def test_what_holds_of_every_window(length: int, is_causal: bool) -> None:
    """Properties that do not repeat the formulas."""
    for axis in axes(length, is_causal):
        _, k, s, _, _ = axis
        starts: dict[tuple[int, int], int] = {}
        for i in range(length):
            found = brute.neighbors(i, *axis)
            group = brute.same_residue(i, length, axis[3])
            j = group.index(i)
            assert i in found, (i, axis)
            assert found == group[group.index(found[0]) :][: len(found)], (i, axis)
            assert starts.setdefault((i % axis[3], j // s), found[0]) == found[0], (i, axis)
            if is_causal:
                assert found[-1] == i, (i, axis)
                assert len(found) <= k, (i, axis)
                assert s > 1 or len(found) == min(k, j + 1), (i, axis)
            else:
                assert len(found) == k, (i, axis)


@pytest.mark.parametrize("length", [1, 2, 7, 12, 20])
def test_what_a_causal_window_masks_can_be_read(length: int) -> None:
    """kernel_size positions from the start lie on the map, and their bias indices in the bias, masked or not."""
    for axis in axes(length, True):
        _, k, _, d, _ = axis
        for i in range(length):
            residue, start, _ = axis_window(i, *axis)
            assert residue + d * (start + k - 1) < length, (i, axis)
            assert start - i // d + k - 1 >= 0, (i, axis)
            assert start + k - 1 - i // d + k - 1 <= 2 * k - 2, (i, axis)


def sees(axis: Axis) -> list[list[int]]:
    """For every position of an axis, the keys that it sees, in order."""
    return [brute.neighbors(i, *axis) for i in range(axis[0])]


def seen_by(axis: Axis) -> list[list[int]]:
    """For every position of an axis, the queries that see it, in order."""
    found = sees(axis)
    return [[i for i, keys in enumerate(found) if key in keys] for key in range(axis[0])]


@pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("length", range(1, 21))
def test_queries_of_every_axis(length: int, is_causal: bool) -> None:
    for axis in axes(length, is_causal):
        wanted = seen_by(axis)
        for i in range(length):
            residue, start, end = axis_queries(i, *axis)
            assert [residue + axis[3] * t for t in range(start, end)] == wanted[i], (i, axis)
            assert i in wanted[i], (i, axis)
        assert most_queries(*axis) == max(map(len, wanted)), axis


def test_windows_that_were_moved_are_seen_most() -> None:
    """Windows at a border are moved, not cut, so its last position is in few of them, and where they end is in many."""
    counts = [end - start for start, end in (group_queries(s, 12, 5, 1, False) for s in range(12))]
    assert counts == [3, 4, 5, 6, 7, 5, 5, 7, 6, 5, 4, 3]
    assert [most_queries(length, 5, 1, 1, False) for length in (12, 40)] == [7, 7]
    assert [most_queries(length, 5, 1, 1, True) for length in (12, 40)] == [5, 5]


@pytest.mark.parametrize("length", [6, 12, 20])
def test_stride_equal_to_the_kernel_is_blocked_attention(length: int) -> None:
    for k in (k for k in range(1, length + 1) if length % k == 0):
        for i in range(length):
            assert axis_window(i, length, k, k, 1, False)[1:] == (i // k * k, i // k * k + k)


def test_even_kernels_reach_one_further_back() -> None:
    assert [group_window(t, 7, 4, 1, False) for t in range(7)] == [
        (0, 4), (0, 4), (0, 4), (1, 5), (2, 6), (3, 7), (3, 7),
    ]  # fmt: skip


@pytest.mark.parametrize("length", range(1, 21))
def test_group_length(length: int) -> None:
    for dilation in range(1, length + 1):
        for residue in range(dilation):
            assert group_length(length, dilation, residue) == len(brute.same_residue(residue, length, dilation))


@pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])
def test_group_coordinates(is_causal: bool) -> None:
    """A window of an axis is the window of its group, whatever the dilation."""
    for axis in axes(15, is_causal):
        length, k, s, d, _ = axis
        for i in range(length):
            residue, start, end = axis_window(i, *axis)
            assert residue == i % d
            assert group_window(i // d, group_length(length, d, residue), k, s, is_causal) == (start, end)


def compiled(inputs: list[Any], outputs: list[Any]) -> Any:
    import tvm
    from tvm import te

    func = te.create_prim_func(inputs + outputs).with_attr("global_symbol", "main")
    return tvm.compile(tvm.IRModule({"main": func}), target="llvm")["main"]


@pytest.mark.parametrize("window", [axis_window, axis_queries])
def test_axes_as_tvm_expressions(window: Any) -> None:
    """The same formulas, compiled: one kernel that writes residue, start and end of every position."""
    from tvm import te

    zero = te.placeholder((1,), "int32", name="zero")

    def column(axis: Axis, n: int) -> Any:
        return te.compute((axis[0],), lambda i: zero[0] + window(i, *axis)[n])

    kernel = compiled([zero], [column(axis, n) for axis in SAMPLE for n in range(3)])
    results = [torch.full((axis[0],), -1, dtype=torch.int32) for axis in SAMPLE for _ in range(3)]
    kernel(torch.zeros(1, dtype=torch.int32), *results)
    for a, axis in enumerate(SAMPLE):
        residue, start, end = (t.tolist() for t in results[3 * a : 3 * a + 3])
        found = [[residue[i] + axis[3] * t for t in range(start[i], end[i])] for i in range(axis[0])]
        assert found == (seen_by(axis) if window is axis_queries else sees(axis)), axis


SIZES = [(n, k, s) for n in range(1, 21) for k in range(1, n + 1) for s in range(1, k + 1)]


@pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize(
    ("window", "cases"), [(group_window, [(n, 5, 3) for n in range(5, 21)]), (group_queries, SIZES)]
)
def test_groups_as_tvm_expressions(window: Any, cases: list[tuple[int, int, int]], is_causal: bool) -> None:
    """The length is an expression too, as that of a dilation group whose residue varies; of queries all sizes are."""
    from tvm import te

    sizes = te.placeholder((len(cases), 3), "int32", name="sizes")

    def border(n: int) -> Any:
        def value(row: Any, t: Any) -> Any:
            k, s = (5, 3) if window is group_window else (sizes[row, 1], sizes[row, 2])
            return window(t, sizes[row, 0], k, s, is_causal)[n]

        return te.compute((len(cases), 20), value)

    kernel = compiled([sizes], [border(0), border(1)])
    starts, ends = (torch.full((len(cases), 20), -99, dtype=torch.int32) for _ in range(2))
    kernel(torch.tensor(cases, dtype=torch.int32), starts, ends)
    for (n, k, s), start, end in zip(cases, starts.tolist(), ends.tolist(), strict=True):
        found = [list(range(*borders)) for borders in zip(start, end, strict=True)]
        axis = (n, k, s, 1, is_causal)
        assert found[:n] == (seen_by(axis) if window is group_queries else sees(axis)), axis
