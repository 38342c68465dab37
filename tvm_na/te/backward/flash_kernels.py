"""The kernels of ``flash.py``: blocks of queries, blocks of keys, and the end of the sums for the bias."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any

from tvm.script.ir_builder import tirx as T

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import STATISTICS
from tvm_na.te.attention import flash_device as device
from tvm_na.te.attention.flash_copies import Copies
from tvm_na.te.attention.flash_kernel import LANES, Kernel
from tvm_na.te.attention.flash_place import Place
from tvm_na.te.attention.flash_ring import Ring, barrier
from tvm_na.te.attention.flash_scores import f32
from tvm_na.te.attention.flash_tile import FlashShape
from tvm_na.te.backward import flash_device
from tvm_na.te.backward.flash_tile import WIDE, GradientLayout, KeyAxis
from tvm_na.te.backward.flash_warps import KeyWarp, Pairs, QueryWarp
from tvm_na.te.common.blocks import whole
from tvm_na.te.common.rows import ravelled, unravelled
from tvm_na.te.common.threads import dealt_out, group_sum, number, only_where, registers


class _Gradients(Kernel):
    """What both kernels do before they go through their columns."""

    layout: GradientLayout

    def __init__(self, problem: NAProblem, ops: Any, written: Sequence[Any], statistics: Any) -> None:
        super().__init__(problem, ops)
        self._written, self.statistics = written, statistics

    @property
    def writes(self) -> Sequence[Any]:
        """What the function says."""
        return self._written

    @property
    @abstractmethod
    def own(self) -> tuple[Any, Any]:
        """Tensors of the rows."""

    @property
    @abstractmethod
    def others(self) -> tuple[Any, Any]:
        """Tensors of the columns."""

    def ring(self, place: Place, copies: Copies, rounds: int) -> Ring:
        """Begin the copies of rows and of the first columns."""
        layout = self.layout
        for at, row, source in zip((0, layout.own_values), (layout.key, layout.value), self.own, strict=True):
            self.copy_rows(place, copies, at, row, source)
        T.evaluate(device.commit())
        self.box = place.keys()

        def copy(base: Any, turn: Any, position: Sequence[Any]) -> None:
            head = self.head_of_columns(turn)
            for at, row, source in zip((0, layout.values), (layout.key, layout.value), self.others, strict=True):
                self.copy_columns(place, copies, base + at, row, source, head, position)
            self.copy_more(place, copies, base, head, position)

        ring = Ring(layout, self.box, copy, rounds)
        ring.begin()
        copies.clear_padding()
        copies.clear(layout.own_values, layout.shape.queries, layout.value)
        return ring

    @abstractmethod
    def head_of_columns(self, turn: Any) -> Any:
        """In a round."""

    def copy_more(self, place: Place, copies: Copies, base: Any, head: Any, position: Sequence[Any]) -> None:
        """Begin what other copies a step needs."""

    def scale(self) -> Any:
        """In a register."""
        return number("scale_of_sums", self.ops.scale[0], "float32")

    def rows_index(self, place: Place) -> Any:
        """The index of a row at a position, as a function."""
        return lambda position: self.index(place, position, self.head)

    def keep_rows(self, warp: Pairs, shape: FlashShape) -> None:
        """Rows in registers, where they are kept."""
        if shape.keeps_queries:
            T.evaluate(device.wait(shape.stages - 1))
            barrier()
            warp.keep_rows()


class QueryKernel(_Gradients):
    """Blocks of queries go through their keys twice: for statistics, then for their gradients."""

    name = "d_query"

    @property
    def own(self) -> tuple[Any, Any]:
        """Of the queries."""
        return self.ops.query, self.ops.d_out

    @property
    def others(self) -> tuple[Any, Any]:
        """Of the keys."""
        return self.ops.key, self.ops.value

    def head_of_columns(self, turn: Any) -> Any:
        """The same in both rounds."""
        return self.head if self.group == 1 else self.head // self.group

    def body(self, place: Place, shape: FlashShape) -> None:
        """All that a thread does."""
        self.layout = GradientLayout(self.problem, shape)
        copies = self.copies(place, self.layout)
        ring = self.ring(place, copies, rounds=2)
        warp = QueryWarp(self.problem, self.layout, place, self.shared, self.factor(copies, shape))
        self.keep_rows(warp, shape)
        index, table = self.rows_index(place), self.table(self.head)
        with T.serial(0, ring.steps) as step, ring.step(step) as base:
            _, *position = ring.now.position
            with only_where(warp.seen(position)):
                warp.first(number("base", base, "int32"), position, table)
        warp.finish_first(self.ops.d_lse, self.statistics, index)
        with T.serial(0, ring.steps) as step, ring.step(ring.steps + step) as base:
            _, *position = ring.now.position
            with only_where(warp.seen(position)):
                warp.second(number("base", base, "int32"), position, table)
        warp.write_sums(self._written[0], warp.d_query, warp.range.inverse(), self.scale(), index)


class KeyKernel(_Gradients):
    """Blocks of keys go through the queries that see them, of one head that shares them after the other."""

    name, axis = "d_key_value", KeyAxis

    @property
    def heads(self) -> int:
        """Of keys."""
        return self.problem.heads_kv

    @property
    def reads(self) -> Sequence[Any]:
        """Statistics too."""
        return [*self.ops.inputs, self.statistics]

    @property
    def own(self) -> tuple[Any, Any]:
        """Of the keys."""
        return self.ops.key, self.ops.value

    @property
    def others(self) -> tuple[Any, Any]:
        """Of the queries."""
        return self.ops.query, self.ops.d_out

    def head_of_columns(self, turn: Any) -> Any:
        """One of those that share the key's."""
        return self.head if self.group == 1 else self.head * self.group + turn

    def copy_more(self, place: Place, copies: Copies, base: Any, head: Any, position: Sequence[Any]) -> None:
        """The statistics of the queries."""
        index, keys = self.columns(place, head, position), place.shape.keys

        def to(n: Any, kind: Any) -> Any:
            return base + self.layout.statistics + (kind * keys + n) * WIDE

        copies.numbers(keys, STATISTICS, to, lambda n, kind: self.statistics[(*index(n), kind)])

    def body(self, place: Place, shape: FlashShape) -> None:
        """All that a thread does."""
        self.layout = GradientLayout(self.problem, shape, of_keys=True)
        copies = self.copies(place, self.layout)
        ring = self.ring(place, copies, rounds=self.group)
        warp = KeyWarp(self.problem, self.layout, place, self.shared, self.factor(copies, shape))
        self.keep_rows(warp, shape)
        with T.serial(0, self.group) as turn:
            head = self.head_of_columns(turn)
            self.clear_bias(copies)
            with T.serial(0, ring.steps) as step, ring.step(turn * ring.steps + step) as base:
                _, *position = ring.now.position
                with only_where(warp.seen(position)):
                    warp.step(number("base", base, "int32"), position, self.table(head))
            self.join_warps(copies, head)
        d_key, d_value = self._written[:2]
        index = self.rows_index(place)
        warp.write_sums(d_key, warp.d_key, warp.range.inverse(warp.of_weights), self.scale(), index)
        warp.write_sums(d_value, warp.d_value, f32(1.0 / warp.of_weights), f32(1.0), index)

    # --- sums for the bias

    def clear_bias(self, copies: Copies) -> None:
        """Zeros for all warps; a barrier comes before anything is added."""
        layout = self.layout
        if layout.entries:
            count = layout.entries * layout.shape.warps_of_block
            sums = copies.address(layout.sums(0))
            zero = f32(0.0)

            def clear(n: Any) -> None:
                T.evaluate(flash_device.write_float(sums, n, zero))

            dealt_out(count, copies.threads, copies.thread, clear)

    def join_warps(self, copies: Copies, head: Any) -> None:
        """Write what the block's warps have for a head, in the order of warps."""
        layout = self.layout
        if not layout.entries:
            return
        sums, total = copies.address(layout.sums(0)), registers("of_warps", (1,), "float32")
        at = (self.sample, ravelled(self.rest, self.grid), head)
        sizes = self.problem.bias_shape[1:]

        def join(n: Any) -> None:
            T.buffer_store(total, f32(0.0), [0])
            with T.serial(0, layout.shape.warps_of_block) as warp:
                found = flash_device.read_float(sums, warp * layout.entries + n)
                T.buffer_store(total, total[0] + found, [0])
            T.buffer_store(self._written[2], total[0], [*at, *unravelled(n, sizes)])

        barrier()
        dealt_out(layout.entries, copies.threads, copies.thread, join)
        if self.group > 1:  # before the next head's zeros
            barrier()


def join_blocks(problem: NAProblem, batch: Any, chunks: int, bias_sums: Any, d_rpb: Any) -> None:
    """The kernel for ``d_rpb``: a warp for each entry adds up the blocks of all samples, always in one order."""
    entries, count = prod(problem.bias_shape), batch * chunks
    with (
        T.thread_binding(0, entries, "blockIdx.x") as block,
        T.thread_binding(0, LANES, "threadIdx.x") as thread,
        T.sblock("d_rpb"),
    ):
        entry, lane = T.axis.spatial(entries, block), T.axis.spatial(LANES, thread)
        T.reads(bias_sums[whole(bias_sums)])
        T.writes(d_rpb[whole(d_rpb)])
        index, total = unravelled(entry, problem.bias_shape), registers("d_rpb_sum", (1,), "float32")
        T.buffer_store(total, f32(0.0), [0])
        with T.serial(0, (count + (LANES - 1)) // LANES) as turn:
            n = turn * LANES + lane
            with only_where(n < count):
                T.buffer_store(total, total[0] + bias_sums[(n // chunks, n % chunks, *index)], [0])
        T.buffer_store(total, group_sum(total[0], LANES, "float32"), [0])
        with only_where(lane == 0):
            T.buffer_store(d_rpb, total[0].astype(problem.dtype), list(index))
