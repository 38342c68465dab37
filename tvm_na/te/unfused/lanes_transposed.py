"""Sums over the queries that see a key, and over the pairs that share an index of a bias.

How many queries see a key depends on where it is, which no tensor expression can say: loops here run over the queries
that there are, no more. So these are TIR blocks (``blocks.py``), whose inner loops are written as they are to run.

Kernels are called as ``kernel(attn, query, scale, out)`` and ``kernel(attn, d_rpb)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.te.common.blocks import argument, local, loops, store, sums, whole
from tvm_na.te.common.formulation import of_blocks
from tvm_na.te.common.halves import Conversions
from tvm_na.te.common.operands import Operands
from tvm_na.te.common.rows import Rows
from tvm_na.te.common.window import axis_queries, group_length, group_window
from tvm_na.te.unfused.tiles import TransposedTile

# Lanes of the vectors that a window's row is cut into, where it is longer than two of them.
_LANES = 16


def transposed(
    problem: UnfusedProblem, tile: TransposedTile, batch_size: int | None = None, float16_instructions: bool = True
) -> Any:
    """``av_transposed`` or ``bias_sums`` as an unscheduled PrimFunc; the batch is symbolic unless it is given."""
    write = _bias_sums if problem.kind == "bias_sums" else _av_transposed
    convert = Conversions(problem.dtype, problem.accum_dtype, float16_instructions)
    return of_blocks(lambda: write(problem, tile, batch_size, convert), problem, tile.to_json())


def _av_transposed(problem: UnfusedProblem, tile: TransposedTile, batch_size: int | None, convert: Conversions) -> None:
    """For some channels of a key at a time, which stay in registers, query after query."""
    p, group = problem.forward, problem.forward.heads // problem.forward.heads_kv
    ops = Operands.of(problem, batch_size, argument)
    batch, attn, query, scale = ops.batch, ops.attn, ops.query, ops.scale
    out = argument("out", (batch, *p.spatial, p.heads_kv, p.head_dim), p.dtype)
    at_once = tile.vector * tile.vectors
    extents = (batch, *p.spatial, p.heads_kv, p.head_dim // at_once)
    with loops(extents) as variables, T.sblock("out"):
        b, *position, h, block = [T.axis.spatial(n, v) for n, v in zip(extents, variables, strict=True)]
        total = local("total", (tile.vectors, tile.vector), p.accum_dtype)

        def channel(v: Any, lane: Any) -> Any:
            return block * at_once + v * tile.vector + lane

        def of_query(places: list[Any], offset: Any) -> None:
            with T.serial(0, group) as g:
                head = h * group + g
                weight = convert.widened(attn[(b, *places, head, offset)])
                with T.unroll(0, tile.vectors) as v, T.vectorized(0, tile.vector) as lane:
                    number = convert.widened(query[(b, *places, head, channel(v, lane))])
                    T.buffer_store(total, total[v, lane] + weight * number, [v, lane])

        T.reads(attn[whole(attn)], query[whole(query)], scale[0])
        T.writes(out[(b, *position, h, slice(block * at_once, (block + 1) * at_once))])
        with T.unroll(0, tile.vectors) as v, T.vectorized(0, tile.vector) as lane:
            T.buffer_store(total, tirx.const(0, p.accum_dtype), [v, lane])
        over_queries(problem, position, of_query)
        with T.unroll(0, tile.vectors) as v, T.vectorized(0, tile.vector) as lane:
            found = convert.rounded(total[v, lane] * scale[0])
            T.buffer_store(out, found, [b, *position, h, channel(v, lane)])


def over_queries(problem: UnfusedProblem, key: list[Any], body: Callable[[list[Any], Any], None]) -> None:
    """``body(position, offset)`` for each query that sees a key, in loops; offset is the key's place in its window."""
    p = problem.forward

    def along(axis: int, places: list[Any], offset: Any) -> None:
        if axis == p.rank:
            body(places, offset)
            return
        length, k, stride, dilation, causal = p.axes[axis]
        residue, start, end = axis_queries(key[axis], *p.axes[axis])
        with T.serial(0, end - start) as n:
            t = start + n
            in_group = group_length(length, dilation, residue)
            first, _ = group_window(t, in_group, k, stride, causal)
            own = key[axis] // dilation - first
            along(axis + 1, [*places, residue + dilation * t], own if axis == 0 else offset * k + own)

    along(0, [], 0)


def _vectors(extent: int, body: Callable[[Any], None]) -> None:
    """``body`` for each of so many numbers, in vectors."""
    whole = extent // _LANES * _LANES if extent > 2 * _LANES else 0
    if whole:
        with T.serial(0, whole // _LANES) as v, T.vectorized(0, _LANES) as lane:
            body(v * _LANES + lane)
    if extent > whole:
        with T.vectorized(0, extent - whole) as lane:
            body(whole + lane)


def _bias_sums(problem: UnfusedProblem, tile: TransposedTile, batch_size: int | None, convert: Conversions) -> None:
    """Sums over some queries of a head in each task, and then over the tasks, in one order: no atomics."""
    p, rows, columns = problem.forward, Rows(problem.forward), problem.forward.kernel_size[-1]
    width, tokens = p.spatial[-1], rows.count * p.spatial[-1]
    ops = Operands.of(problem, batch_size, argument)
    batch, attn = ops.batch, ops.attn
    d_rpb = argument("d_rpb", p.bias_shape, p.dtype)
    chunks = -(-tokens // tile.tokens)
    tasks, bias = (batch, p.heads, chunks), (rows.bias_rows, 2 * columns - 1)
    partial = local("partial", (*tasks, *bias), p.accum_dtype)
    with loops(tasks) as variables, T.sblock("partial"):
        b, h, chunk = [T.axis.spatial(n, v) for n, v in zip(tasks, variables, strict=True)]
        T.reads(attn[whole(attn)])
        T.writes(partial[(b, h, chunk, slice(0, bias[0]), slice(0, bias[1]))])
        with T.serial(0, bias[0]) as y:
            _vectors(bias[1], lambda e: T.buffer_store(partial, tirx.const(0, p.accum_dtype), [b, h, chunk, y, e]))
        first = chunk * tile.tokens
        with T.serial(0, tirx.min(tile.tokens, tokens - first)) as n:
            i, j = (first + n) // width, (first + n) % width
            residue, t = j % p.dilation[-1], j // p.dilation[-1]
            in_group = group_length(width, p.dilation[-1], residue)
            start, end = group_window(t, in_group, columns, p.stride[-1], p.is_causal[-1])

            def add(a: Any, l: Any) -> None:
                at = [b, h, chunk, rows.bias_row(i, a), start - t + columns - 1 + l]
                found = convert.widened(attn[(b, *rows.place(i), j, h, a * columns + l)])
                there = rows.exists(i, a) + ([start + l < end] if p.is_causal[-1] else [])
                if there:
                    found = tirx.Select(tirx.all(*there), found, tirx.const(0, p.accum_dtype))
                T.buffer_store(partial, partial[tuple(at)] + found, at)

            with T.serial(0, rows.keys) as a:
                _vectors(columns, lambda l: add(a, l))

    shape = (p.heads, *bias)
    total = sums("total", shape, (batch, chunks), p.accum_dtype, lambda h, y, e, b, c: partial[b, h, c, y, e])
    place = lambda h, y, e: (h, *rows.bias_place(y), e)  # noqa: E731
    store("out", d_rpb, shape, lambda h, y, e: convert.rounded(total[h, y, e]), place)
