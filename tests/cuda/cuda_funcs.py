"""A small function for a GPU, scheduled by hand: what CUDA tests compile that are not about attention."""

from __future__ import annotations

from typing import Any

import pytest

from tvm_na.cuda import toolchain


def missing(find: Any) -> bool:
    """Whether ``find``, of a compiler, finds none."""
    try:
        find()
    except RuntimeError:
        return True
    return False


needs_compiler = pytest.mark.skipif(missing(toolchain.find_compiler), reason="there is neither NVRTC nor nvcc")
needs_nvcc = pytest.mark.skipif(missing(toolchain.find_nvcc), reason="there is no nvcc")

ROWS, COLUMNS = 4, 96
#: Bytes of shared memory that a block of :func:`row_sums` in float32 takes.
SHARED_BYTES = ROWS * COLUMNS * 4


def row_sums(dtype: str = "float32", attributes: dict[str, Any] | None = None, workspace: bool = False) -> Any:
    """The IRModule of ``main(x [batch, ROWS, COLUMNS], scale [1], out [batch, ROWS])``: scaled sums of rows.

    A block does one sample through shared memory, a warp a row.

    Args:
        dtype: Of x and out; sums and scale are float32, as in attention.
        attributes: Further attributes of the function.
        workspace: Whether x is copied to global memory first, by a kernel of its own.
    """
    import tvm
    from tvm import s_tir, te, tirx

    batch = tirx.Var("batch", "int32")
    x = te.placeholder((batch, ROWS, COLUMNS), dtype, name="x")
    scale = te.placeholder((1,), "float32", name="scale")
    k = te.reduce_axis((0, COLUMNS), name="k")
    copy = te.compute((batch, ROWS, COLUMNS), lambda b, i, j: x[b, i, j], name="copy")
    total = te.compute((batch, ROWS), lambda b, i: te.sum(copy[b, i, k].astype("float32"), axis=k), name="total")
    out = te.compute((batch, ROWS), lambda b, i: (total[b, i] * scale[0]).astype(dtype), name="out")
    func = te.create_prim_func([x, scale, out]).with_attr("global_symbol", "main")
    for name, value in (attributes or {}).items():
        func = func.with_attr(name, value)
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    sample, row = sch.get_loops(sch.get_sblock("out"))
    sch.bind(sample, "blockIdx.x")
    sch.bind(row, "threadIdx.y")
    sch.compute_at(sch.get_sblock("total"), row, preserve_unit_loops=True)
    sch.set_scope(sch.get_sblock("total"), 0, "local")
    _, lane = sch.split(sch.get_loops(sch.get_sblock("total"))[-1], [None, 32])
    sch.bind(lane, "threadIdx.x")
    if workspace:
        sample, *inner = sch.get_loops(sch.get_sblock("copy"))
        sch.bind(sample, "blockIdx.x")
        sch.bind(sch.fuse(*inner), "threadIdx.x")
        return sch.mod
    sch.compute_at(sch.get_sblock("copy"), sample, preserve_unit_loops=True)
    sch.set_scope(sch.get_sblock("copy"), 0, "shared")
    fused = sch.fuse(*list(sch.get_loops(sch.get_sblock("copy")))[1:])
    _, row, lane = sch.split(fused, [None, ROWS, 32])
    sch.bind(row, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    return sch.mod
