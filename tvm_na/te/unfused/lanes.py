"""Scores, and sums of values by weights, as expressions that a CPU with vector registers computes well.

Rows are all axes but the last (``rows.py``), columns are the last; *lanes* are as many consecutive columns of a
dilation group as a window has, rounded up to whole vectors. Sums over the queries of a key are in
``lanes_transposed.py``.

Kernels are called as ``kernel(query, key, scale[, rpb], scores)`` and ``kernel(attn, value, scale, out)``, on
contiguous tensors with the shapes of :mod:`tvm_na.unfused`; scale is ``[1]`` in the dtype of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.te.common.rows import Rows, ravelled
from tvm_na.te.common.window import axis_window
from tvm_na.te.unfused.step import Step
from tvm_na.te.unfused.tiles import UnfusedLanesTile


def lanes_of(problem: UnfusedProblem, vector: int) -> int:
    """The columns of a window, rounded up to vectors of so many elements."""
    return -(-problem.forward.kernel_size[-1] // vector) * vector


class _Step(Step):
    """Index arithmetic of rows and columns."""

    def __init__(self, problem: UnfusedProblem, batch_size: int | None, float16_instructions: bool) -> None:
        super().__init__(problem, batch_size, float16_instructions)
        self.rows = Rows(self.problem)

    def columns(self, j: Any) -> tuple[Any, Any, Any]:
        """The group of a query's column, and start and end of its window in it."""
        return axis_window(j, *self.problem.axes[-1])

    def token_rows(self, name: str, source: Any) -> Any:
        """What tokens have, in the dtype of sums: each number is met often, and converted once."""
        if not self.convert.needed:
            return source
        return te.compute(source.shape, lambda *index: self.convert.widened(source[index]), name=name)

    def value_at(self) -> Callable[..., Any]:
        """A function of sample, head, position and channel. A value is met by every key's window: where widening it
        takes more than an instruction, that is done once, in a copy.
        """
        p, convert, value = self.problem, self.convert, self.ops.value

        def widened(b: Any, h: Any, position: tuple[Any, ...], x: Any) -> Any:
            return convert.widened(value[(b, *position, h, x)])

        if convert.is_one_instruction:
            return widened
        shape = (self.ops.batch, p.heads_kv, *p.spatial, p.head_dim)
        packed = te.compute(shape, lambda b, h, *rest: widened(b, h, rest[:-1], rest[-1]), name="packed_value")
        return lambda b, h, position, x: packed[(b, h, *position, x)]

    def row(self, position: tuple[Any, ...]) -> Any:
        """The row of a position."""
        return ravelled(position[:-1], self.rows.sizes)


def qk(problem: UnfusedProblem, vector: int, batch_size: int | None = None, float16_instructions: bool = True) -> Any:
    """Scores as an unscheduled PrimFunc; the batch is symbolic unless ``batch_size`` is given.

    Keys are packed first, ``[batch, heads_kv, row group, row, column group, head_dim, column]``, so that the products
    of a query with a row of its window are vectors along the columns, whatever the dilation and the head dimension.
    """
    step = _Step(problem, batch_size, float16_instructions)
    p, rows = step.problem, step.rows
    lanes, columns = lanes_of(problem, vector), p.kernel_size[-1]
    key, rpb = step.ops.key, step.ops.rpb
    dilation, width = p.dilation[-1], p.spatial[-1]
    # The last window of a group begins at its length less the columns. An odd number of vectors: with a power of two
    # the rows of a window would fall into few sets of the first cache.
    packed_width = (-(-(-(-width // dilation) - columns + lanes) // vector) | 1) * vector

    def packed(b: Any, h: Any, row_group: Any, y: Any, r: Any, d: Any, x: Any) -> Any:
        row, column = rows.packed_row(row_group, y), r + dilation * x
        outside = []
        if rows.groups[0] * rows.groups[1] > rows.count:
            outside.append(row < rows.count)
            row = tirx.min(row, rows.count - 1)
        if packed_width * dilation > width:
            outside.append(column < width)
            column = tirx.min(column, width - 1)
        value = step.convert.widened(key[(b, *rows.place(row), column, h, d)])
        return tirx.Select(tirx.all(*outside), value, tirx.const(0, p.accum_dtype)) if outside else value

    packed_key = te.compute(
        (step.ops.batch, p.heads_kv, *rows.groups, dilation, p.head_dim, packed_width), packed, name="packed_key"
    )
    query = step.token_rows("token_query", step.ops.query)
    d = te.reduce_axis((0, p.head_dim), name="d")

    def dot(*index: Any) -> Any:
        b, position, h, (a, l) = step.apart(index)
        residue, start, _ = step.columns(position[-1])
        there = packed_key[(b, h // step.group, *rows.key(step.row(position), a), residue, d, start + l)]
        return te.sum(query[(b, *position, h, d)] * there, axis=d)

    dots = te.compute((*step.tokens, rows.keys, lanes), dot, name="dots")

    def score(*index: Any) -> Any:
        b, position, h, (w,) = step.apart(index)
        a, l = (w // columns, w % columns) if rows.keys > 1 else (0, w)
        i, (_, start, end) = step.row(position), step.columns(position[-1])
        found = dots[(b, *position, h, a, l)] * step.ops.scale[0]
        if rpb is not None:
            column = start + l - position[-1] // dilation + columns - 1
            found = found + step.convert.widened(rpb[(h, *rows.bias_place(rows.bias_row(i, a)), column)])
        there = rows.exists(i, a) + ([start + l < end] if p.is_causal[-1] else [])
        missing = tirx.const(0 if step.kind == "dots" else float("-inf"), step.accum)
        return step.convert.rounded(tirx.Select(tirx.all(*there), found, missing) if there else found)

    scores = te.compute((*step.tokens, step.window), score, name="out")
    return step.ops.prim_func(problem, [scores], UnfusedLanesTile(vector).to_json())


def av(problem: UnfusedProblem, vector: int, batch_size: int | None = None, float16_instructions: bool = True) -> Any:
    """Sums of values by weights as an unscheduled PrimFunc; the batch is symbolic unless ``batch_size`` is given.

    What a causal window masks is read, which is on the map, but counts nothing.
    """
    step = _Step(problem, batch_size, float16_instructions)
    p, rows, columns = step.problem, step.rows, step.problem.kernel_size[-1]
    attn, value_at = step.token_rows("token_attn", step.ops.attn), step.value_at()
    a, l = te.reduce_axis((0, rows.keys), name="a"), te.reduce_axis((0, columns), name="l")
    dilation = p.dilation[-1]

    def weighted(*index: Any) -> Any:
        b, position, h, (x,) = step.apart(index)
        i, (residue, start, end) = step.row(position), step.columns(position[-1])
        row, column = rows.key_row(i, a), residue + dilation * (start + l)
        there = rows.exists(i, a) + ([start + l < end] if p.is_causal[-1] else [])
        found = attn[(b, *position, h, a * columns + l)] * value_at(b, h // step.group, (*rows.place(row), column), x)
        # A weight without a key may be anything, and so may the value that is read for it.
        return te.sum(tirx.Select(tirx.all(*there), found, tirx.const(0, step.accum)) if there else found, axis=[a, l])

    shape = (*step.tokens, p.head_dim)
    sums = te.compute(shape, weighted, name="sums")
    out = te.compute(shape, lambda *index: step.convert.rounded(sums[index] * step.ops.scale[0]), name="out")
    return step.ops.prim_func(problem, [out], UnfusedLanesTile(vector).to_json())
