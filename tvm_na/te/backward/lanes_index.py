"""Where the queries and keys of a task are, for the stages of ``lanes_stages.py``.

Indices are those of a task: the n-th of some tiles, the u-th query of a tile, row ``a`` and lane ``l`` of its box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from tvm_na.problems.backward import BackwardProblem
from tvm_na.te.attention.lanes_tile import Geometry
from tvm_na.te.backward.lanes_tile import BackwardTile, Chunks
from tvm_na.te.common.halves import Conversions
from tvm_na.te.common.operands import GradientBlocks


class TaskIndex(GradientBlocks):
    """The arguments, and index arithmetic of the task that is being made.

    Attributes:
        convert: From the dtype of tensors to that of sums and back.
        task: Sample, head of keys and chunk.
        g: The head of queries, among those that share the head of keys.
        h: The head of queries.
        i: The row of queries.
        r: The dilation group of columns.
        first_tile: The number of the first of the tiles in its row.
    """

    task: list[Any]
    g: Any
    h: Any
    i: Any
    r: Any
    first_tile: Any

    def __init__(
        self, problem: BackwardProblem, tile: BackwardTile, batch: int | None, float16_instructions: bool
    ) -> None:
        super().__init__(problem, batch)
        self.convert = Conversions(self.problem.dtype, self.accum, float16_instructions)
        self.tile, self.geo = tile, Geometry(self.problem, tile.lanes())
        self.chunks = Chunks.of(self.geo.rows, tile.chunks)

    def at_query(self, n: Any, u: Any) -> tuple[Any, ...]:
        """Sample, position and head of the u-th query of the n-th tile."""
        column = self.r + self.geo.dilation * self.geo.query_column(self.r, self.t(n), u)
        return (self.task[0], *self.geo.rows.place(self.i), column, self.h)

    def t(self, n: Any) -> Any:
        """The number of the n-th tile in its row."""
        return self.first_tile * self.tile.tiles + n

    def column(self, n: Any, l: Any) -> Any:
        """The column, in its group, of a lane of the n-th tile's box."""
        return self.geo.first_lane(self.r, self.t(n)) + l

    def exists(self, n: Any, u: Any, a: Any, l: Any) -> Any:
        """Whether a query sees a key of its tile's box; queries that the last tile has too many see none."""
        there = self.geo.exists(self.i, self.r, self.t(n), u, a, self.column(n, l))
        return there if self.geo.even else tirx.all(there, self.is_query(n, u))

    def is_query(self, n: Any, u: Any) -> Any:
        """Whether the n-th tile has so many queries."""
        return self.t(n) * self.tile.queries + u < self.geo.length(self.r)

    def where_seen(self, at: Sequence[Any], value: Any) -> Any:
        """``value`` for a key that the query sees, else zero: zero times inf is not zero."""
        return tirx.Select(self.exists(*at), value, self.const(0))

    def at_bias(self, n: Any, u: Any, a: Any, l: Any) -> tuple[Any, Any]:
        """Row and column of the padded bias for a key of the box."""
        column = self.column(n, l) - self.geo.query_column(self.r, self.t(n), u)
        return self.geo.rows.bias_row(self.i, a), column + self.geo.lanes - 1

    def place(self, n: Any, a: Any, l: Any, x: Any) -> list[Any]:
        """Where the sums of a key of the n-th tile's box are."""
        row = self.geo.rows.key_row(self.i, a) - self.chunks.first_key_row(self.task[2])
        return [*self.task, row, self.r, self.column(n, l), x]
