"""What the schedules of the lanes formulations, forward and backward, have in common: register-blocked products over a
box of keys, and vectors of its lanes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm_na.schedules.cpu.blocks import MOST_AT_ONCE, value_block
from tvm_na.schedules.cpu.estimate import scores_of
from tvm_na.schedules.cpu.vectors import channel_vector
from tvm_na.schedules.helpers import FuncSchedule
from tvm_na.te.attention.lanes_tile import lanes_of
from tvm_na.te.common.rows import Rows


class BoxSchedule(FuncSchedule):
    """Transforms the stages of a tile; subclasses have the attention as their problem, and its tile."""

    def __post_init__(self) -> None:
        rows = Rows(self.problem)
        self.map_rows, self.rows = rows.count, rows.keys
        self.vectors = lanes_of(self.problem, self.tile) // self.tile.vector
        self.registers = self.target.vector_registers

    def inner_loops(self, name: str, n: int) -> list[Any]:
        """The last loops around a stage."""
        return self.loops(name)[-n:]

    def vector_of(self, loop: Any, dim: int) -> list[Any]:
        """A loop over ``dim`` channels split into vectors; the inner one is to be vectorised."""
        return self.split(loop, [None, channel_vector(dim, self.tile.vector)])

    def lanes_of(self, loop: Any) -> list[Any]:
        """A loop over lanes split into vectors; the inner one is to be vectorised."""
        return self.split(loop, [None, self.tile.vector])

    def vectorize_channels(self, name: str, dim: int) -> None:
        """Vectors along the last loop of a stage, which is over ``dim`` channels."""
        self.sch.vectorize(self.vector_of(self.loops(name)[-1], dim)[1])

    def box_products(self, blocks: Mapping[str, int]) -> None:
        """queries x rows x vectors accumulators, the reduction over channels inside of every block of them.

        Args:
            blocks: The channels of each block, by its name. All are blocked alike.
        """
        sch, tile = self.sch, self.tile
        channel_factors: dict[int, list[Any]] = {}
        split: tuple[Any, Any, Any] | None = None
        for name, dim in blocks.items():
            u, a, l, d = self.inner_loops(name, 4)
            v, lane = self.lanes_of(l)
            if split is None:
                block = scores_of(self.problem, tile, self.target)
                vector_factors = self.tune.factors("score vectors at once", v, self.vectors, block.vectors)
                query_factors = self.tune.factors("score queries at once", u, tile.queries, block.queries)
                options = range(1, min(self.rows, MOST_AT_ONCE) + 1)
                row_block = self.tune.one_of("score rows at once", options, default=block.rows)
                split = (vector_factors, query_factors, row_block)
            v_outer, v_inner = self.split(v, split[0])
            u_outer, u_inner = self.split(u, split[1])
            a_outer, a_inner = self.split(a, [None, split[2]])
            if dim not in channel_factors:
                of = "score" if not channel_factors else "weight"
                channel_factors[dim] = self.tune.factors(f"{of} channels at once", d, dim, 1, limit=8)
            d_outer, d_inner = self.split(d, channel_factors[dim])
            sch.reorder(u_outer, a_outer, v_outer, d_outer, d_inner, a_inner, v_inner, u_inner, lane)
            # Unrolled, so that a last block with fewer rows costs no test inside.
            self.unroll(a_outer, d_inner, a_inner, v_inner, u_inner)
            sch.vectorize(lane)
            sch.vectorize(self.split_off_init(name, d_outer, unrolled=3))

    def softmax_row_factors(self, name: str) -> list[Any]:
        """How many rows of a box are unrolled."""
        short = self.rows * self.vectors <= 16
        a, _ = self.inner_loops(name, 2)
        return self.tune.factors("softmax rows at once", a, self.rows, self.rows if short else 1)

    def elementwise(self, name: str, factors: list[Any]) -> None:
        """A stage over the box, as vectors of lanes."""
        a, l = self.inner_loops(name, 2)
        v, lane = self.lanes_of(l)
        self.unroll_rows(a, v, factors)
        self.sch.vectorize(lane)

    def fold(self, name: str, factors: list[Any]) -> None:
        """A reduction of the box: over rows and vectors (``name_lanes``), then over the lanes of a vector."""
        lane, a, v = self.inner_loops(f"{name}_lanes", 3)
        self.sch.reorder(a, v, lane)
        a = self.unroll_rows(a, v, factors)
        self.sch.vectorize(lane)
        self.sch.vectorize(self.split_off_init(f"{name}_lanes", a, unrolled=0))
        self.unroll(self.inner_loops(name, 1)[0])

    def unroll_rows(self, a: Any, v: Any, factors: list[Any]) -> Any:
        """Unroll the inner part of a row loop and the vectors in it; returns the row loop's outer part."""
        outer, inner = self.split(a, factors)
        self.unroll(inner)
        if self.vectors <= 4:
            self.unroll(v)
        return outer

    def window_products(
        self, name: str, dim: int, rows_outside: bool = False, shared: bool = True, unrolled: bool = False
    ) -> None:
        """queries x vectors of ``dim`` channels as accumulators, over the keys of the window.

        Args:
            name: The stage.
            dim: Its channels.
            rows_outside: Whether a block of tiles meets one row of the window after the other.
            shared: Whether all queries of a tile meet the same keys.
            unrolled: Whether the keys of a row are unrolled.
        """
        sch = self.sch
        *tile, u, x, a, l = self.inner_loops(name, 5)
        x, lane = self.vector_of(x, dim)
        vectors = dim // channel_vector(dim, self.tile.vector)
        block = value_block(self.tile.queries, vectors, shared, self.registers)
        x_outer, x_inner = self.tune.split("value vectors at once", x, vectors, block.vectors)
        options = range(1, min(self.tile.queries, MOST_AT_ONCE) + 1)
        query_block = self.tune.one_of("value queries at once", options, default=block.queries)
        u_outer, u_inner = self.split(u, [None, query_block])
        if rows_outside:
            sch.reorder(a, *tile, u_outer, x_outer, l, u_inner, x_inner, lane)
        else:
            sch.reorder(u_outer, x_outer, a, l, u_inner, x_inner, lane)
        self.unroll(u_outer, *([l] if unrolled else []), u_inner, x_inner)
        sch.vectorize(lane)
        sch.vectorize(self.split_off_init(name, a, unrolled=2))
