"""The schedule of the band formulation on a GPU: one kernel on tensor cores.

A block has some sub-tiles of 16 queries, and each of them a warp. Queries, keys and values of a block lie in shared
memory; scores, weights, their maximum and sums stay in the registers of a warp, in the layouts of ``mma.py``. With two
passes the rows of a band come to shared memory some at a time, once for the maximum and once for the output.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tvm_na.schedules.cuda import mma
from tvm_na.schedules.cuda.band_lanes import LaneSchedule
from tvm_na.schedules.cuda.band_layouts import instructions_for, layouts_of
from tvm_na.schedules.cuda.band_sizes import (
    AT_ONCE,
    HEADS_IN_TURN,
    MAX_IN_BLOCK,
    axis_in_turn,
    copied,
    default_rows,
    default_shape,
    extents,
    heads_of,
    parts_of_rows,
    sizes_along,
)
from tvm_na.te.attention.band_axis import SIDE, axes

_WRITE = ("write", 0)
_LANES = 32
_MOST_UNROLLED = 64  # copies of a thread


class BandSchedule(LaneSchedule):
    """Schedules a PrimFunc of :func:`tvm_na.te.attention.band.forward`; see the module."""

    def __post_init__(self) -> None:
        problem, tile = self.problem, self.tile
        self.row, self.column = axes(problem, tile)
        self.turn = axis_in_turn(self.sketch)
        self.default = default_shape(problem, tile, self.target, self.turn)
        self.passes = ("_first", "") if tile.passes == 2 else ("",)
        self.outputs = {"normalized": "out"} | ({"lse_tile": "lse"} if problem.return_lse else {})
        self.factors: dict[str, list[Any]] = {}
        self.fetch = {}
        #: Blocks of tensor cores' size, the loops around them, and the one before which their sums are cleared.
        self.products: dict[str, tuple[Any, list[Any], Any]] = {}

    def build(self) -> None:
        self.place()
        for suffix in self.passes:
            self.product_of_scores(suffix)
        self.product_of_values()
        self.sum_of_weights()
        self.share()
        self.keep_in_registers()
        self.use_tensor_cores()
        self.deal_out()
        if self.sketch == HEADS_IN_TURN:
            self.overlap()

    # --- where stages are computed

    def place(self) -> None:
        """Blocks, their warps, and inside of those every stage."""
        sch = self.sch
        sch.compute_inline(self.block("shift"))
        nests = [self.nest(name) for name in self.outputs]
        for name, nest in zip(self.outputs.values(), nests, strict=True):
            sch.reverse_compute_at(self.block(name), nest, preserve_unit_loops=True)
        warp = self.merge(nests)
        block, *turn = self.loops("normalized")[: 1 if self.sketch == AT_ONCE else 2]
        sch.bind(block, "blockIdx.x")
        sch.bind(warp, "threadIdx.y")
        self.at_block, self.at_warp = block, warp
        self.at_queries = turn[0] if self.sketch == HEADS_IN_TURN else block
        self.fetch = {"": self.at_queries}
        for name in ("attended", "total", "ones"):
            sch.compute_at(self.block(name), warp, preserve_unit_loops=True)
        if self.tile.passes == 2:
            self.place_in_steps()
            return
        for name in ("weights", "maximum", "lane_maximum", "row_maximum", "scores", "dots"):
            sch.compute_at(self.block(name), warp, preserve_unit_loops=True)

    def nest(self, name: str) -> Any:
        """Split the loops of an output's sub-tiles into blocks, what is in turn, and warps; returns the last loop."""
        sch = self.sch
        batch, head, *residues, row, column = self.loops(name)[:6]
        rest, shared = self.loops(name)[6:], []
        if self.problem.heads_kv < self.problem.heads:
            # A block has heads that share keys.
            group, head = self.split(head, [None, heads_of(self.problem)])
            shared.append(group)
        loops = {"rows": row, "columns": column, "heads": head}
        if not self.factors:
            self.factors = {axis: self.axis_factors(axis, loop) for axis, loop in loops.items()}
        split = {a: self.split(loop, self.factors[a]) for a, loop in loops.items()}
        blocks = [batch, *residues, *shared, *(split[axis][0] for axis in loops)]
        turn = [split[axis][1] for axis in loops if axis == self.turn]
        warps = [split[axis][1] for axis in loops if axis != self.turn]
        sch.reorder(*blocks, *turn, *warps, *rest)
        self.fuse(blocks)
        return self.fuse(warps)

    def axis_factors(self, axis: str, loop: Any) -> list[Any]:
        """How many sub-tiles along an axis, or heads, a block has."""
        default = getattr(self.default, axis)
        if axis == self.turn:
            sizes = sizes_along(self.problem, self.tile, axis, in_turn=True)
            return [None, self.tune.one_of(f"{axis} in turn", sizes, default)]
        extent = extents(self.problem, self.tile)[axis]
        return self.tune.factors(f"{axis} at once", loop, extent, default, limit=getattr(MAX_IN_BLOCK, axis))

    def place_in_steps(self) -> None:
        """The stages of two passes: some rows of the band at a time."""
        sch = self.sch
        steps: list[Any] = []
        for name in ("attended", "total"):
            *others, row, column = self.loops(name)[-4:]
            if not steps:
                default = default_rows(self.tile, self.row, self.column)
                self.rows = self.tune.factors("band rows at once", row, self.row.keys, default)
            step, row = self.split(row, self.rows)
            sch.reorder(step, *others, row, column)
            steps.append(step)
        self.fetch[""] = sch.merge(*steps)
        for name in ("weights", "scores", "dots"):
            sch.compute_at(self.block(name), self.fetch[""], preserve_unit_loops=True)
        for name in ("maximum", "lane_maximum"):
            sch.compute_at(self.block(name), self.at_warp, preserve_unit_loops=True)
        m, lane, row = self.loops("lane_maximum")[-3:]
        self.fetch["_first"], row = self.split(row, self.rows)
        sch.reorder(self.fetch["_first"], m, lane, row)
        for name in ("row_maximum", "scores_first", "dots_first"):
            sch.compute_at(self.block(name), self.fetch["_first"], preserve_unit_loops=True)

    # --- products, cut into those of a tensor core

    def by_side(self, *loops: Any) -> list[list[Any]]:
        return [self.split(loop, [None, SIDE]) for loop in loops]

    def product_of_scores(self, suffix: str) -> None:
        """Queries by keys."""
        sch, name = self.sch, f"dots{suffix}"
        a, m, c, d = self.loops(name)[-4:]
        (co, ci), (do, di) = self.by_side(c, d)
        sch.reorder(a, co, do, m, ci, di)
        tile = sch.blockize(m)
        sch.compute_at(self.block(f"key_tile{suffix}"), do, preserve_unit_loops=True)
        if suffix == self.passes[0]:
            sch.compute_at(self.block("query_tile"), self.at_warp, preserve_unit_loops=True)
        self.products[name] = (tile, [a, co, do], do)

    def product_of_values(self) -> None:
        """Weights by values."""
        sch = self.sch
        m, d, a, c = self.loops("attended")[-4:]
        (co, ci), (do, di) = self.by_side(c, d)
        sch.reorder(a, co, do, m, di, ci)
        tile = sch.blockize(m)
        sch.compute_at(self.block("value_tile"), do, preserve_unit_loops=True)
        self.products["attended"] = (tile, [a, co, do], self.fetch[""] if self.tile.passes == 2 else a)

    def sum_of_weights(self) -> None:
        """Weights by ones."""
        m, n, a, c = self.loops("total")[-4:]
        ((co, ci),) = self.by_side(c)
        self.sch.reorder(a, co, m, n, ci)
        tile = self.sch.blockize(m)
        self.products["total"] = (tile, [a, co], self.fetch[""] if self.tile.passes == 2 else a)

    # --- shared memory

    def share(self) -> None:
        """What a block's warps share: queries, keys, values and the bias, copied by all threads."""
        sch = self.sch
        vector_size = copied(self.problem)
        places = {"values": self.fetch[""], **{f"keys{suffix}": self.fetch[suffix] for suffix in self.passes}}
        for name, loop in {**places, "queries": self.at_queries}.items():
            sch.set_scope(self.block(name), 0, "shared.dyn")
            # As early as can be: keys and values together. When values come after keys and are larger, TVM has them
            # share memory with keys and the table, though the table is needed when the next keys come.
            sch.compute_at(self.block(name), loop, preserve_unit_loops=True, index=-2)
            # Rows begin in other banks, so that tensor cores load eight of them at once.
            sch.storage_align(self.block(name), 0, -2, SIDE, vector_size)
            # The vector first: else what is selected in it would be a vector too, which CUDA does not have.
            *others, column, last = self.own_loops(name)
            chunk, vector = sch.split(last, [None, vector_size])
            row_size = int(sch.get(column).extent) * int(sch.get(chunk).extent)
            # A warp copies whole rows where they are whole warps: then what of an address depends on the column is
            # found once for all rows, and what depends on the row once for each. (Else it takes 20 instructions.)
            self.copy(sch.fuse(*others, column, chunk), 1 if row_size % _LANES else row_size // _LANES)
            sch.vectorize(vector)
        if self.problem.bias:
            sch.set_scope(self.block("table"), 0, "shared.dyn")
            sch.compute_at(self.block("table"), self.at_block, preserve_unit_loops=True)
            lane = self.copy(sch.fuse(*self.own_loops("table")), 1)
            sch.set_scope(self.block("found"), 0, "local")
            sch.compute_at(self.block("found"), lane, preserve_unit_loops=True)
        if self.problem.return_lse:
            sch.set_scope(self.block("lse_tile"), 0, "shared.dyn")

    def overlap(self) -> None:
        """While a head is computed, the next one is copied to another part of shared memory."""
        # In a loop of its own the computation is one statement, and not its many.
        self.sch.add_unit_loop(self.at_warp)
        # Three copies and the computation, in their order; the copies are a head ahead, and nothing waits for them.
        turn = self.loops("normalized")[1]
        self.sch.annotate(turn, "software_pipeline_stage", [0, 0, 0, 1])
        self.sch.annotate(turn, "software_pipeline_order", [0, 1, 2, 3])
        self.sch.annotate(turn, "software_pipeline_async_stages", [0])

    def own_loops(self, name: str) -> list[Any]:
        """The loops of a stage in shared memory that are its own."""
        rank = {"table": 6 if self.tile.passes == 1 else 3, "queries": 8}.get(name, 7)
        return self.loops(name)[-rank:]

    def copy(self, loop: Any, at_once: int) -> Any:
        """Deal a loop out to the warps of a block, so many times a warp to each; returns the loop over its lanes.

        Less at once where some warps would have nothing.
        """
        sch = self.sch
        inner = [self.factors[axis][1] for axis in self.factors if axis != self.turn]
        if at_once > 1:
            rows = int(sch.get(loop).extent) // (at_once * _LANES)
            at_once //= parts_of_rows(rows, prod(int(sch.get(factor)) for factor in inner), at_once)
        # One loop with one condition at its end: TVM finds the shared memory of a block from that.
        rounds, *warps, _, lane = sch.split(loop, [None, *inner, at_once, _LANES])
        # By TVM itself: so it knows in which rounds every warp has a row, and there needs no branch.
        sch.annotate(rounds, "pragma_auto_unroll_max_step", _MOST_UNROLLED)
        sch.annotate(rounds, "pragma_unroll_explicit", 1)
        sch.bind(sch.fuse(*warps), "threadIdx.y")
        sch.bind(lane, "threadIdx.x")
        return lane

    # --- registers

    def keep_in_registers(self) -> None:
        """Scopes and layouts of what a warp has for itself."""
        layouts = layouts_of(self.problem, self.tile, self.passes)
        for name, layout in layouts.items():
            block = self.products[name][0] if name in self.products else self.block(name)
            self.sch.set_scope(block, 0, "warp")
            self.sch.transform_layout(block, _WRITE, layout)

    # --- tensor cores

    def use_tensor_cores(self) -> None:
        """Replace loops over 16 x 16 matrices by instructions."""
        sch, use = self.sch, instructions_for(self.problem.dtype)
        loads = {"query_tile": use.load_queries, "value_tile": use.load_values}
        for name, load in (loads | {f"key_tile{suffix}": use.load_keys for suffix in self.passes}).items():
            (i0, i1), (j0, j1) = self.by_side(*self.loops(name)[-2:])
            sch.reorder(i0, j0, i1, j1)
            sch.unroll(j0)
            sch.tensorize(i1, load)
        for name, (tile, loops, first) in self.products.items():
            multiply, width = {"total": (use.total, 8), "attended": (use.sums, SIDE)}.get(name, (use.scores, SIDE))
            sch.decompose_reduction(tile, first)
            sch.tensorize(self.loops(f"{name}_init")[-2], mma.clear(width))
            sch.tensorize(self.loops(name)[-3], multiply)
            self.unroll(*loops)
