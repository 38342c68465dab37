"""Functions whose body is written when a schedule has drawn all sizes, since it depends on them.

A schedule can cut loops, but not a computation whose parts are as large as a parameter says. So it schedules a function
with an empty block, at which it notes the values of its parameters as annotations; traces, records and the tuner see
these. What is compiled is the function that is written from them.
"""

from __future__ import annotations

from typing import Any

from tvm_na.cuda.limits import LEAST_REGISTERS
from tvm_na.problems.attention import NAProblem
from tvm_na.te.attention.flash_tile import FlashShape, FlashTile, least_registers

#: What the names of annotations begin with.
PREFIX = "tvm_na.flash."
_BLOCK = "out"


def annotations_of(shape: FlashShape) -> dict[str, Any]:
    """A shape as numbers by name; the inverse of what :func:`written` reads."""
    numbers: dict[str, Any] = {}
    for name, (planes, rows, columns) in (("tiles", shape.tiles), ("warps", shape.warps)):
        numbers |= {f"{name}.planes": planes, f"{name}.rows": rows, f"{name}.columns": columns}
    kept = {"keys": shape.keys, "stages": shape.stages, "swizzled": shape.swizzled, "keeps": shape.keeps_queries}
    return {PREFIX + name: value for name, value in (numbers | kept).items()}


def _shape_of(annotations: Any) -> FlashShape:
    def number(name: str) -> int:
        return int(annotations[PREFIX + name])

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
    tile = FlashTile.of(func)
    if tile is None:
        return func
    from tvm_na.te.attention import flash

    problem = NAProblem.from_json(str(func.attrs["tvm_na.problem"]))
    shape = _shape_of(_block_of(func).annotations)
    batch = getattr(func.params[0].shape[0], "value", None)
    body = flash.written(problem, tile, shape, None if batch is None else int(batch))
    return body.with_attrs({**dict(func.attrs.items()), LEAST_REGISTERS: least_registers(problem, shape)})


def _block_of(func: Any) -> Any:
    """The block that bears the annotations."""
    block = func.body.block
    while block.name_hint != _BLOCK:
        block = block.body.block
    return block
