"""Sub-tiles of queries and bands of keys along one axis, for the band formulation (see ``band.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.te.common.formulation import Tile
from tvm_na.te.common.window import group_length, group_window, maximum, minimum, select

#: Queries of a sub-tile, and the keys and channels that a tensor core multiplies at once.
SIDE = 16
#: Dtypes of problems that tensor cores multiply.
DTYPES = ("float16", "bfloat16", TF32)


@dataclass(frozen=True)
class BandTile(Tile):
    """What the expression itself depends on.

    Attributes:
        rows: Rows of queries in a sub-tile.
        columns: Columns of queries in a sub-tile; 16 queries in all.
        passes: 1 where the scores of a sub-tile are kept until its output is known. 2 where they are computed twice,
            for their maximum and for the output, so that a window may be larger than the registers of a warp.
    """

    formulation = "band"
    rows: int
    columns: int
    passes: int = 1


@dataclass(frozen=True)
class BandAxis:
    """One spatial axis in sub-tiles.

    Positions are those of a group; ``place`` gives the position on the map.

    Attributes:
        length: Positions of the map.
        kernel_size: Of the window.
        dilation: Of the window: there are so many groups.
        is_causal: Whether windows end at their query.
        queries: Of a sub-tile, along this axis.
        keys: Of a band, along this axis.
    """

    length: int
    kernel_size: int
    dilation: int
    is_causal: bool
    queries: int
    keys: int

    @property
    def tiles(self) -> int:
        """Sub-tiles of the longest group."""
        return -(-group_length(self.length, self.dilation, 0) // self.queries)

    @property
    def all_keys(self) -> int:
        """Keys of the bands of all sub-tiles, one after the other: neighbors overlap."""
        return (self.tiles - 1) * self.queries + self.keys

    @property
    def bias_columns(self) -> int:
        """Columns of a table of biases: at least one more than there are biases, for what is masked."""
        columns = 2 * self.kernel_size
        # As many as divide a warp, if they are few: then its lanes fill whole rows.
        return next((n for n in (2, 4, 8, SIDE) if n >= columns), columns)

    def group(self, residue: Any) -> Any:
        """The length of a group."""
        even = self.length % self.dilation == 0
        return self.length // self.dilation if even else group_length(self.length, self.dilation, residue)

    def query(self, residue: Any, tile: Any, m: Any) -> Any:
        """The position of a sub-tile's ``m``-th query; those beyond the end repeat the last."""
        return minimum(tile * self.queries + m, self.group(residue) - 1)

    def key(self, residue: Any, x: Any) -> Any:
        """The position of the ``x``-th key of all bands, wrapped; a band longer than the group has some outside."""
        before = self.kernel_size - 1 if self.is_causal else self.kernel_size // 2
        at = x - before
        wrapped = select(x >= self.group(residue) + before, at - self.keys, at)
        return select(x < before, at + self.keys, wrapped)

    def place(self, residue: Any, t: Any) -> Any:
        """Where on the map a position is; the nearest where it is outside."""
        fits = self.keys <= self.length // self.dilation  # a band in the shortest group: then nothing is outside
        inside = t if fits else maximum(minimum(t, self.group(residue) - 1), 0)
        return inside if self.dilation == 1 else inside * self.dilation + residue

    def sees(self, residue: Any, query: Any, key: Any) -> Any:
        """Whether the key is in the query's window."""
        start, end = group_window(query, self.group(residue), self.kernel_size, 1, self.is_causal)
        # One comparison without a sign; TVM also leaves the expression in a cast alone, instead of splitting the
        # minimum and maximum in it into cases.
        size = (end - start) if self.is_causal else self.kernel_size
        if self.kernel_size == 1:  # TVM makes "at most -1 without a sign" of that, and stops
            return key.equal(start)
        return _unsigned(key - start) <= _unsigned(size - 1)

    def bias_index(self, query: Any, key: Any) -> Any:
        """The index into the relative position bias; clamped where the key is outside of the window."""
        index = key - query + (self.kernel_size - 1)
        return maximum(minimum(index, 2 * self.kernel_size - 2), 0)


def _unsigned(x: Any) -> Any:
    from tvm import tirx

    return tirx.const(x, "uint32") if isinstance(x, int) else tirx.Cast("uint32", x)


def axes(problem: NAProblem, tile: BandTile) -> tuple[BandAxis, BandAxis]:
    """The rows and the columns of a problem of rank 2."""
    height, width = (n + k - 1 for n, k in zip((tile.rows, tile.columns), problem.kernel_size, strict=True))

    def axis(number: int, queries: int, keys: int) -> BandAxis:
        length, kernel_size, _, dilation, is_causal = problem.axes[number]
        return BandAxis(length, kernel_size, dilation, is_causal, queries, keys)

    return axis(0, tile.rows, height), axis(1, tile.columns, -(-width // SIDE) * SIDE)


def is_served(problem: NAProblem) -> bool:
    """Whether there is such an expression: rank 2, no stride, a dtype and head dimensions that tensor cores take."""
    dims = {problem.head_dim, problem.head_dim_v}
    return problem.rank == 2 and problem.dtype in DTYPES and problem.stride == (1, 1) and dims <= {16, 32, 64, 128}
