"""Where a warp keeps what, stage by stage of the band formulation: the layouts of ``mma.py`` with the stages' indices.

A stage's indices are (sample, head, residues, sub-tile along rows and columns) and its own; a layout ends with (lane,
number). Which layouts, and with them which instructions, depends on the dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.schedules.cuda import mma, mma_tf32
from tvm_na.te.attention.band_axis import SIDE, BandTile

Layout = Callable[..., tuple[Any, ...]]


class Instructions(NamedTuple):
    """The names of the tensor intrinsics of each stage."""

    load_queries: str
    load_keys: str
    load_values: str
    scores: str
    sums: str
    total: str


@functools.cache
def instructions_for(dtype: str) -> Instructions:
    """The tensor intrinsics for a problem's dtype; TVM knows them afterwards, also where it meets one in a record."""
    # TVMScript reads the sources of every function on the stack, for each that it parses: a new thread has few.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_define, dtype).result()


def _define(dtype: str) -> Instructions:
    for width in (8, SIDE):
        mma.clear(width)
    if dtype == TF32:
        tf32 = mma_tf32
        loads = (tf32.load_left(), tf32.load_right(), tf32.load_right_transposed())
        return Instructions(*loads, tf32.multiply(), tf32.multiply_product(), tf32.multiply_narrow())
    multiply = mma.multiply(dtype)
    loads = (mma.load_left(dtype), mma.load_right(dtype), mma.load_right_transposed(dtype))
    return Instructions(*loads, multiply, multiply, mma.multiply_narrow(dtype))


def layouts_of(problem: NAProblem, tile: BandTile, passes: Sequence[str]) -> dict[str, Layout]:
    """The layout of every stage that is in registers.

    Args:
        problem: What is computed.
        tile: The sub-tile.
        passes: The suffixes of the passes.
    """
    tf32 = problem.dtype == TF32
    rows = mma.rows_first
    left, right, left_of_product, right_of_product = (
        (mma_tf32.left, mma_tf32.right, mma_tf32.left_of_product, mma_tf32.right_of_product)
        if tf32
        else (rows, mma.columns_first, rows, mma.columns_first)
    )

    def apart(i: Any, j: Any) -> tuple[Any, Any]:
        # Not the order of a product: TVM would let what is computed of it share its buffer, which its LowerWarpMemory
        # then refuses.
        lane, _ = rows(i, j)
        return lane, 4 * (i // 8) + 2 * (j // 8) + j % 2

    def of_scores(layout: Layout) -> Layout:
        return lambda *t: (*t[:7], t[8] // SIDE, *layout(t[7], t[8] % SIDE))

    def of_channels(layout: Layout) -> Layout:
        return lambda *t: (*t[:6], t[7] // SIDE, *layout(t[6], t[7] % SIDE))

    def normalized(*t: Any) -> tuple[Any, ...]:
        # In float32 it would share the buffer of the sums, see above.
        return of_channels(apart if tf32 else rows)(*t[:6], t[6] * tile.columns + t[7], t[8])

    def of_lanes(*t: Any) -> tuple[Any, ...]:
        return (*t[:-2], *mma.lanes_of_rows(t[-2], t[-1]))

    def keys(*t: Any) -> tuple[Any, ...]:
        return (*t[:7], t[7] // SIDE, t[8] // SIDE, *right(t[7] % SIDE, t[8] % SIDE))

    def values(*t: Any) -> tuple[Any, ...]:
        return (*t[:7], t[7] // SIDE, t[8] // SIDE, *right_of_product(t[8] % SIDE, t[7] % SIDE))

    layouts: dict[str, Any] = {
        "query_tile": of_channels(left),
        "value_tile": values,
        "weights": of_scores(left_of_product),
        "attended": of_channels(rows),
        "total": lambda *t: (*t[:6], *rows(t[6], t[7])),
        "ones": right_of_product,
        "normalized": normalized,
        **dict.fromkeys(("row_maximum", "lane_maximum", "maximum"), of_lanes),
    }
    for suffix in passes:
        layouts |= {f"key_tile{suffix}": keys, f"dots{suffix}": of_scores(rows), f"scores{suffix}": of_scores(apart)}
    return layouts
