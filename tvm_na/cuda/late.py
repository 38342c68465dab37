"""Functions whose body is written when a schedule has drawn all sizes, since it depends on them.

A schedule can cut loops, but not a computation whose parts are as large as a parameter says. So it schedules a function
with an empty block, at which it notes the values of its parameters as annotations; traces, records and the tuner see
these. What is compiled is the function that is written from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tvm_na.cuda.limits import LEAST_REGISTERS
from tvm_na.problems.registry import problem_from_json
from tvm_na.te.attention import flash_tile, strip_axis
from tvm_na.te.attention.flash_tile import FlashShape, FlashTile
from tvm_na.te.attention.strip_tile import StripShape, StripTile
from tvm_na.te.backward import flash_tile as backward_tile
from tvm_na.te.backward.flash_tile import BackwardFlashShape, BackwardFlashTile

#: What the names of annotations begin with, of the flash and of the strip formulation; those of the gradients have one
#: more part, which names a kernel.
PREFIX = "tvm_na.flash."
STRIP_PREFIX = "tvm_na.strip."
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
    kinds: tuple[tuple[Any, Any], ...] = ((FlashTile, _flash), (StripTile, _strip), (BackwardFlashTile, _gradients))
    for kind, make in kinds:
        tile = kind.of(func)
        if tile is not None:
            problem, size = problem_from_json(str(func.attrs["tvm_na.problem"])), func.params[0].shape[0]
            batch = None if getattr(size, "value", None) is None else int(size)
            body, least = make(problem, tile, _block_of(func).annotations, batch)
            return body.with_attrs({**dict(func.attrs.items()), LEAST_REGISTERS: least})
    return func


def _flash(problem: Any, tile: FlashTile, annotations: Any, batch: int | None) -> tuple[Any, int]:
    """The function with its body, and the registers that a thread cannot do without."""
    from tvm_na.te.attention import flash

    shape = _shape_of(annotations)
    return flash.written(problem, tile, shape, batch), flash_tile.least_registers(problem, shape)


def _strip(problem: Any, tile: StripTile, annotations: Any, batch: int | None) -> tuple[Any, int]:
    """The same of a strip."""
    from tvm_na.te.attention import strip

    numbers = {field.name: int(annotations[STRIP_PREFIX + field.name]) for field in fields(StripShape)}
    return strip.written(problem, tile, StripShape(**numbers), batch), strip_axis.least_registers(problem, tile)


def _gradients(problem: Any, tile: BackwardFlashTile, annotations: Any, batch: int | None) -> tuple[Any, int]:
    """The same of the gradients, whose kernels have a shape each."""
    from tvm_na.te.backward import flash

    shapes = BackwardFlashShape(_shape_of(annotations, QUERIES), _shape_of(annotations, KEYS))
    return flash.written(problem, tile, shapes, batch), backward_tile.least_registers(problem.forward, shapes)


def _block_of(func: Any) -> Any:
    """The block that bears the annotations."""
    block = func.body.block
    while block.name_hint != _BLOCK:
        block = block.body.block
    return block
