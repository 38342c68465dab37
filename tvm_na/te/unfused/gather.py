"""The unfused operators in a form that threads of a GPU can share: any rank, every option, every dtype.

Scores and sums over keys are tensor expressions in which the window is one flat axis, as in ``gather.py``. Sums over
queries, and for a bias, are TIR blocks, each what one thread does: its loops run over the queries that there are.

Kernels are called as ``kernel(query, key, scale[, rpb], out)``, ``kernel(attn, value, scale, out)``,
``kernel(attn, query, scale, out)`` and ``kernel(attn, out)``, on contiguous tensors; see
:mod:`tvm_na.problems.unfused` for their shapes. scale is ``[1]`` in the dtype of sums.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.te.common.blocks import argument, loops, whole
from tvm_na.te.common.formulation import of_blocks
from tvm_na.te.common.neighbors import Neighbors
from tvm_na.te.common.operands import Operands
from tvm_na.te.common.rows import unravelled
from tvm_na.te.common.threads import registers
from tvm_na.te.common.window import axis_key
from tvm_na.te.unfused.lanes_transposed import over_queries
from tvm_na.te.unfused.step import Step
from tvm_na.te.unfused.tiles import UnfusedTile


def gathered(problem: UnfusedProblem, tile: UnfusedTile, batch_size: int | None = None) -> Any:
    """An unscheduled PrimFunc of any kind but ``bias_sums``; the batch is symbolic unless ``batch_size`` is given.

    Raises:
        ValueError: if ``parts`` or ``width`` does not divide the channels, or for ``bias_sums``, of which there are
            ``bias_parts`` alone.
    """
    for name, n in (("parts", tile.parts), ("width", tile.width)):
        if n < 1 or problem.channels % n:
            raise ValueError(f"{name}: required a divisor of {problem.channels} channels, got {n}")
    if problem.kind == "bias_sums":
        raise ValueError(f"problem: required another kind than bias_sums, got {problem}")
    if problem.kind in ("av_transposed", "bias_parts"):
        write = _av_transposed if problem.kind == "av_transposed" else _bias_parts
        return of_blocks(lambda: write(problem, tile, batch_size), problem, tile.to_json())
    step = _Step(problem, batch_size)
    out = _av(step) if problem.kind == "av" else _scores(step, tile)
    return step.ops.prim_func(problem, [out], tile.to_json())


# --- tensor expressions


class _Step(Step):
    """Index arithmetic of a window as one flat axis."""

    def __init__(self, problem: UnfusedProblem, batch_size: int | None) -> None:
        super().__init__(problem, batch_size)
        self.near = Neighbors(self.problem)

    def offset(self, w: Any) -> tuple[Any, ...]:
        """The offset of the ``w``-th key of a window along each axis."""
        return unravelled(w, self.problem.kernel_size)


def _scores(step: _Step, tile: UnfusedTile) -> Any:
    """The output of ``qk`` or ``dots``."""
    p, near, accum = step.problem, step.near, step.accum
    query, key, rpb = step.ops.query, step.ops.key, step.ops.rpb
    part = p.head_dim // tile.parts
    d, n = te.reduce_axis((0, part), name="d"), te.reduce_axis((0, tile.parts), name="p")

    def partial_dot(*t: Any) -> Any:
        b, position, h, (w, q) = step.apart(t)
        place = near.key_position(position, step.offset(w))
        product = query[(b, *position, h, q * part + d)].astype(accum)
        return te.sum(product * key[(b, *place, h // step.group, q * part + d)].astype(accum), axis=d)

    window = (*step.tokens, step.window)
    partial = te.compute((*window, tile.parts), partial_dot, name="partial")
    dots = te.compute(window, lambda *t: te.sum(partial[(*t, n)], axis=n), name="dots")
    missing = tirx.const(0 if step.kind == "dots" else float("-inf"), accum)

    def score(*t: Any) -> Any:
        _, position, h, (w,) = step.apart(t)
        found = dots[t] * step.ops.scale[0]
        if rpb is not None:
            found = found + rpb[(h, *near.bias_index(position, step.offset(w)))].astype(accum)
        return near.select(position, step.offset(w), found, missing).astype(p.dtype)

    return te.compute(window, score, name="out")


def _av(step: _Step) -> Any:
    """The output of ``av``."""
    p, near, accum = step.problem, step.near, step.accum
    attn, value = step.ops.attn, step.ops.value
    weights = te.compute(attn.shape, lambda *t: attn[t].astype(accum), name="weights")
    e = te.reduce_axis((0, step.window), name="e")

    def weighted(*t: Any) -> Any:
        b, position, h, (x,) = step.apart(t)
        place = near.key_position(position, step.offset(e))
        found = weights[(b, *position, h, e)] * value[(b, *place, h // step.group, x)].astype(accum)
        # A weight without a key may be anything, and so may the value that is read for it.
        return te.sum(near.select(position, step.offset(e), found, tirx.const(0, accum)), axis=e)

    shape = (*step.tokens, p.head_dim)
    sums = te.compute(shape, weighted, name="sums")
    return te.compute(shape, lambda *t: (sums[t] * step.ops.scale[0]).astype(p.dtype), name="out")


# --- blocks


def _av_transposed(problem: UnfusedProblem, tile: UnfusedTile, batch_size: int | None) -> None:
    """Some channels of a key, query after query."""
    p, group, width = problem.forward, problem.forward.heads // problem.forward.heads_kv, tile.width
    ops = Operands.of(problem, batch_size, argument)
    batch, attn, query, scale = ops.batch, ops.attn, ops.query, ops.scale
    out = argument("out", (batch, *p.spatial, p.heads_kv, p.head_dim), p.dtype)
    extents = (batch, *p.spatial, p.heads_kv, p.head_dim // width)
    with loops(extents) as variables, T.sblock("out"):
        b, *position, h, block = [T.axis.spatial(n, v) for n, v in zip(extents, variables, strict=True)]
        T.reads(attn[whole(attn)], query[whole(query)], scale[0])
        T.writes(out[(b, *position, h, slice(block * width, (block + 1) * width))])
        total = registers("total", (width,), p.accum_dtype)
        # Loads and stores are of vectors, arithmetic is not: TVM has no vectors of eight float32.
        held, weight = registers("held", (width,), p.dtype), registers("weight", (1,), p.accum_dtype)

        def of_query(places: list[Any], offset: Any) -> None:
            with T.serial(0, group) as g:
                head = h * group + g
                T.buffer_store(weight, attn[(b, *places, head, offset)].astype(p.accum_dtype), [0])
                with T.vectorized(0, width) as lane:
                    T.buffer_store(held, query[(b, *places, head, block * width + lane)], [lane])
                with T.unroll(0, width) as lane:
                    T.buffer_store(total, total[lane] + weight[0] * held[lane].astype(p.accum_dtype), [lane])

        with T.unroll(0, width) as lane:
            T.buffer_store(total, tirx.const(0, p.accum_dtype), [lane])
        over_queries(problem, position, of_query)
        with T.unroll(0, width) as lane:
            T.buffer_store(held, (total[lane] * scale[0]).astype(p.dtype), [lane])
        with T.vectorized(0, width) as lane:
            T.buffer_store(out, held[lane], [b, *position, h, block * width + lane])


def _bias_parts(problem: UnfusedProblem, tile: UnfusedTile, batch_size: int | None) -> None:
    """One index of a head's bias, over the queries of one part of a sample, each of which has at most one such key."""
    p = problem.forward
    rows, columns = problem.part
    width, count = p.spatial[-1], prod(p.spatial[:-1])
    across = -(-width // columns)  # parts of a row
    indices = tuple(2 * k - 1 for k in p.kernel_size)
    ops = Operands.of(problem, batch_size, argument)
    batch, attn = ops.batch, ops.attn
    out = argument("out", (batch, problem.parts, *p.bias_shape), p.accum_dtype)
    extents = (batch, problem.parts, p.heads, prod(indices))
    with loops(extents) as variables, T.sblock("out"):
        b, part, h, flat = [T.axis.spatial(n, v) for n, v in zip(extents, variables, strict=True)]
        index = unravelled(flat, indices)
        T.reads(attn[whole(attn)])
        T.writes(out[(b, part, h, *index)])
        total = registers("total", (1,), p.accum_dtype)
        T.buffer_store(total, tirx.const(0, p.accum_dtype), [0])
        with T.serial(0, rows) as n:
            row = part // across * rows + n
            places = unravelled(row, p.spatial[:-1])
            offset: Any = 0
            there = [row < count] if count % rows else []
            for i, e, axis in zip(places, index[:-1], p.axes[:-1], strict=True):
                _, _, own, conditions = axis_key(i, e, *axis)
                offset, there = offset * axis[1] + own, [*there, *conditions]
            with T.If(tirx.all(*there) if there else tirx.const(1, "bool")), T.Then(), T.serial(0, columns) as m:
                column = part % across * columns + m
                _, _, own, conditions = axis_key(column, index[-1], *p.axes[-1])
                conditions += [column < width] if width % columns else []
                with T.If(tirx.all(*conditions)), T.Then():
                    found = attn[(b, *places, column, h, offset * p.kernel_size[-1] + own)].astype(p.accum_dtype)
                    T.buffer_store(total, total[0] + found, [0])
        T.buffer_store(out, total[0], [b, part, h, *index])
