"""Neighborhood attention forward for tensor cores along strips of a map: small windows in 16 bits, rank 2.

A block has a strip: some rows of queries of one head, and walks along it, some columns in a step. The keys that these
see come once, by asynchronous copies (``cp.async``), to a ring of columns in shared memory, while a step before is
computed. A strip may be as high as the map, and the ring as long: then the map is read once. Where the window is the
map, a step is plain attention to all of its keys.

A warp has a sub-tile of 16 queries in each step. All scores of it are in registers, so the softmax takes one pass, as
in the band formulation. What a query does not see is masked after the bias was added.

With dilation each group of positions (see :mod:`tvm_na.te.common.window`) is a map of its own.

How large all this is a schedule draws: so :func:`forward` gives a function without a body, and :func:`written` the one
with a body, when the sizes are known.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention import flash_device as device
from tvm_na.te.attention.flash_scores import f32
from tvm_na.te.attention.flash_tile import SIDE
from tvm_na.te.attention.strip_axis import Walk, axes
from tvm_na.te.attention.strip_copies import Copies
from tvm_na.te.attention.strip_layout import Layout
from tvm_na.te.attention.strip_place import Place
from tvm_na.te.attention.strip_tile import StripShape, StripTile, is_served
from tvm_na.te.attention.strip_warp import Warp
from tvm_na.te.common.blocks import argument, whole
from tvm_na.te.common.formulation import of_blocks
from tvm_na.te.common.math import LOG2_E
from tvm_na.te.common.operands import Operands
from tvm_na.te.common.rows import unravelled
from tvm_na.te.common.threads import number, only_where

_LANES = 32


def forward(problem: NAProblem, tile: StripTile, batch: int | None = None) -> Any:
    """The PrimFunc of ``problem``, with ``batch`` samples or any number: arguments and an empty block ``out``.

    softmax(scale * query key^T + rpb) value over each query's window; the softmax is computed in powers of two, its
    weights are rounded to the problem's dtype, and so is their sum a sum of rounded ones. Arguments as in
    :mod:`tvm_na.te.common.operands`. A window's output is NaN where a masked value of its box is.

    Raises:
        ValueError: for a problem that there is no such expression of, or a sub-tile of other than 16 queries.
    """
    if not is_served(problem):
        raise ValueError(f"problem: required rank 2, 16 bits, stride 1, head_dim 16, 32, ..., 128, got {problem}")
    if tile.rows * tile.columns != SIDE or tile.rows not in (1, 2, 4, 8):
        raise ValueError(f"tile: required rows x columns = {SIDE}, rows 1, 2, 4 or 8, got {tile}")

    def make() -> None:
        strip = _Strip(problem, batch)
        with T.sblock("out"):
            strip.accesses()
            T.evaluate(0)

    return of_blocks(make, problem, tile.to_json())


def written(problem: NAProblem, tile: StripTile, shape: StripShape, batch: int | None = None) -> Any:
    """The PrimFunc of :func:`forward` with its body, bound to blocks and threads."""

    def make() -> None:
        _Strip(problem, batch).kernel(tile, shape)

    return of_blocks(make, problem, tile.to_json())


class _Strip:
    """Makes the function, inside of TVM's IRBuilder."""

    def __init__(self, problem: NAProblem, batch: int | None) -> None:
        self.problem, self.ops = problem, Operands.of(problem, batch, argument)
        outputs = (a for a in problem.arguments() if a.role == "output")
        made = {a.name: argument(a.name, a.shape_for(self.ops.batch), a.dtype) for a in outputs}
        self.out, self.lse = made["out"], made.get("lse")

    def accesses(self) -> None:
        """The block reads all of its inputs and writes all of its outputs."""
        T.reads(*(t[whole(t)] for t in self.ops.inputs))
        T.writes(*(t[whole(t)] for t in (self.out, self.lse) if t is not None))

    def kernel(self, tile: StripTile, shape: StripShape) -> None:
        """Blocks and threads around the body."""
        along = row, column = axes(self.problem, tile, shape)
        # Heads last: blocks that run at a time read what lies together.
        grid = (row.dilation, column.dilation, row.blocks, column.blocks, self.problem.heads)
        blocks = self.ops.batch * prod(grid)
        with (
            T.thread_binding(0, blocks, "blockIdx.x") as block,
            T.thread_binding(0, shape.warps, "threadIdx.y") as warp,
            T.thread_binding(0, _LANES, "threadIdx.x") as lane,
            T.sblock("out"),
        ):
            extents = zip((blocks, shape.warps, _LANES), (block, warp, lane), strict=True)
            block, warp, lane = (T.axis.spatial(extent, v) for extent, v in extents)
            self.accesses()
            self.sample, *residues, y, x, self.head = unravelled(block, (1, *grid))
            groups = [axis.group(residue) for axis, residue in zip(along, residues, strict=True)]
            walk = Walk(column, groups[1], number("first_column", x * column.of_block, "int32"))
            layout = Layout(self.problem, tile, shape)
            first_row = number("block_row", y * row.of_block, "int32")
            self.body(Place(layout, residues, first_row, walk, warp, lane))

    def body(self, place: Place) -> None:
        """All that a thread does."""
        layout, shape = place.layout, place.layout.shape
        plan, steps = layout.plan, layout.axes[1].tiles
        shared = T.sblock_alloc_buffer((layout.size,), self.problem.dtype, scope="shared.dyn")
        IRBuilder.name("memory", shared)
        copies = Copies(place, shared, self.ops, self.sample, self.key_head())
        copies.fetch(0, plan.first)
        for step in range(1, shape.stages - 1):
            copies.fetch(min(step, steps - 1), plan.more)
        copies.clear_columns()
        factor = number("factor", self.ops.scale[0] * f32(LOG2_E), "float32")
        warp = Warp(place, shared, factor, copies.table(self.head))
        warp.load_queries(self.ops.query, 0, self.sample, self.head)
        with T.serial(0, steps) as step:
            T.evaluate(device.wait(shape.stages - 2))
            _barrier()
            following = step + (shape.stages - 1)
            copies.fetch(following, plan.more, following < steps)
            column = number("column", place.walk.query(step, place.warp_column), "int32")
            with only_where(self.computes(place, column)):
                self.step(place, warp, copies, step, column)

    def computes(self, place: Place, column: Any) -> Any:
        """Whether a warp has queries; None where it always has."""
        return place.exists(place.warp_row, column)

    def key_head(self) -> Any:
        """The head of keys and values."""
        group = self.problem.heads // self.problem.heads_kv
        return self.head if group == 1 else self.head // group

    def step(self, place: Place, warp: Warp, copies: Copies, step: Any, column: Any) -> None:
        """A sub-tile of a warp."""
        plan, steps = place.layout.plan, place.layout.axes[1].tiles
        first = number("first_key", place.walk.begin(step, place.warp_column), "int32")
        walked = number("first_walked", first - copies.start, "int32")
        slot = number("first_slot", tirx.truncmod(walked, plan.ring) if plan.wraps else walked, "int32")
        base = warp.first_row - copies.begin
        warp.multiply_keys(base, slot, walked)
        if steps > 1:
            with only_where(step + 1 < steps):
                warp.load_queries(self.ops.query, step + 1, self.sample, self.head)
        warp.complete(column, first)
        warp.weigh()
        warp.multiply_values(base, slot, walked)
        warp.write(self.out, self.lse, column, self.sample, self.head)


def _barrier() -> None:
    from tvm.tirx.op import tvm_storage_sync

    T.evaluate(tvm_storage_sync("shared.dyn"))
