"""What the stages of ``lanes_stages.py`` read: keys, values and bias packed before the tasks, and what a tile converts.

All of it is in the dtype of sums: halves are converted here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from tvm_na.te.backward.lanes_index import TaskIndex
from tvm_na.te.common.blocks import local, stage, store


@dataclass(frozen=True)
class OfTiles:
    """What the queries of some tiles have.

    Attributes:
        buffer: Where it is.
        at: Its element of a tile, a query of that and a channel.
    """

    buffer: Any
    at: Callable[[Any, Any, Any], Any]


class Packed(TaskIndex):
    """Makes the copies, inside of TVM's IRBuilder.

    Attributes:
        box: Tiles, queries, rows and lanes that pass through a stage together.
    """

    box: tuple[int, int, int, int]

    def pack(self) -> None:
        """Keys and values with the columns innermost; perhaps keys as they are, one head together; the bias."""
        p, geo = self.problem, self.geo
        self.packed_key = self.transposed("packed_key", self.key, p.head_dim)
        self.packed_value = self.transposed("packed_value", self.value, p.head_dim_v)
        if self.tile.pack_keys:
            shape = (self.batch, p.heads_kv, geo.rows.count, geo.dilation, geo.packed_width, p.head_dim)
            self.key_rows = local("key_rows", shape, self.accum)
            store("key_rows", self.key_rows, shape, lambda b, h, y, r, x, d: self.packed(self.key, y, r, x, b, h, d))
        if self.rpb is not None:
            self.padded_bias = self.bias()

    def packed(self, source: Any, y: Any, r: Any, x: Any, b: Any, h: Any, d: Any) -> Any:
        """``source`` at column ``x`` of a group of a row; zero behind the end of the map."""
        geo = self.geo
        column = r + geo.dilation * x
        if geo.packed_width * geo.dilation <= geo.width:
            return self.convert.widened(source[(b, *geo.rows.place(y), column, h, d)])
        value = self.convert.widened(source[(b, *geo.rows.place(y), tirx.min(column, geo.width - 1), h, d)])
        return tirx.if_then_else(column < geo.width, value, self.const(0))

    def transposed(self, name: str, source: Any, channels: int) -> Any:
        """``[batch, heads_kv, row, column group, channel, column of the group]``."""
        geo = self.geo
        shape = (self.batch, self.problem.heads_kv, geo.rows.count, geo.dilation, channels, geo.packed_width)
        buffer = local(name, shape, self.accum)
        store(name, buffer, shape, lambda b, h, y, r, d, x: self.packed(source, y, r, x, b, h, d))
        return buffer

    def bias(self) -> Any:
        """The bias, padded by what lanes outside a window reach for."""
        geo, columns = self.geo, self.problem.kernel_size[-1]
        margin = geo.lanes - columns

        def padded(h: Any, y: Any, e: Any) -> Any:
            column = tirx.min(tirx.max(e - margin, 0), 2 * columns - 2)
            value = self.convert.widened(self.rpb[(h, *geo.rows.bias_place(y), column)])
            return tirx.if_then_else(tirx.all(e >= margin, e < margin + 2 * columns - 1), value, self.const(0))

        return stage("padded_bias", (self.problem.heads, geo.rows.bias_rows, 2 * geo.lanes - 1), self.accum, padded)

    def rows_of(self, name: str, source: Any, channels: int) -> OfTiles:
        """What the tiles' queries have in an argument, in the dtype of sums: each number meets many keys, and is
        converted once.
        """
        if self.convert.needed:
            widened = lambda n, u, x: self.convert.widened(source[(*self.at_query(n, u), x)])  # noqa: E731
            found = stage(name, (*self.box[:2], channels), self.accum, widened)
            return OfTiles(found, lambda n, u, x: found[n, u, x])
        return OfTiles(source, lambda n, u, x: source[(*self.at_query(n, u), x)])
