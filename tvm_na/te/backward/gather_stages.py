"""The parts of ``gather.py``: what a group of threads does for a query, a key, an entry of the bias."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_na.problems.backward import STATISTICS, BackwardProblem, most_bias_chunks
from tvm_na.te.backward.gather_sums import WindowSums, power
from tvm_na.te.backward.gather_tile import chunks_of
from tvm_na.te.common.blocks import argument, loops, whole
from tvm_na.te.common.neighbors import Neighbors
from tvm_na.te.common.operands import GradientBlocks
from tvm_na.te.common.rows import ravelled, unravelled
from tvm_na.te.common.threads import Row, add_shared, barrier, dealt_out, group_sum, number, only_where, registers
from tvm_na.te.common.window import axis_key, axis_queries

# Queries, at most, whose sums for a bias are added up by one group.
_CHUNK_QUERIES = 256
#: Threads that join the sums of all chunks for an entry of the bias.
JOINING = 32


class Gradients(GradientBlocks):
    """Makes the function, inside of TVM's IRBuilder: first its arguments, then a nest of loops for each kernel."""

    def __init__(self, problem: BackwardProblem, lanes: int, batch_size: int | None) -> None:
        super().__init__(problem, batch_size)
        p = self.problem
        self.near, self.lanes = Neighbors(p), lanes
        scratch = [argument(a.name, a.shape_for(self.batch), a.dtype) for a in problem.scratch()]
        self.statistics = scratch[0]
        self.bias_sums: Any = scratch[1] if p.bias else None
        self.chunks = min(-(-prod(p.spatial) // _CHUNK_QUERIES), most_bias_chunks(problem))
        self.of_key = Row.of(p.head_dim, self.lanes, p.dtype)
        self.of_value = Row.of(p.head_dim_v, self.lanes, p.dtype)

    @contextmanager
    def block(
        self, name: str, extents: Sequence[Any], writes: Sequence[Any], scratch: Sequence[Any] = ()
    ) -> Iterator[list[Any]]:
        """Loops and a block that may read all inputs, and of the scratch memory what is named; each thread writes a
        part of its own of ``writes``."""
        with loops(extents) as variables, T.sblock(name):
            index = [T.axis.spatial(n, v) for n, v in zip(extents, variables, strict=True)]
            T.reads(*(t[whole(t)] for t in (*self.inputs, *scratch)))
            T.writes(*(t[whole(t)] for t in writes))
            yield index

    def pair(
        self, name: str, rows: tuple[Any, Any, Any, Any], scale: Any, bias_index: Sequence[Any]
    ) -> tuple[Any, Any]:
        """The score and dP of a query and a key that it sees, the same bits in each kernel.

        Args:
            name: In front of the names of registers.
            rows: Of query, key, d_out and value, in registers.
            scale: The scale.
            bias_index: The head, and (key - query) / dilation + kernel_size - 1 along each axis.
        """
        query, key, d_out, value = rows
        score = self.of_key.dot(f"{name}_dot", query, key, self.accum) * scale
        if self.rpb is not None:
            score = score + self.rpb[tuple(bias_index)].astype(self.accum)
        d_weight = self.of_value.dot(f"{name}_d_weight", d_out, value, self.accum)
        return number(f"{name}_score", score, self.accum), d_weight

    def from_statistics(self, name: str, score: Any, d_weight: Any, token: Sequence[Any]) -> tuple[Any, Any]:
        """P and dS of a query and a key that it sees, from what is known of the query's window."""
        top, inverse, shift = (self.statistics[(*token, n)] for n in range(STATISTICS))
        weight = number(f"{name}_weight", power(score, top, self.accum) * inverse, self.accum)
        return weight, number(f"{name}_d_score", weight * (d_weight - shift), self.accum)

    # --- queries

    def of_queries(self) -> None:
        """d_query and the statistics: for each query, over its window."""
        p, key_row, value_row = self.problem, self.of_key, self.of_value
        extents = (self.batch, *p.spatial, p.heads, self.lanes)
        with self.block("d_query", extents, [self.d_query, self.statistics]) as (*token, lane):
            b, *rest = token
            position, h = tuple(rest[:-1]), rest[-1]
            query = key_row.read_as("q", self.query, token, lane, self.accum)
            d_out = value_row.read_as("g", self.d_out, token, lane, self.accum)
            scale = self.factor()
            sums = WindowSums(key_row, self.accum)
            with self.window(position) as offset:
                place = (b, *self.near.key_position(position, tuple(offset)), h // self.group)
                key = key_row.read("k", self.key, place, lane)
                value = value_row.read("v", self.value, place, lane)
                index = self.near.bias_index(position, tuple(offset))
                score, d_weight = self.pair("q", (query, key, d_out, value), scale, (h, *index))
                sums.add(score, d_weight, key)
            inverse = number("inverse", sums.inverse(), self.accum)
            shift = number("own_shift", sums.delta * inverse, self.accum)
            if p.return_lse:
                shift = number("whole_shift", shift - self.d_lse[tuple(token)], self.accum)
            with only_where(lane == 0):
                for n, value in enumerate((sums.top, inverse, sums.near + shift)):
                    T.buffer_store(self.statistics, value, [*token, n])
            key_row.write("dq", self.d_query, token, lane, lambda r, v: sums.gradient(r, v, shift) * inverse * scale)

    def factor(self) -> Any:
        """The scale, in a register: the compiler would read it for each pair."""
        return number("factor", self.scale[0], self.accum)

    @contextmanager
    def window(self, position: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        """Loops over the window of a query, which a schedule finds at a block; yields the offset of a key there is."""
        with loops(self.problem.kernel_size) as variables, T.sblock("window"):
            extents = zip(self.problem.kernel_size, variables, strict=True)
            offset = tuple(T.axis.opaque(n, v) for n, v in extents)
            with only_where(self.near.exists(position, offset)):
                yield offset

    # --- keys and values

    def of_keys(self) -> None:
        """d_key and d_value: for each key, over the queries that see it, of all of its heads."""
        p = self.problem
        extents = (self.batch, *p.spatial, p.heads_kv, self.lanes)
        with self.block("d_key_value", extents, [self.d_key, self.d_value], [self.statistics]) as (*place, lane):
            b, *rest = place
            position, h_kv = tuple(rest[:-1]), rest[-1]
            own = self.key_and_sums(place, lane)
            with self.queries_of(position) as (queries, index), T.serial(0, self.group) as g:
                self.add_query((b, *queries, h_kv * self.group + g), index, own, lane)
            self.write_keys(place, lane, own)

    def key_and_sums(self, place: Sequence[Any], lane: Any) -> tuple[Any, ...]:
        """A key, its value, zeros for the gradients of both, and the scale, in registers."""
        key = self.of_key.read_as("k", self.key, place, lane, self.accum)
        value = self.of_value.read_as("v", self.value, place, lane, self.accum)
        sums = self.of_key.zeros("dk_sum", self.accum), self.of_value.zeros("dv_sum", self.accum)
        return key, value, *sums, self.factor()

    def add_query(self, token: Any, bias_index: Sequence[Any], own: tuple[Any, ...], lane: Any) -> Any:
        """Add what a query has for a key (:meth:`key_and_sums`) to its gradients; returns dS."""
        key, value, d_key, d_value, scale = own
        query = self.of_key.read("q", self.query, token, lane)
        d_out = self.of_value.read("g", self.d_out, token, lane)
        score, d_weight = self.pair("k", (query, key, d_out, value), scale, (token[-1], *bias_index))
        weight, d_score = self.from_statistics("k", score, d_weight, token)
        self.of_value.add(d_value, weight, d_out, self.accum)
        self.of_key.add(d_key, d_score, query, self.accum)
        return d_score

    def write_keys(self, place: Sequence[Any], lane: Any, own: tuple[Any, ...]) -> None:
        """d_key and d_value of a key."""
        _, _, d_key, d_value, scale = own
        self.of_key.write("dk", self.d_key, place, lane, lambda r, v: d_key[r, v] * scale)
        self.of_value.write("dv", self.d_value, place, lane, lambda r, v: d_value[r, v])

    @contextmanager
    def queries_of(self, position: Sequence[Any]) -> Iterator[tuple[list[Any], list[Any]]]:
        """Loops over exactly the queries that see a key; yields their position and the index into the bias."""
        queries, index = [], []
        with ExitStack() as nest:
            for axis, (i, window) in enumerate(zip(position, self.problem.axes, strict=True)):
                _, k, _, dilation, _ = window
                residue, start, end = axis_queries(i, *window)
                start = number(f"start{axis}", start, "int32")
                t = start + nest.enter_context(T.serial(0, number(f"end{axis}", end, "int32") - start))
                queries.append(residue + dilation * t)
                index.append(i // dilation - t + k - 1)
            yield queries, index

    # --- keys, values and the bias

    def of_keys_and_bias(self, rows: int, columns: int) -> None:
        """The same for ``rows`` x ``columns`` keys in a block, with their sums for the bias in its shared memory.

        Each group has sums of its own there, which are joined when all queries of a head have been met. Groups beyond
        the end of the map meet none, but come to the barriers.
        """
        p, groups, entries = self.problem, rows * columns, prod(self.problem.bias_shape[1:])
        threads = groups * self.lanes
        extents = (self.batch, *chunks_of(p, rows, columns), p.heads_kv)
        self.chunks = prod(extents[1:-1])
        with loops(extents) as variables, T.sblock("chunk"):
            b, *chunk, h_kv = [T.axis.spatial(n, v) for n, v in zip(extents, variables, strict=True)]
            sums = T.sblock_alloc_buffer((groups * entries,), self.accum, scope="shared")
            IRBuilder.name("sums", sums)
            written = [self.d_key, self.d_value, self.bias_sums]
            with self.block("d_key_value", (rows, columns, self.lanes), written, [self.statistics]) as (y, x, lane):
                group = y * columns + x
                position, there = self.in_chunk(chunk, y, x, rows, columns)
                place = (b, *position, h_kv)
                own = self.key_and_sums(place, lane)
                with T.serial(0, self.group) as g:
                    head = h_kv * self.group + g
                    thread = group * self.lanes + lane
                    dealt_out(groups * entries, threads, thread, lambda n: T.buffer_store(sums, self.const(0), [n]))
                    barrier()
                    with only_where(there), self.queries_of(position) as (queries, index):
                        d_score = self.add_query((b, *queries, head), index, own, lane)
                        with only_where(lane == 0):
                            add_shared(sums, group * entries + self.entry(index), d_score)
                    barrier()
                    at = (b, ravelled(chunk, extents[1:-1]), head)
                    dealt_out(entries, threads, thread, lambda n: self.join_groups(sums, groups, n, at))
                    if self.group > 1:  # before the next head's zeros
                        barrier()
                with only_where(there):
                    self.write_keys(place, lane, own)

    def in_chunk(self, chunk: Sequence[Any], y: Any, x: Any, rows: int, columns: int) -> tuple[list[Any], Any]:
        """The position of a key of a chunk, or of the last of its row or column; whether there is such a key."""
        found, conditions = list(chunk), []
        for axis, n, at in ((-2, rows, y), (-1, columns, x)) if self.problem.rank > 1 else ((-1, columns, x),):
            size = self.problem.spatial[axis]
            found[axis] = chunk[axis] * n + at
            if size % n:
                conditions.append(found[axis] < size)
                found[axis] = tirx.min(found[axis], size - 1)
        return found, tirx.all(*conditions) if conditions else None

    def entry(self, index: Sequence[Any]) -> Any:
        """The number of an entry of the bias in its head."""
        return ravelled(index, self.problem.bias_shape[1:])

    def join_groups(self, sums: Any, groups: int, entry: Any, at: Sequence[Any]) -> None:
        """Write what the groups of a block have for an entry of the bias."""
        entries = prod(self.problem.bias_shape[1:])
        total = registers("entry_sum", (1,), self.accum)
        T.buffer_store(total, self.const(0), [0])
        with T.serial(0, groups) as n:
            T.buffer_store(total, total[0] + sums[n * entries + entry], [0])
        T.buffer_store(self.bias_sums, total[0], [*at, *unravelled(entry, self.problem.bias_shape[1:])])

    # --- the bias by itself

    def of_bias(self) -> None:
        """Sums for each entry of the bias over the queries of a chunk, each of which has at most one such key."""
        p, key_row, value_row = self.problem, self.of_key, self.of_value
        tokens = prod(p.spatial)
        length = -(-tokens // self.chunks)
        extents = (self.batch, self.chunks, *p.bias_shape, self.lanes)
        with self.block("bias_sums", extents, [self.bias_sums], [self.statistics]) as (b, chunk, h, *index, lane):
            total, scale = registers("bias_sum", (1,), self.accum), self.factor()
            T.buffer_store(total, self.const(0), [0])
            with T.serial(0, tirx.min(length, tokens - chunk * length)) as n:
                position = self.unflattened(chunk * length + n)
                key_position, there = self.key_at(position, index)
                with only_where(there):
                    token, place = (b, *position, h), (b, *key_position, h // self.group)
                    rows = (
                        key_row.read("q", self.query, token, lane),
                        key_row.read("k", self.key, place, lane),
                        value_row.read("g", self.d_out, token, lane),
                        value_row.read("v", self.value, place, lane),
                    )
                    _, d_score = self.from_statistics("b", *self.pair("b", rows, scale, (h, *index)), token)
                    T.buffer_store(total, total[0] + d_score, [0])
            with only_where(lane == 0):
                T.buffer_store(self.bias_sums, total[0], [b, chunk, h, *index])

    def unflattened(self, n: Any) -> tuple[Any, ...]:
        """The position of the n-th query, in registers."""
        position: list[Any] = []
        for axis in range(self.problem.rank - 1, 0, -1):
            size = self.problem.spatial[axis]
            position.insert(0, number(f"i{axis}", n % size, "int32"))
            n = n // size
        return (number("i0", n, "int32"), *position)

    def key_at(self, position: Sequence[Any], index: Sequence[Any]) -> tuple[list[Any], Any]:
        """The position of the key with this index into the bias, and whether the query sees such a key."""
        found, conditions = [], []
        for i, e, axis in zip(position, index, self.problem.axes, strict=True):
            residue, t, _, there = axis_key(i, e, *axis)
            found.append(residue + axis[3] * t)
            conditions += there
        return found, tirx.all(*conditions)

    def join_bias(self) -> None:
        """d_rpb: the chunks of all samples."""
        p, count = self.problem, self.batch * self.chunks
        with self.block("d_rpb", (*p.bias_shape, JOINING), [self.d_rpb], [self.bias_sums]) as (h, *index, lane):
            total = registers("d_rpb_sum", (1,), self.accum)
            T.buffer_store(total, self.const(0), [0])
            with T.serial(0, (count + JOINING - 1) // JOINING) as turn:
                n = turn * JOINING + lane
                with only_where(n < count):
                    found = self.bias_sums[(n // self.chunks, n % self.chunks, h, *index)]
                    T.buffer_store(total, total[0] + found, [0])
            T.buffer_store(total, group_sum(total[0], JOINING, self.accum), [0])
            with only_where(lane == 0):
                T.buffer_store(self.d_rpb, total[0].astype(p.dtype), [h, *index])
