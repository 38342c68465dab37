"""What is left of a model beside its kernels (copies, means, sums): parallel loops over the output."""

from __future__ import annotations

from typing import Any


def unscheduled(module: Any) -> list[tuple[str, Any]]:
    """The PrimFuncs of a module that have no schedule, by name (imports TVM)."""
    from tvm import tirx

    def is_left(func: Any) -> bool:
        return isinstance(func, tirx.PrimFunc) and not (func.attrs and "tirx.is_scheduled" in func.attrs)

    return [(var.name_hint, func) for var, func in module.functions.items() if is_left(func)]


def scheduled(module: Any) -> Any:
    """The module with a schedule for each of :func:`unscheduled`."""
    for name, func in unscheduled(module):
        module.update_func(module.get_global_var(name), _scheduled(func))
    return module


def _scheduled(func: Any) -> Any:
    import tvm
    from tvm import s_tir

    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        spatial = [
            loop
            for loop, kind in zip(sch.get_loops(block), sch.get(block).iter_vars, strict=False)
            if kind.iter_type == 0  # spatial
        ]
        outer = spatial[: max(1, len(spatial) - 1)]
        if outer:
            sch.parallel(sch.fuse(*outer))
    return sch.mod["main"].with_attr("tirx.is_scheduled", True)
