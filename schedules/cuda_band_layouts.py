"""Where a warp keeps what, stage by stage of the band formulation: the layouts of ``mma.py`` with the stages' indices.

A stage's indices are (sample, head, residues, sub-tile along rows and columns) and its own; a layout ends with (lane,
number).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm_na.schedules import mma
from tvm_na.te.band_axis import SIDE, BandTile

Layout = Callable[..., tuple[Any, ...]]


def layouts_of(tile: BandTile, passes: Sequence[str]) -> dict[str, Layout]:
    """The layout of every stage that is in registers.

    Args:
        tile: The sub-tile.
        passes: The suffixes of the passes.
    """
    rows, right = mma.rows_first, mma.columns_first

    def scores(*t: Any) -> tuple[Any, ...]:
        return (*t[:7], t[8] // SIDE, *rows(t[7], t[8] % SIDE))

    def scores_apart(*t: Any) -> tuple[Any, ...]:
        # Not the order of dots: TVM would let both share one buffer, which its LowerWarpMemory then refuses.
        lane, _ = rows(t[7], t[8] % SIDE)
        return (*t[:7], t[8] // SIDE, lane, 4 * (t[7] // 8) + 2 * (t[8] % SIDE // 8) + t[8] % 2)

    def channels(*t: Any) -> tuple[Any, ...]:
        return (*t[:6], t[7] // SIDE, *rows(t[6], t[7] % SIDE))

    def normalized(*t: Any) -> tuple[Any, ...]:
        return channels(*t[:6], t[6] * tile.columns + t[7], t[8])

    def of_lanes(*t: Any) -> tuple[Any, ...]:
        return (*t[:-2], *mma.lanes_of_rows(t[-2], t[-1]))

    def keys(*t: Any) -> tuple[Any, ...]:
        return (*t[:7], t[7] // SIDE, t[8] // SIDE, *right(t[7] % SIDE, t[8] % SIDE))

    def values(*t: Any) -> tuple[Any, ...]:
        return (*t[:7], t[7] // SIDE, t[8] // SIDE, *right(t[8] % SIDE, t[7] % SIDE))

    layouts: dict[str, Any] = {
        "query_tile": channels,
        "value_tile": values,
        "weights": scores,
        "attended": channels,
        "total": lambda *t: (*t[:6], *rows(t[6], t[7])),
        "ones": right,
        "normalized": normalized,
        **dict.fromkeys(("row_maximum", "lane_maximum", "maximum"), of_lanes),
    }
    for suffix in passes:
        layouts |= {f"key_tile{suffix}": keys, f"dots{suffix}": scores, f"scores{suffix}": scores_apart}
    return layouts
