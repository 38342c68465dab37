"""Stages that a warp computes without tensor cores, in the schedule of the band formulation: which lane does what."""

from __future__ import annotations

from typing import Any

from tvm_na.schedules.helpers import FuncSchedule


class LaneSchedule(FuncSchedule):
    """Deals elements out to the lanes that have them in their registers, in the layouts of ``mma.py``.

    Attributes:
        passes: The suffixes of the passes.
        fetch: The loops in which shared memory is filled with keys and values, by the suffix of a pass.
    """

    passes: tuple[str, ...]
    fetch: dict[str, Any]

    def deal_out(self) -> None:
        """Everything else to the lanes of a warp, each to the one that has it in its registers."""
        for name in [f"scores{suffix}" for suffix in self.passes] + ["weights"]:
            row, m, c = self.loops(name)[-3:]
            self.to_lanes(m, c, [row])
        for name in ("normalized", "out"):
            row, column, d = self.loops(name)[-3:]
            self.to_lanes(self.sch.fuse(row, column), d, [], vectors=name == "out")
        n, k = self.loops("ones")[-2:]
        half, four, pair = self.sch.split(k, [2, 4, 2])
        self.bind_lanes(n, four, [half, pair])
        self.reduce_to_lanes("row_maximum", 2)
        self.reduce_to_lanes("lane_maximum", 1)
        self.reduce_to_lanes("maximum", 1)
        if self.problem.return_lse:
            self.deal_out_lse()

    def bind_lanes(self, low: Any, four: Any, inner: list[Any], vector: Any = None) -> None:
        """Four lanes for each of eight ``low``; ``inner`` loops are unrolled."""
        sch = self.sch
        sch.reorder(low, four, *inner, *([] if vector is None else [vector]))
        sch.bind(sch.fuse(low, four), "threadIdx.x")
        self.unroll(*inner)
        if vector is not None:
            sch.vectorize(vector)

    def to_lanes(self, m: Any, c: Any, outer: list[Any], vectors: bool = False) -> None:
        """(query, column or channel), as :func:`mma.rows_first` has them."""
        high, low = self.sch.split(m, [2, 8])
        blocks, half, four, pair = self.sch.split(c, [None, 2, 4, 2])
        inner = [*outer, blocks, half, high]
        self.bind_lanes(low, four, inner if vectors else [*inner, pair], pair if vectors else None)

    def reduce_to_lanes(self, name: str, reduced: int) -> None:
        """(..., query, lane of the query, ``reduced`` reductions)."""
        loops = self.loops(name)
        m, lane, *reductions = loops[-2 - reduced :]
        rows = [loops[-3 - reduced]] if name == "row_maximum" else []
        high, low = self.sch.split(m, [2, 8])
        self.bind_lanes(low, lane, [*rows, high, *reductions])
        step = name == "lane_maximum" and self.tile.passes == 2
        self.sch.decompose_reduction(self.block(name), self.fetch["_first"] if step else reductions[0])

    def deal_out_lse(self) -> None:
        """The log-sum-exp goes through shared memory: one of the four lanes of a query writes it there."""
        sch = self.sch
        row, column = self.loops("lse_tile")[-2:]
        _, four = self.split(sch.add_unit_loop(self.block("lse_tile")), [None, 4])
        high, low = sch.split(sch.fuse(row, column), [2, 8])
        self.bind_lanes(low, four, [high])
        _, lane = sch.split(sch.fuse(*self.loops("lse")[-2:]), [None, 32])
        sch.bind(lane, "threadIdx.x")
