"""Functions whose body is written when a schedule has drawn all sizes, since it depends on them.

A schedule can cut loops, but not a computation whose parts are as large as a parameter says. So it schedules a function
with an empty block, at which it notes the values of its parameters as annotations; traces, records and the tuner see
these. What is compiled is the function that is written from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm_na.cuda.limits import LEAST_REGISTERS
from tvm_na.problems.registry import problem_from_json
from tvm_na.te.attention.flash_tile import FlashShape, FlashTile, least_registers
from tvm_na.te.backward import flash_tile as backward_tile
from tvm_na.te.backward.flash_tile import BackwardFlashShape, BackwardFlashTile

#: What the names of annotations begin with; those of the gradients have one more part, which names a kernel.
PREFIX = "tvm_na.flash."
QUERIES, KEYS = "queries.", "keys."
_BLOCK = "out"


def annotations_of(shape: FlashShape, part: str = "") -> dict[str, Any]:
    """A shape as numbers by name; the inverse of what :func:`written` reads."""
    numbers: dict[str, Any] = {}
    for name, (planes, rows, columns) in (("tiles", shape.tiles), ("warps", shape.warps)):
        numbers |= {f"{name}.planes": planes, f"{name}.rows": rows, f"{name}.columns": columns}
    kept = {"keys": shape.keys, "stages": shape.stages, "swizzled": shape.swizzled, "keeps": shape.keeps_queries}
    return {PREFIX + part + name: value for name, value in (numbers | kept).items()}


def _shape_of(annotations: Mapping[str, Any], part: str = "") -> FlashShape:
    def number(name: str) -> int:
        return int(annotations[PREFIX + part + name])

    def along(name: str) -> tuple[int, int, int]:
        return number(f"{name}.planes"), number(f"{name}.rows"), number(f"{name}.columns")

    swizzled, keeps = bool(number("swizzled")), bool(number("keeps"))
    return FlashShape(along("tiles"), along("warps"), number("keys"), number("stages"), swizzled, keeps)


def written(module: Any) -> Any:
    """A scheduled module in which every function has its body (imports TVM)."""
    import tvm

    functions = {variable: _written(func) for variable, func in module.functions.items()}
    return tvm.IRModule(functions, attrs=module.attrs)


def _written(func: Any) -> Any:
    of_attention, of_gradients = FlashTile.of(func), BackwardFlashTile.of(func)
    if of_attention is None and of_gradients is None:
        return func
    problem: Any = problem_from_json(str(func.attrs["tvm_na.problem"]))
    annotations = _block_of(func).annotations
    batch = getattr(func.params[0].shape[0], "value", None)
    batch = None if batch is None else int(batch)
    if of_gradients is not None:
        from tvm_na.te.backward import flash as gradients

        shapes = BackwardFlashShape(_shape_of(annotations, QUERIES), _shape_of(annotations, KEYS))
        body = gradients.written(problem, of_gradients, shapes, batch)
        least = backward_tile.least_registers(problem.forward, shapes)
    else:
        from tvm_na.te.attention import flash

        shape = _shape_of(annotations)
        body = flash.written(problem, of_attention, shape, batch)
        least = least_registers(problem, shape)
    return body.with_attrs({**dict(func.attrs.items()), LEAST_REGISTERS: least})


def _block_of(func: Any) -> Any:
    """The block that bears the annotations."""
    block = func.body.block
    while block.name_hint != _BLOCK:
        block = block.body.block
    return block
