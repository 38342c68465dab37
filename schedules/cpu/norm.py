"""The schedule of layer norm on a CPU: rows in parallel, vectors of channels. There is nothing to tune."""

from __future__ import annotations

from typing import Any

from tvm_na.schedules.base import largest_divisor
from tvm_na.schedules.cpu.vectors import vector_length
from tvm_na.targets.target import NATarget


def lanes_for(channels: int, dtype: str, target: NATarget) -> int:
    """Elements of the vectors that a row is taken in."""
    return largest_divisor(channels, vector_length(dtype, target))


def schedule(func: Any) -> Any:
    """The scheduled IRModule of a PrimFunc of :func:`tvm_na.te.dense.norm.layer_norm` (imports TVM)."""
    import tvm
    from tvm import s_tir

    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    lanes = int(sch.get(sch.get_loops(sch.get_sblock("total_lanes"))[2]).extent)
    batch, row, channel = sch.get_loops(sch.get_sblock("out"))
    rows = sch.fuse(batch, row)
    for name in ("factor", "squares", "squares_lanes", "total", "total_lanes"):
        sch.compute_at(sch.get_sblock(name), rows, preserve_unit_loops=True)
    sch.parallel(rows)
    sch.vectorize(sch.split(channel, [None, lanes])[1])
    for name in ("total_lanes", "squares_lanes"):
        block = sch.get_sblock(name)
        lane, vector = sch.get_loops(block)[-2:]
        sch.reorder(vector, lane)
        sch.vectorize(lane)
        sch.vectorize(sch.get_loops(sch.decompose_reduction(block, vector))[-1])
    return sch.mod
