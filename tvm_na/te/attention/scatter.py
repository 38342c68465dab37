"""Outputs that are written from where they are computed, to a place that depends on it: no tensor expression says that.

An expression names for each element of an output where it is read. Where outputs are computed in tiles that go beyond
the end, or in groups of positions, TVM cannot tell from that which elements belong to a tile. Here each element of a
tile names where it is written, if anywhere; then nothing has to be told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scatter:
    """An output.

    Attributes:
        name: Its name.
        shape: Its shape.
        place: ``place(*indices)`` of an element of what is computed: its indices in the output, and whether there is
            such an element.
    """

    name: str
    shape: Sequence[Any]
    place: Callable[..., tuple[Sequence[Any], Any]]


def scattered(func: Any, scatters: Sequence[Scatter]) -> Any:
    """``func`` with its last parameters, the outputs, each replaced by one that it is scattered to.

    What was an output becomes a buffer of the function, and a block with the name of the new output writes the latter.

    Args:
        func: A PrimFunc made from tensor expressions.
        scatters: One for each of the last parameters, in their order.
    """
    from tvm import s_tir, tirx

    root = func.body.block
    inputs, computed = func.params[: -len(scatters)], func.params[-len(scatters) :]
    outputs = [
        tirx.decl_buffer(scatter.shape, source.dtype, scatter.name)
        for source, scatter in zip(computed, scatters, strict=True)
    ]
    blocks = [_block(*each) for each in zip(computed, outputs, scatters, strict=True)]
    body = tirx.SeqStmt([*root.body.seq, *blocks])
    buffers = [*root.alloc_buffers, *computed]
    whole = s_tir.SBlock([], [], [], root.name_hint, body, alloc_buffers=buffers, annotations=root.annotations)
    return tirx.PrimFunc([*inputs, *outputs], s_tir.SBlockRealize([], True, whole), func.ret_type, func.attrs)


def _block(source: Any, output: Any, scatter: Scatter) -> Any:
    """Loops over all that is computed, and a block that writes it where it belongs."""
    from tvm import ir, s_tir, tirx

    extents = list(source.shape)
    loops = [tirx.Var(f"i{n}", "int32") for n in range(len(extents))]
    indices = [tirx.Var(f"v_i{n}", "int32") for n in range(len(extents))]
    spatial = tirx.IterVar.DataPar
    iters = [tirx.IterVar(ir.Range(0, n), v, spatial) for n, v in zip(extents, indices, strict=True)]
    place, there = scatter.place(*indices)
    store = tirx.IfThenElse(there, tirx.BufferStore(output, tirx.BufferLoad(source, indices), place), None)
    reads = [tirx.BufferRegion(source, [ir.Range.from_min_extent(v, 1) for v in indices])]
    writes = [tirx.BufferRegion(output, [ir.Range.from_min_extent(at, 1) for at in place])]
    stmt: Any = s_tir.SBlockRealize(loops, True, s_tir.SBlock(iters, reads, writes, scatter.name, store))
    for loop, extent in zip(reversed(loops), reversed(extents), strict=True):
        stmt = tirx.For(loop, 0, extent, tirx.ForKind.SERIAL, stmt)
    return stmt
