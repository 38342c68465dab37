"""What kernels of flash formulations have in common: blocks of rows, a ring of columns, and the scale.

Rows are positions of which a block has a box, and a warp some sub-tiles; columns those of the box that any of them
sees. In the attention rows are queries, and columns keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention import flash_device as device
from tvm_na.te.attention.flash_axis import FlashAxis, axes
from tvm_na.te.attention.flash_copies import Copies
from tvm_na.te.attention.flash_layout import Layout, SharedRow
from tvm_na.te.attention.flash_place import Place
from tvm_na.te.attention.flash_scores import f32
from tvm_na.te.attention.flash_tile import FlashShape, FlashTile
from tvm_na.te.common.blocks import whole
from tvm_na.te.common.math import LOG2_E
from tvm_na.te.common.operands import Operands
from tvm_na.te.common.rows import unravelled
from tvm_na.te.common.threads import number, only_where

LANES = 32


class Kernel(ABC):
    """Makes a kernel, inside of TVM's IRBuilder.

    Attributes:
        name: Of its block.
        axis: What an axis of its rows is.
        box: Of the block's columns, along each axis the first and one past the last.
    """

    box: Any
    name: ClassVar[str] = "out"
    axis: ClassVar[type[FlashAxis]] = FlashAxis

    def __init__(self, problem: NAProblem, ops: Operands) -> None:
        self.problem, self.ops = problem, ops
        self.group = problem.heads // problem.heads_kv

    @property
    def heads(self) -> int:
        """Heads of rows."""
        return self.problem.heads

    @property
    def reads(self) -> Sequence[Any]:
        """Tensors that it reads."""
        return self.ops.inputs

    @property
    @abstractmethod
    def writes(self) -> Sequence[Any]:
        """Tensors that it writes."""

    @abstractmethod
    def body(self, place: Place, shape: FlashShape) -> None:
        """All that a thread does."""

    def accesses(self) -> None:
        """The block reads and writes tensors as a whole."""
        T.reads(*(t[whole(t)] for t in self.reads))
        T.writes(*(t[whole(t)] for t in self.writes))

    def write(self, tile: FlashTile, shape: FlashShape) -> None:
        """Blocks and threads around the body."""
        self.axes = axes(self.problem, tile, shape, self.axis)
        self.grid = (*(a.dilation for a in self.axes), *(a.blocks for a in self.axes))
        blocks, warps = self.ops.batch * (self.heads * prod(self.grid)), shape.warps_of_block
        with (
            T.thread_binding(0, blocks, "blockIdx.x") as block,
            T.thread_binding(0, warps, "threadIdx.y") as warp,
            T.thread_binding(0, LANES, "threadIdx.x") as lane,
            T.sblock(self.name),
        ):
            extents = zip((blocks, warps, LANES), (block, warp, lane), strict=True)
            block, warp, lane = (T.axis.spatial(extent, v) for extent, v in extents)
            self.accesses()
            # Blocks that run at a time have neighboring rows of one head, and read the same columns.
            self.sample, self.head, *self.rest = unravelled(block, (1, self.heads, *self.grid))
            first = [n * axis.of_block for n, axis in zip(self.rest[3:], self.axes, strict=True)]
            self.body(Place(self.axes, tile, shape, self.rest[:3], first, warp, lane), shape)

    def copies(self, place: Place, layout: Layout) -> Copies:
        """Shared memory, and who copies to it."""
        self.shared = T.sblock_alloc_buffer((layout.size,), self.problem.dtype, scope="shared.dyn")
        threads = LANES * layout.shape.warps_of_block
        return Copies(self.shared, layout, threads, place.warp * LANES + place.lane)

    def index(self, place: Place, position: Any, head: Any) -> list[Any]:
        """Of a token's head at a position in the group."""
        return [self.sample, *place.on_map(position, self.problem.rank), head]

    def copy_rows(self, place: Place, copies: Copies, at: Any, row: SharedRow, source: Any) -> None:
        """Begin the copies of the block's rows."""

        def index(n: Any) -> list[Any]:
            return self.index(place, place.copied_query(n), self.head)

        copies.rows(at, place.shape.queries, row, source, index, again=False)

    def copy_columns(
        self, place: Place, copies: Copies, at: Any, row: SharedRow, source: Any, head: Any, position: Sequence[Any]
    ) -> None:
        """Begin the copies of a step's columns from a position on."""
        copies.rows(at, place.shape.keys, row, source, self.columns(place, head, position), again=True)

    def columns(self, place: Place, head: Any, position: Sequence[Any]) -> Any:
        """The index of the n-th column of a step, as a function: of the block's last one where there is none."""
        *outer, x = position
        last = self.box[1][-1] - 1

        def index(n: Any) -> list[Any]:
            return self.index(place, [*outer, tirx.min(x + n, last)], head)

        return index

    def factor(self, copies: Copies, shape: FlashShape) -> Any:
        """What products are multiplied by; greater than 0 without a bias.

        Else the greatest of all products would not be that of all scores: so rows, in shared memory, take the sign.
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

    def table(self, head: Any) -> Any:
        """The address of a head's bias, if there is one."""
        if not self.problem.bias:
            return None
        return tirx.address_of(self.ops.rpb[(head, *(0,) * self.problem.rank)])
