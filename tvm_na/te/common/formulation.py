"""From an expression to a kernel's PrimFunc: what it depends on beside its problem, and the marks it bears."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tvm_na.problems.base import Problem
from tvm_na.te import ENTRY

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Tile:
    """The sizes that a formulation depends on; each formulation has a class of its own.

    Attributes:
        formulation: Its name.
    """

    formulation: ClassVar[str]

    def to_json(self) -> str:
        """A canonical JSON text: the name of the formulation, and every field."""
        return json.dumps({"formulation": self.formulation, **asdict(self)}, sort_keys=True)

    @classmethod
    def of(cls, func: Any) -> Self | None:
        """The tile of a PrimFunc; None if it is not in this formulation."""
        fields = json.loads(str(func.attrs.get("tvm_na.formulation", "{}"))) if func.attrs else {}
        return cls(**fields) if fields.pop("formulation", None) == cls.formulation else None


def batch_axis(size: int | None) -> Any:
    """The extent of the first axis: ``size`` samples, or any number of them."""
    from tvm import tirx

    return tirx.Var("batch", "int32") if size is None else size


def marked(func: Any, problem: Problem, formulation: str) -> Any:
    """``func`` as a kernel's function that says what it computes, and how. Shipped records hold these names."""
    marks = {"global_symbol": ENTRY, "tvm_na.problem": problem.to_json(), "tvm_na.formulation": formulation}
    return func.with_attrs(marks)


def of_expressions(arguments: list[Any], problem: Problem, formulation: str) -> Any:
    """The PrimFunc of tensor expressions with these arguments, outputs last."""
    from tvm import te

    return marked(te.create_prim_func(arguments), problem, formulation)


def of_blocks(make: Callable[[], None], problem: Problem, formulation: str) -> Any:
    """The PrimFunc whose arguments and blocks ``make()`` writes with TVM's IRBuilder."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(ENTRY)
        make()
    return marked(builder.get().with_attr("tirx.noalias", True), problem, formulation)
