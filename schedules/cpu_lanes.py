"""The schedule of the lanes formulation on a CPU.

A task is a range of rows of some heads. In each row, a block of tiles goes through all stages at once: scores and
output are register-blocked matrix products, the softmax between them runs over vectors of lanes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm_na.problem import NAProblem
from tvm_na.schedules.base import Decisions, largest_divisor
from tvm_na.target import NATarget
from tvm_na.te.lanes import LanesTile, lanes_of

# The stages of a tile, last first.
_TILE_STAGES = ("attended", "inverse", "total", "total_lanes", "weights", "maximum", "maximum_lanes", "scores", "dots")


@dataclass(frozen=True)
class Structure:
    """How the loops are nested.

    Attributes:
        pack_in_task: Whether each task packs the keys (and values) that it reads, instead of all of them being
            packed before: one parallel region less, but rows that two tasks read are packed twice.
        value_rows_outside: Whether a block of tiles meets one row of values after the other, instead of each
            tile all of its rows: values are read while they are near, sums are written once per row.
    """

    pack_in_task: bool
    value_rows_outside: bool


#: By name, the default first.
STRUCTURES = {
    "pack first": Structure(False, False),
    "pack in task": Structure(True, False),
    "pack first, value rows outside": Structure(False, True),
    "pack in task, value rows outside": Structure(True, True),
}


_DEFAULT = next(iter(STRUCTURES.values()))
# Where the structures that only the tuner looks at start from: as many rows as are worth packing again at the edges
# of a task, and as many queries as the first cache holds the scores of.
_ROWS_PER_TASK, _QUERIES_AT_ONCE = 14, 64


class LanesSchedule:
    """Schedules one PrimFunc; see the module."""

    def __init__(
        self, sch: Any, problem: NAProblem, tile: LanesTile, target: NATarget, structure: Structure, decide: Decisions
    ) -> None:
        self.sch, self.problem, self.tile, self.structure, self.decide = sch, problem, tile, structure, decide
        self.rows = problem.kernel_size[0]
        self.vectors = lanes_of(problem, tile) // tile.vector
        # Accumulators that fit beside the operands of a multiply-add.
        self.accumulators = target.vector_registers * 3 // 4

    def build(self) -> None:
        """Apply every transformation."""
        self.place_in_tasks()
        self.place_in_tiles()
        self.pack()
        self.dots()
        self.softmax()
        self.attended()

    def block(self, name: str) -> Any:
        return self.sch.get_sblock(name)

    def inner_loops(self, block: Any, n: int) -> list[Any]:
        return list(self.sch.get_loops(block)[-n:])

    def place_in_tasks(self) -> None:
        """Loops of the outputs: batch, heads, rows (parallel); then a task's heads, and their rows."""
        sch, p = self.sch, self.problem
        row_factors, head_factors = None, None
        rows = []
        for name in ("out", "lse") if p.return_lse else ("out",):
            batch, i, j, head, *rest = sch.get_loops(self.block(name))
            if row_factors is None:
                rows_per_task = largest_divisor(p.spatial[0], _ROWS_PER_TASK if self.structure.pack_in_task else 1)
                row_factors = self.decide.factors("rows per task", i, p.spatial[0], rows_per_task)
                head_factors = self.decide.factors("heads per task", head, p.heads, 1)
            row_task, row = sch.split(i, row_factors, preserve_unit_iters=True)
            head_task, head = sch.split(head, head_factors, preserve_unit_iters=True)
            sch.reorder(batch, head_task, row_task, head, row, j, *rest)
            rows.append(row)
        # Two outputs share a tile's sums: only in one loop nest can both have them at hand.
        self.row = sch.merge(*rows) if p.return_lse else rows[0]

    def place_in_tiles(self) -> None:
        """In a row, block after block of tiles, with all stages inside."""
        sch = self.sch
        names = ["normalised", "tiled_lse"] if self.problem.return_lse else ["normalised"]
        for name in names:  # each as early in the row as can be, so that both end up before the outputs
            sch.compute_at(self.block(name), self.row, preserve_unit_loops=True, index=-2)
        # The five loops of the row; then of its tiles: batch, head, row (of extent 1), group, tile, query, ...
        tiles = [sch.get_loops(self.block(name))[9] for name in names]
        extent = getattr(sch.get(tiles[0]).extent, "value", None)  # None: an expression, from uneven groups
        if extent is not None:
            at_once = (
                1 if self.structure == _DEFAULT else largest_divisor(extent, _QUERIES_AT_ONCE // self.tile.queries)
            )
            factors = self.decide.factors("tiles at once", tiles[0], extent, at_once)
            tiles = [sch.split(tile, factors, preserve_unit_iters=True)[0] for tile in tiles]
        else:
            tiles = [sch.split(tile, [None, 1], preserve_unit_iters=True)[0] for tile in tiles]
        block = sch.merge(*tiles) if self.problem.return_lse else tiles[0]
        for name in _TILE_STAGES:
            sch.compute_at(self.block(name), block, preserve_unit_loops=True)
        for name in ("out", "normalised"):
            sch.vectorize(self.vector_of(sch.get_loops(self.block(name))[-1])[1])

    def pack(self) -> None:
        """Copies of keys with the lanes innermost, and perhaps of values; then the parallel loops."""
        sch, bias = self.sch, self.problem.bias
        packed = ["packed_key", "packed_value"] if self.tile.pack_values else ["packed_key"]
        head = sch.get_loops(self.block("out"))[3]
        if self.structure.pack_in_task:
            for name in packed:
                sch.compute_at(self.block(name), head, preserve_unit_loops=True)
        *_, row, group, d, c = sch.get_loops(self.block("packed_key"))
        tiles, lane = sch.split(c, [None, self.tile.vector], preserve_unit_iters=True)
        sch.reorder(group, tiles, d, lane)
        sch.vectorize(lane)
        if self.tile.pack_values:
            *_, value_row, _, _, c = sch.get_loops(self.block("packed_value"))
            sch.vectorize(self.vector_of(c)[1])
            if not self.structure.pack_in_task:
                sch.merge(row, value_row)  # waking the threads costs more than a small copy
        if not self.structure.pack_in_task:
            sch.parallel(sch.fuse(*sch.get_loops(self.block("packed_key"))[:4]))
        if bias:
            sch.vectorize(sch.get_loops(self.block("padded_bias"))[-1])
        sch.parallel(sch.fuse(*sch.get_loops(self.block("out"))[:3]))

    def vector_width(self) -> int:
        """Elements of ``head_dim_v`` in a vector: a register of them, half of one, or what divides it."""
        dim, limit = self.problem.head_dim_v, self.tile.vector
        if dim <= limit:
            return dim
        power = largest_divisor(limit, dim & -dim)
        return power if power >= limit // 2 else largest_divisor(dim, limit)

    def vector_of(self, loop: Any) -> list[Any]:
        """A loop over ``head_dim_v`` split into vectors; the inner one is to be vectorised."""
        return list(self.sch.split(loop, [None, self.vector_width()], preserve_unit_iters=True))

    def dots(self) -> None:
        """queries x rows x vectors accumulators, the reduction over head_dim inside of every block of them."""
        sch, tile, dim = self.sch, self.tile, self.problem.head_dim
        u, a, l, d = self.inner_loops(self.block("dots"), 4)
        v, lane = sch.split(l, [None, tile.vector], preserve_unit_iters=True)
        vectors_inner = largest_divisor(self.vectors, max(1, self.accumulators // tile.queries))
        v_outer, v_inner = self.decide.split("score vectors at once", v, self.vectors, vectors_inner)
        queries_inner = largest_divisor(tile.queries, self.accumulators)
        u_outer, u_inner = self.decide.split("score queries at once", u, tile.queries, queries_inner)
        rows = self.even_block(self.rows, self.accumulators // (queries_inner * vectors_inner))
        row_block = self.decide.one_of("score rows at once", range(1, min(self.rows, 8) + 1), default=rows)
        a_outer, a_inner = sch.split(a, [None, row_block], preserve_unit_iters=True)
        d_outer, d_inner = self.decide.split("score channels at once", d, dim, 1, limit=8)
        sch.reorder(u_outer, a_outer, v_outer, d_outer, d_inner, a_inner, v_inner, u_inner, lane)
        # Unrolled, so that a last block with fewer rows costs no test inside.
        for loop in (a_outer, d_inner, a_inner, v_inner, u_inner):
            self.unroll(loop)
        sch.vectorize(lane)
        self.split_off_init("dots", d_outer, unrolled=3)

    @staticmethod
    def even_block(n: int, limit: int) -> int:
        """The block size, at most ``limit`` and 8, that cuts ``n`` into few blocks of about the same size."""
        limit = max(1, min(limit, 8, n))
        return -(-n // -(-n // limit))

    def split_off_init(self, name: str, loop: Any, unrolled: int) -> None:
        """The zeros of a reduction in a block of their own in front of ``loop``, unrolled and vectorised."""
        init = self.sch.decompose_reduction(self.block(name), loop)
        loops = self.sch.get_loops(init)
        for outer in loops[len(loops) - 1 - unrolled : -1]:
            self.unroll(outer)
        self.sch.vectorize(loops[-1])

    def softmax(self) -> None:
        """Vectors of lanes; as many rows at once as are unrolled."""
        sch, tile = self.sch, self.tile
        short = self.rows * self.vectors <= 16
        _, a, _ = self.inner_loops(self.block("scores"), 3)
        factors = self.decide.factors("softmax rows at once", a, self.rows, self.rows if short else 1)
        for name in ("scores", "weights"):
            _, a, l = self.inner_loops(self.block(name), 3)
            v, lane = sch.split(l, [None, tile.vector], preserve_unit_iters=True)
            self.unroll_rows(a, v, factors)
            sch.vectorize(lane)
        for name in ("maximum", "total"):
            lane, a, v = self.inner_loops(self.block(f"{name}_lanes"), 3)
            sch.reorder(a, v, lane)
            a = self.unroll_rows(a, v, factors)
            sch.vectorize(lane)
            self.split_off_init(f"{name}_lanes", a, unrolled=0)
            self.unroll(self.inner_loops(self.block(name), 1)[0])

    def unroll_rows(self, a: Any, v: Any, factors: list[Any]) -> Any:
        """Unroll the inner part of a row loop and the vectors in it; returns the row loop's outer part."""
        outer, inner = self.sch.split(a, factors, preserve_unit_iters=True)
        self.unroll(inner)
        if self.vectors <= 4:
            self.unroll(v)
        return outer

    def attended(self) -> None:
        """queries x vectors of head_dim_v accumulators, over the keys of the window."""
        sch, dim = self.sch, self.problem.head_dim_v
        tile, u, x, a, l = self.inner_loops(self.block("attended"), 5)
        x, lane = self.vector_of(x)
        vectors = dim // self.vector_width()
        vectors_inner = largest_divisor(vectors, self.accumulators)
        x_outer, x_inner = self.decide.split("value vectors at once", x, vectors, vectors_inner)
        queries = self.even_block(self.tile.queries, self.accumulators // vectors_inner)
        options = range(1, min(self.tile.queries, 8) + 1)
        query_block = self.decide.one_of("value queries at once", options, default=queries)
        u_outer, u_inner = sch.split(u, [None, query_block], preserve_unit_iters=True)
        if self.structure.value_rows_outside:
            sch.reorder(a, tile, u_outer, x_outer, l, u_inner, x_inner, lane)
        else:
            sch.reorder(tile, u_outer, x_outer, a, l, u_inner, x_inner, lane)
        for loop in (u_outer, u_inner, x_inner):
            self.unroll(loop)
        sch.vectorize(lane)
        self.split_off_init("attended", a, unrolled=2)

    def unroll(self, loop: Any) -> None:
        # Where a region is inferred from uneven groups, its extent is an expression: that stays a loop.
        if hasattr(self.sch.get(loop).extent, "value"):
            self.sch.unroll(loop)
