"""An output in another layout than its loops: part of what is computed, though TVM counts it among schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def with_output_layout(func: Any, place: Callable[..., tuple[Any, ...]], block: str = "out") -> Any:
    """``func``, of which a block writes each element to ``place(*index)`` of a new output; its loops stay.

    Args:
        func: An unscheduled PrimFunc.
        place: From the index of an element to that in the new output.
        block: The name of the block.
    """
    import tvm
    from tvm import s_tir

    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    sch.transform_layout(block, ("write", 0), place)
    return sch.mod["main"]
