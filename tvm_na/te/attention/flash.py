"""Neighborhood attention forward for tensor cores in one pass: windows of any size, ranks 1 to 3, every option.

A block has some queries, which lie together, and goes through the box of keys that any of them sees, row by row, some
neighbors of a row at a time: a *step*. Keys and values of the next steps are on their way to a ring in shared memory
(``cp.async``) while one is computed. A warp has some sub-tiles of 16 queries, passes over steps that none of them sees,
masks where not all see all, and keeps the sums of values relative to the greatest score so far (an online softmax,
arXiv 1805.02867, as in FlashAttention-2, arXiv 2307.08691).

With dilation each group of positions (see :mod:`tvm_na.te.common.window`) is a map of its own.

How large all this is a schedule draws: so :func:`forward` gives a function without a body, and :func:`written` the one
with a body, when the sizes are known.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention import flash_device as device
from tvm_na.te.attention.flash_axis import axes
from tvm_na.te.attention.flash_copies import Copies, Cursor
from tvm_na.te.attention.flash_layout import Layout
from tvm_na.te.attention.flash_place import Place
from tvm_na.te.attention.flash_tile import SIDE, FlashShape, FlashTile, is_served
from tvm_na.te.attention.flash_warp import Warp, f32
from tvm_na.te.common.blocks import argument, whole
from tvm_na.te.common.formulation import of_blocks
from tvm_na.te.common.math import LOG2_E
from tvm_na.te.common.operands import Operands
from tvm_na.te.common.rows import unravelled
from tvm_na.te.common.threads import number, only_where

_LANES = 32


def forward(problem: NAProblem, tile: FlashTile, batch: int | None = None) -> Any:
    """The PrimFunc of ``problem``, with ``batch`` samples or any number: arguments and an empty block ``out``.

    softmax(scale * query key^T + rpb) value over each query's window; the softmax is computed in powers of two, and its
    weights are rounded to the problem's dtype. Arguments as in :mod:`tvm_na.te.common.operands`. A window's output is
    NaN where a masked value of the box is.

    Raises:
        ValueError: for a problem that there is no such expression of, or a sub-tile of other than 16 queries.
    """
    if not is_served(problem):
        raise ValueError(f"problem: required 16 bits, even head dimensions up to 256, got {problem}")
    if tile.rows * tile.columns != SIDE or (problem.rank == 1 and tile.rows > 1):
        raise ValueError(f"tile: required rows x columns = {SIDE}, one row in rank 1, got {tile}")

    def make() -> None:
        flash = _Flash(problem, batch)
        with T.sblock("out"):
            flash.accesses()
            T.evaluate(0)

    return of_blocks(make, problem, tile.to_json())


def written(problem: NAProblem, tile: FlashTile, shape: FlashShape, batch: int | None = None) -> Any:
    """The PrimFunc of :func:`forward` with its body, bound to blocks and threads."""

    def make() -> None:
        _Flash(problem, batch).kernel(tile, shape)

    return of_blocks(make, problem, tile.to_json())


class _Flash:
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

    def kernel(self, tile: FlashTile, shape: FlashShape) -> None:
        """Blocks and threads around the body."""
        self.axes = axes(self.problem, tile, shape)
        grid = (*(a.dilation for a in self.axes), *(a.blocks for a in self.axes))
        blocks, warps = self.ops.batch * (self.problem.heads * prod(grid)), shape.warps_of_block
        with (
            T.thread_binding(0, blocks, "blockIdx.x") as block,
            T.thread_binding(0, warps, "threadIdx.y") as warp,
            T.thread_binding(0, _LANES, "threadIdx.x") as lane,
            T.sblock("out"),
        ):
            extents = zip((blocks, warps, _LANES), (block, warp, lane), strict=True)
            block, warp, lane = (T.axis.spatial(extent, v) for extent, v in extents)
            self.accesses()
            # Blocks that run at a time have neighboring queries of one head, and read the same keys.
            self.sample, self.head, *rest = unravelled(block, (1, self.problem.heads, *grid))
            first = [n * axis.of_block for n, axis in zip(rest[3:], self.axes, strict=True)]
            self.body(Place(self.axes, tile, shape, rest[:3], first, warp, lane), shape)

    def index(self, place: Place, position: Any, head: Any) -> list[Any]:
        """Of a token's head at a position in the group."""
        return [self.sample, *place.on_map(position, self.problem.rank), head]

    def body(self, place: Place, shape: FlashShape) -> None:
        """All that a thread does."""
        layout = Layout(self.problem, shape)
        self.shared = T.sblock_alloc_buffer((layout.size,), self.problem.dtype, scope="shared.dyn")
        thread = place.warp * _LANES + place.lane
        copies = Copies(self.shared, layout, _LANES * shape.warps_of_block, thread)
        self.fetch_queries(place, copies)
        begins, ends = place.keys()
        ahead, now = (Cursor(name, begins, ends, shape.keys) for name in ("ahead", "now"))
        steps = number("steps", self.steps(begins, ends, shape.keys), "int32")
        for stage in range(shape.stages - 1):
            self.fetch(place, copies, ahead, stage, steps if stage else None, stage)
        copies.clear_padding()
        factor = self.factor(copies, shape)
        warp = Warp(self.problem, layout, place, self.shared, factor, self.table())
        warp.clear()
        if shape.keeps_queries:
            T.evaluate(device.wait(shape.stages - 1))
            _barrier()
            warp.keep_queries()
        with T.serial(0, steps) as step:
            T.evaluate(device.wait(shape.stages - 2))
            _barrier()
            following = step + (shape.stages - 1)
            self.fetch(place, copies, ahead, following % shape.stages, steps, following)
            with only_where(warp.seen(now.position)):
                base = number("base", layout.ring + step % shape.stages * layout.stage, "int32")
                warp.step(base, now.position)
            now.advance()
        warp.finish()
        warp.write(self.out, self.lse, lambda position: self.index(place, position, self.head))

    def steps(self, begins: Any, ends: Any, keys: int) -> Any:
        """Of all keys of the block."""
        z, y, x = (end - begin for begin, end in zip(begins, ends, strict=True))
        return z * y * ((x + (keys - 1)) // keys)

    def fetch_queries(self, place: Place, copies: Copies) -> None:
        """Begin the copies of the block's queries, the first group."""

        def at(n: Any) -> list[Any]:
            return self.index(place, place.copied_query(n), self.head)

        copies.rows(0, place.shape.queries, copies.layout.key, self.ops.query, at, again=False)
        T.evaluate(device.commit())

    def fetch(self, place: Place, copies: Copies, ahead: Cursor, stage: Any, steps: Any, step: Any) -> None:
        """Begin the copies of a step, if there is one; a group of copies is made of them in any case."""
        layout, heads = copies.layout, self.problem.heads // self.problem.heads_kv
        head = self.head if heads == 1 else self.head // heads
        with only_where(None if steps is None else step < steps):
            *outer, x = ahead.position
            last = ahead.ends[-1] - 1

            def at(n: Any) -> list[Any]:
                column = tirx.min(x + n, last)
                return self.index(place, [*outer, column], head)

            base = number("to", layout.ring + stage * layout.stage, "int32")
            keys = copies.layout.shape.keys
            copies.rows(base, keys, layout.key, self.ops.key, at, again=True)
            copies.rows(base + layout.values, keys, layout.value, self.ops.value, at, again=True)
            ahead.advance()
        T.evaluate(device.commit())

    def factor(self, copies: Copies, shape: FlashShape) -> Any:
        """What products are multiplied by; greater than 0 without a bias.

        Else the greatest of all products would not be that of all scores: so queries take the sign.
        """
        factor = number("factor", self.ops.scale[0] * f32(LOG2_E), "float32")
        if self.problem.bias:
            return factor
        zero = f32(0.0)
        with only_where(tirx.Not(factor > zero)):
            T.evaluate(device.wait(shape.stages - 1))
            sign = tirx.Select(factor < zero, f32(-1.0), tirx.Select(factor == zero, zero, factor))
            copies.scale_queries(sign, self.problem.dtype)
        size = tirx.Select(factor < zero, zero - factor, factor)
        return number("positive", tirx.Select(size > zero, size, f32(1.0)), "float32")

    def table(self) -> Any:
        """The address of the head's bias."""
        if not self.problem.bias:
            return None
        return tirx.address_of(self.ops.rpb[(self.head, *(0,) * self.problem.rank)])


def _barrier() -> None:
    from tvm.tirx.op import tvm_storage_sync

    T.evaluate(tvm_storage_sync("shared.dyn"))
