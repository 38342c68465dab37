"""The schedule of the lanes formulation on a CPU.

A task is a range of rows of some heads. In each row, a block of tiles goes through all stages at once: scores and
output are register-blocked matrix products, the softmax between them runs over vectors of lanes.
"""

from __future__ import annotations

from typing import Any

from tvm_na.problems.base import HALVES
from tvm_na.schedules.base import largest_divisor
from tvm_na.schedules.cpu.box import BoxSchedule
from tvm_na.schedules.cpu.estimate import values_are_shared
from tvm_na.schedules.cpu.tasks import heads_per_task, rows_per_task
from tvm_na.te.attention.lanes_tile import dots_blocks

# The stages of a tile, last first.
_TILE_STAGES = ("attended", "inverse", "total", "total_lanes", "weights", "maximum", "maximum_lanes", "scores")

#: How loops are nested. Keys (and values) are packed before all tasks, or each task packs those that
#: it reads: one parallel region less, but rows that two tasks read are packed twice. A block of tiles meets one row of
#: values after the other, or each tile all of its rows: values are read while they are near, sums written once per row.
SKETCHES = (
    "pack first",
    "pack in task",
    "pack first, value rows outside",
    "pack in task, value rows outside",
)

# Queries, and elements of their scores, that pass through a stage together: the chains of dependent operations of
# several overlap, and the scores stay in the first two caches.
_QUERIES_AT_ONCE, _ELEMENTS_AT_ONCE = 64, 16384


class LanesSchedule(BoxSchedule):
    """Schedules one PrimFunc; see the module."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pack_in_task = "pack in task" in self.sketch
        self.value_rows_outside = "value rows outside" in self.sketch
        self.dots = dots_blocks(self.problem, self.tile.at_once)
        self.packs_values = self.tile.pack_values
        self.unrolls_keys = False

    def build(self) -> None:
        self.place_in_tasks()
        self.place_in_tiles()
        self.pack()
        self.box_products(self.dots)
        self.softmax()
        shared = values_are_shared(self.problem, self.tile)
        self.window_products("attended", self.problem.head_dim_v, self.value_rows_outside, shared, self.unrolls_keys)

    def place_in_tasks(self) -> None:
        """Loops of the outputs: batch, heads, rows (parallel); then a task's heads, and their rows."""
        sch, p = self.sch, self.problem
        row_factors: list[Any] = []
        rows = []
        for name in ("out", "lse") if p.return_lse else ("out",):
            batch, i, j, head, *rest = self.loops(name)
            if not row_factors:
                task_rows = rows_per_task(p) if self.pack_in_task else 1
                task_heads = heads_per_task(p, task_rows) if self.pack_in_task else 1
                row_factors = self.tune.factors("rows per task", i, self.map_rows, task_rows)
                head_factors = self.tune.factors("heads per task", head, p.heads, task_heads)
            row_task, row = self.split(i, row_factors)
            head_task, head = self.split(head, head_factors)
            sch.reorder(batch, head_task, row_task, head, row, j, *rest)
            rows.append(row)
        self.row = self.merge(rows)

    def place_in_tiles(self) -> None:
        """In a row, block after block of tiles, with all stages inside."""
        sch = self.sch
        names = ["normalised", "tiled_lse"] if self.problem.return_lse else ["normalised"]
        for name in names:  # each as early in the row as can be, so that both end up before the outputs
            sch.compute_at(self.block(name), self.row, preserve_unit_loops=True, index=-2)
        # The five loops of the row; then of its tiles: batch, head, row (of extent 1), group, tile, query, ...
        tiles = [self.loops(name)[9] for name in names]
        extent, factors = self.extent(tiles[0]), [None, 1]
        if extent is not None:  # else from uneven groups
            elements = self.rows * self.vectors * self.tile.vector
            queries = min(_QUERIES_AT_ONCE, _ELEMENTS_AT_ONCE // elements)
            at_once = largest_divisor(extent, queries // self.tile.queries)
            factors = self.tune.factors("tiles at once", tiles[0], extent, at_once)
        block = self.merge([self.split(tile, factors)[0] for tile in tiles])
        converted = ("tile_query",) if self.problem.dtype in HALVES else ()
        for name in (*_TILE_STAGES, *self.dots, *converted):
            sch.compute_at(self.block(name), block, preserve_unit_loops=True)
        for name in converted:
            self.vectorize_channels(name, -(-self.problem.head_dim // self.tile.at_once))
        for name in ("out", "normalised"):
            self.vectorize_channels(name, self.problem.head_dim_v)

    def pack(self) -> None:
        """Copies of keys with the lanes innermost, and perhaps of values; then the parallel loops."""
        sch, bias = self.sch, self.problem.bias
        packed = ["packed_key", "packed_value"] if self.packs_values else ["packed_key"]
        head = self.loops("out")[3]
        if self.pack_in_task:
            for name in packed:
                sch.compute_at(self.block(name), head, preserve_unit_loops=True)
        *_, row, group, d, c = self.loops("packed_key")
        tiles, lane = self.lanes_of(c)
        sch.reorder(group, tiles, d, lane)
        sch.vectorize(lane)
        if self.packs_values:
            *_, value_row, _, _, c = self.loops("packed_value")
            sch.vectorize(self.vector_of(c, self.problem.head_dim_v)[1])
            if not self.pack_in_task:
                sch.merge(row, value_row)  # waking the threads costs more than a small copy
        if not self.pack_in_task:
            sch.parallel(sch.fuse(*self.loops("packed_key")[:4]))
        if bias:
            sch.vectorize(self.loops("padded_bias")[-1])
        sch.parallel(sch.fuse(*self.loops("out")[:3]))

    def softmax(self) -> None:
        """Vectors of lanes; as many rows at once as are unrolled."""
        factors = self.softmax_row_factors("scores")
        for name in ("scores", "weights"):
            self.elementwise(name, factors)
        for name in ("maximum", "total"):
            self.fold(name, factors)
