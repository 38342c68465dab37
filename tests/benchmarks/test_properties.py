"""What the paper says of neighborhood attention (arXiv 2204.07143), of the compiled operator: linear cost,
self-attention once the window is the map, translational equivariance.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.properties import __main__ as properties
from benchmarks.properties.cases import (
    attend,
    dense_flops,
    distance_to_self_attention,
    drawn,
    interior,
    self_attention,
    shift_errors,
)
from benchmarks.properties.plots import plot_cost, plot_shift, plot_window
from tests.conftest import TOLERANCE
from tests.helpers import relative_error
from tests.ops.gradients import assert_close
from tvm_na.measure.timing import Timing
from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention import lanes_tile
from tvm_na.te.common.window import group_window

# --- cost


def test_products_grow_with_tokens_and_those_of_self_attention_with_their_square() -> None:
    small, large = (NAProblem.make((n, n), 7, 2, 32) for n in (14, 56))
    assert large.useful_flops == 16 * small.useful_flops
    assert dense_flops(large) == 16**2 * dense_flops(small)
    # The paper's table, in multiply-adds of a layer without its projections: 2 h w d k^2 and 2 (h w)^2 d.
    assert large.useful_flops == 2 * (2 * 56 * 56 * 64 * 7 * 7)
    assert dense_flops(large) == 2 * (2 * (56 * 56) ** 2 * 64)
    assert dense_flops(small) / small.useful_flops == (14 / 7) ** 2


@pytest.mark.parametrize("spatial", [9, (5, 6), (3, 4, 5)])
def test_a_window_as_large_as_the_map_costs_what_self_attention_costs(spatial: Any) -> None:
    assert (problem := NAProblem.make(spatial, spatial, 4, 8, heads_kv=2, head_dim_v=5)).heads == 4
    assert problem.useful_flops == dense_flops(problem)


def test_a_longer_line_takes_no_longer_to_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(t: int, *rest: Any) -> Any:
        seen.append(t)
        return group_window(t, *rest)

    monkeypatch.setattr(lanes_tile, "group_window", counted)
    for queries, (k, stride, causal) in itertools.product((1, 4, 6), ((7, 1, False), (6, 4, False), (5, 3, True))):
        options: dict[str, Any] = {"stride": stride, "is_causal": causal}
        starts = [group_window(t, 400, k, stride, causal)[0] for t in range(400)]
        firsts = range(0, 400, queries)
        most = max(starts[min(first + queries, 400) - 1] - starts[first] + k for first in firsts)
        seen.clear()
        for length in (400, 2**24):
            assert lanes_tile.spanned_columns(NAProblem.make(length, k, 1, 4, **options), queries) == most
        assert len(seen) < 400


# --- self-attention is the largest window

WHOLE: dict[str, NAProblem] = {
    "line": NAProblem.make(19, 19, 2, 8),
    "line-shared": NAProblem.make(21, 21, 3, 5, stride=21, heads_kv=1, head_dim_v=7, dtype="float64"),
    "map": NAProblem.make((7, 10), (7, 10), 6, 16, heads_kv=2, head_dim_v=9),
    "map-double": NAProblem.make((6, 9), (6, 9), 2, 8, stride=(4, 3), dtype="float64"),
    "volume": NAProblem.make((3, 4, 5), (3, 4, 5), 4, 8, stride=(1, 2, 5), heads_kv=2, head_dim_v=3),
}


def assert_is_self_attention(problem: NAProblem, seed: int, **options: Any) -> None:
    query, key, value, _ = drawn(problem, problem.spatial, 2, seed)
    right = self_attention(*doubled(query, key, value), **options)
    assert relative_error(attend(problem, query, key, value), right) <= TOLERANCE[problem.dtype]


def doubled(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().double() for t in tensors]


@pytest.mark.parametrize("problem", WHOLE.values(), ids=WHOLE)
def test_a_window_that_covers_the_map_is_self_attention(problem: NAProblem) -> None:
    assert_is_self_attention(problem, 0)


@pytest.mark.parametrize(("stride", "dtype"), [(1, "float32"), (5, "float64"), (23, "float32")])
def test_a_causal_window_that_covers_the_line_is_causal_self_attention(stride: int, dtype: str) -> None:
    problem = NAProblem.make(23, 23, 4, 6, stride=stride, is_causal=True, heads_kv=2, head_dim_v=5, dtype=dtype)
    assert_is_self_attention(problem, 1, is_causal=True)


def test_along_one_causal_axis_a_window_that_covers_the_map_is_self_attention_under_a_mask() -> None:
    problem = NAProblem.make((6, 7), (6, 7), 2, 8, is_causal=(True, False))
    row = torch.arange(6).repeat_interleave(7)
    mask = torch.zeros(42, 42, dtype=torch.float64).masked_fill(row[:, None] < row[None], -math.inf)
    assert_is_self_attention(problem, 2, mask=mask)


def test_a_bias_over_the_whole_map_is_a_bias_of_self_attention() -> None:
    problem = NAProblem.make((5, 6), (5, 6), 2, 8, bias=True)
    query, key, value, rpb = drawn(problem, problem.spatial, 2, 3)
    assert rpb is not None
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(5), torch.arange(6), indexing="ij"))
    mask = rpb.double()[:, y[None] - y[:, None] + 4, x[None] - x[:, None] + 5]
    right = self_attention(*doubled(query, key, value), mask=mask)
    assert relative_error(attend(problem, query, key, value, rpb), right) <= TOLERANCE["float32"]


def test_a_dilated_window_that_covers_its_groups_is_self_attention_within_each() -> None:
    problem = NAProblem.make((8, 9), (4, 3), 2, 8, dilation=(2, 3))
    query, key, value, _ = drawn(problem, problem.spatial, 1, 4)
    out = attend(problem, query, key, value)
    for row in range(2):
        for column in range(3):
            group = (slice(None), slice(row, None, 2), slice(column, None, 3))
            right = self_attention(*doubled(query[group], key[group], value[group]))
            assert relative_error(out[group], right) <= TOLERANCE["float32"], (row, column)


def test_its_gradients_are_those_of_self_attention() -> None:
    problem = NAProblem.make(17, 17, 2, 4, heads_kv=1, head_dim_v=3, dtype="float64")
    leaves = [t.requires_grad_() for t in drawn(problem, problem.spatial, 2, 5) if t is not None]
    out = attend(problem, *leaves)
    d_out = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, d_out)
    assert_close(found, torch.autograd.grad(self_attention(*leaves), leaves, d_out))


def test_the_difference_to_self_attention_falls_as_the_window_grows() -> None:
    found = [distance_to_self_attention(NAProblem.make((8, 8), k, 2, 4)) for k in (2, 5, 7, 8)]
    assert all(larger > smaller for larger, smaller in itertools.pairwise(found)), found
    assert found[0] > 1 and found[-1] <= TOLERANCE["float32"]


# --- translational equivariance

SHIFTED: dict[str, tuple[NAProblem, tuple[int, ...]]] = {
    "map": (NAProblem.make((16, 19), 7, 2, 8, bias=True), (1, 2)),
    "even": (NAProblem.make((14, 15), (4, 6), 2, 5, bias=True, dtype="float64"), (3, 1)),
    "dilated": (NAProblem.make((23, 21), (3, 5), 4, 8, dilation=(4, 2), bias=True, heads_kv=2), (4, 2)),
    "dilated-by-less": (NAProblem.make((23, 21), (3, 5), 4, 8, dilation=(4, 2), bias=True, heads_kv=2), (1, 3)),
    "causal": (NAProblem.make((15, 16), 5, 2, 8, dilation=(1, 2), is_causal=(True, False)), (2, 2)),
    "line": (NAProblem.make(50, 9, 2, 8, dilation=3, bias=True), (3,)),
    "volume": (NAProblem.make((6, 7, 12), (3, 2, 3), 2, 4, dilation=(1, 1, 2), bias=True), (1, 0, 2)),
}


@pytest.mark.parametrize(("problem", "shift"), SHIFTED.values(), ids=SHIFTED)
def test_a_shifted_map_has_the_shifted_output_away_from_borders_and_only_there(
    problem: NAProblem, shift: tuple[int, ...]
) -> None:
    errors = shift_errors(problem, shift)
    inside = interior(problem, shift)
    assert errors[inside].numel() and errors[inside].max() <= TOLERANCE[problem.dtype]
    # Further out windows are cut off, in one of the maps or in both at different places. (Along axes without a shift
    # both are cut off alike; and some are where a dilation group begins at the same position in both.)
    outside = torch.ones_like(errors, dtype=torch.bool)
    outside[tuple(part if by else slice(None) for part, by in zip(inside, shift, strict=True))] = False
    assert errors[outside].max() > 1e-2
    if all(by % d == 0 for by, d in zip(shift, problem.dilation, strict=True)):
        assert errors[outside].min() > 1e-4


@pytest.mark.parametrize("dilation", [1, 2])
def test_blocked_attention_is_equivariant_to_shifts_by_whole_blocks_alone(dilation: int) -> None:
    """Attention within blocks, as Swin's, is the window with a stride of its length."""
    k, size = 4, (24, 32)
    problem = NAProblem.make(size, k, 2, 8, stride=k, dilation=dilation, bias=True)
    block = k * dilation
    for shift in ((block, block), (2 * block, 0), (0, block)):
        assert shift_errors(problem, shift).max() <= TOLERANCE["float32"], shift
    one = dilation  # by less some dilation groups begin at the same position
    for shift in ((one, 0), (0, one), (one, one), (block - one, 0), (block, one), (block // 2, block)):
        # Not one query keeps its window.
        assert shift_errors(problem, shift).min() > 1e-4, shift
    assert shift_errors(problem, (1, 0)).max() > 1e-2
    sliding = NAProblem.make(size, k, 2, 8, dilation=dilation, bias=True)
    assert shift_errors(sliding, (1, 0))[interior(sliding, (1, 0))].max() <= TOLERANCE["float32"]


def test_between_the_two_a_shift_by_a_multiple_of_the_stride_is_kept() -> None:
    problem = NAProblem.make((24, 40), (5, 6), 2, 8, stride=(2, 3), dilation=(1, 2), bias=True)
    inside = (slice(5, -5), slice(12, -12))
    for shift in ((2, 6), (4, 0), (0, 6)):
        assert shift_errors(problem, shift)[inside].max() <= TOLERANCE["float32"], shift
    for shift in ((1, 0), (0, 2), (2, 1), (2, 3)):
        assert shift_errors(problem, shift)[inside].max() > 1e-2, shift


def test_where_nothing_is_cut_off_is_known_without_a_stride_alone() -> None:
    with pytest.raises(ValueError, match=r"^stride: required 1 along each axis, got \(3, 3\)$"):
        interior(NAProblem.make((9, 9), 3, 1, 4, stride=3), (1, 1))


# --- the page


def cost(size: int, seconds: float, error: float = 0.0) -> properties.Cost:
    """Costs of a map that grow with its tokens for ours and with their square for others."""
    timings, footprints, tokens = {}, {}, size * size
    for name in memory.CANDIDATES:
        grown = tokens if name == memory.OURS else tokens**2
        timings[name], footprints[name] = Timing((seconds * grown,)), 1000 * grown
    return properties.Cost(size, timings, footprints, dict.fromkeys(memory.CANDIDATES, error))


def test_the_page_gets_its_numbers_between_its_marks(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "guide" / "properties.md"
    copy = tmp_path / "page.md"
    copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    for _ in range(2):
        properties.put_into(copy, properties.markdown_of([cost(14, 1e-6), cost(28, 1e-6)], 3, 2))
    text = copy.read_text(encoding="utf-8")
    assert text.count("pictures/cost.png") == 1
    assert "| 28x28 | 4.9 | 78.7 | 0.784 | 0.8 | 615 | 614.7 | 615 | 614.7 |" in text
    assert "| exponent | 1 | 2 | 1.00 | 1.00 | 2.00 | 2.00 | 2.00 | 2.00 |" in text
    assert text.partition(properties.BEGIN)[0] == page.read_text(encoding="utf-8").partition(properties.BEGIN)[0]
    assert text.partition(properties.END)[2] == page.read_text(encoding="utf-8").partition(properties.END)[2]
    copy.write_text(text.replace(properties.END, ""), encoding="utf-8")
    with pytest.raises(ValueError, match="^page: required the marks"):
        properties.put_into(copy, "")


def test_wrong_numbers_have_no_time_and_no_exponent() -> None:
    costs = [cost(14, 1e-6), cost(28, 1e-6, error=1e-3)]
    assert [c.seconds(memory.OURS) for c in costs] == [14 * 14 * 1e-6, None]
    assert properties.exponents_of(costs)[memory.OURS] == {"time": None, "memory": 1.0}
    assert "| wrong |" in properties.markdown_of(costs, 1, 1)


def test_pictures_are_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    for folder in (tmp_path / "first", tmp_path / "second"):
        shown = {name: [1.0, None] for name in memory.CANDIDATES}
        plot_cost([14, 28], {"NA": [4, 16], "dense": [4, 64]}, shown, {"NA": [4, 8]}, folder / "cost.png")
        plot_window(28, {3: 2.0, 28: 1e-7}, folder / "window.png")
        plot_shift(
            {"a": torch.zeros(4, 5), "b": torch.rand(4, 5, generator=torch.Generator().manual_seed(0))},
            folder / "shift.png",
        )
    for name in ("cost.png", "window.png", "shift.png"):
        content = (tmp_path / "first" / name).read_bytes()
        assert content.startswith(b"\x89PNG") and content == (tmp_path / "second" / name).read_bytes()


def test_what_is_compared_is_right() -> None:
    query, key, value, _ = drawn(memory.problem_of(9), (9, 9), 1, 0)
    right = self_attention(*doubled(query, key, value)).flatten(1, 2).transpose(1, 2)
    for name in (memory.FUSED, memory.WRITTEN_OUT):
        assert relative_error(memory.call_of(name, query, key, value)(), right) <= TOLERANCE["float32"]
    assert torch.equal(
        memory.call_of(memory.OURS, query, key, value)(), attend(memory.problem_of(9), query, key, value)
    )
