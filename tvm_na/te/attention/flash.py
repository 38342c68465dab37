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

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention import flash_device as device
from tvm_na.te.attention.flash_kernel import Kernel
from tvm_na.te.attention.flash_layout import Layout
from tvm_na.te.attention.flash_place import Place
from tvm_na.te.attention.flash_ring import Ring, barrier
from tvm_na.te.attention.flash_tile import SIDE, FlashShape, FlashTile, is_served
from tvm_na.te.attention.flash_warp import Warp
from tvm_na.te.common.blocks import argument
from tvm_na.te.common.formulation import of_blocks
from tvm_na.te.common.operands import Operands
from tvm_na.te.common.threads import number, only_where


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
        _Flash(problem, batch).write(tile, shape)

    return of_blocks(make, problem, tile.to_json())


class _Flash(Kernel):
    """The attention's one kernel."""

    def __init__(self, problem: NAProblem, batch: int | None) -> None:
        super().__init__(problem, Operands.of(problem, batch, argument))
        outputs = (a for a in problem.arguments() if a.role == "output")
        made = {a.name: argument(a.name, a.shape_for(self.ops.batch), a.dtype) for a in outputs}
        self.out, self.lse = made["out"], made.get("lse")

    @property
    def writes(self) -> list[Any]:
        """All outputs."""
        return [t for t in (self.out, self.lse) if t is not None]

    def body(self, place: Place, shape: FlashShape) -> None:
        """All that a thread does."""
        layout = Layout(self.problem, shape)
        copies = self.copies(place, layout)
        self.copy_rows(place, copies, 0, layout.key, self.ops.query)
        T.evaluate(device.commit())
        self.box = place.keys()
        head = self.head if self.group == 1 else self.head // self.group

        def copy(base: Any, _: Any, position: Sequence[Any]) -> None:
            self.copy_columns(place, copies, base, layout.key, self.ops.key, head, position)
            self.copy_columns(place, copies, base + layout.values, layout.value, self.ops.value, head, position)

        ring = Ring(layout, self.box, copy)
        ring.begin()
        copies.clear_padding()
        factor = self.factor(copies, shape)
        warp = Warp(self.problem, layout, place, self.shared, factor, self.table(self.head))
        warp.clear()
        if shape.keeps_queries:
            T.evaluate(device.wait(shape.stages - 1))
            barrier()
            warp.keep(warp.queries)
        with T.serial(0, ring.steps) as step, ring.step(step) as base:
            _, *position = ring.now.position
            with only_where(warp.seen(position)):
                warp.step(number("base", base, "int32"), position)
        warp.finish()
        warp.write(self.out, self.lse, lambda position: self.index(place, position, self.head))
