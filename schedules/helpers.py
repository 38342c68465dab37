"""What the schedules of all spaces do with loops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm_na.schedules.base import Parameters
from tvm_na.targets.target import NATarget


@dataclass(eq=False)
class FuncSchedule(ABC):
    """Transforms the stages of one PrimFunc; parameters are set in the order of the calls.

    Attributes:
        sch: TVM's Schedule of a module with the function.
        problem: What the function computes.
        tile: What its formulation depends on.
        target: The machine.
        sketch: The sketch that is wanted.
        tune: Sets the parameters.
    """

    sch: Any
    problem: Any
    tile: Any
    target: NATarget
    sketch: str
    tune: Parameters

    def __post_init__(self) -> None:  # noqa: B027, most have something
        """Find what a subclass has beside."""

    @abstractmethod
    def build(self) -> None:
        """Apply every transformation."""

    def block(self, name: str) -> Any:
        """The block of a stage."""
        return self.sch.get_sblock(name)

    def loops(self, name: str) -> list[Any]:
        """All loops around a stage."""
        return list(self.sch.get_loops(self.block(name)))

    def extent(self, loop: Any) -> int | None:
        """How often a loop runs; None where that is an expression, such as a batch or a part of uneven groups."""
        value = getattr(self.sch.get(loop).extent, "value", None)
        return None if value is None else int(value)

    def split(self, loop: Any, factors: Sequence[Any]) -> list[Any]:
        """Cut a loop into nested ones; loops that run once stay."""
        return list(self.sch.split(loop, factors, preserve_unit_iters=True))

    def fuse(self, loops: Sequence[Any]) -> Any:
        """Make one of several loops."""
        return self.sch.fuse(*loops, preserve_unit_iters=True) if len(loops) > 1 else loops[0]

    def merge(self, loops: Sequence[Any]) -> Any:
        """Make one nest of those of several outputs: only in one can all have what they share at hand."""
        return self.sch.merge(*loops) if len(loops) > 1 else loops[0]

    def unroll(self, *loops: Any) -> None:
        """Unroll loops; one whose extent is an expression stays a loop."""
        for loop in loops:
            if self.extent(loop) is not None:
                self.sch.unroll(loop)

    def split_off_init(self, name: str, loop: Any, unrolled: int) -> Any:
        """The zeros of a reduction in a block of their own in front of ``loop``.

        Unrolls so many loops outside of the last one, and returns that.
        """
        *outer, last = self.sch.get_loops(self.sch.decompose_reduction(self.block(name), loop))
        self.unroll(*outer[len(outer) - unrolled :])
        return last

    def unroll_by_compiler(self, loop: Any, name: str, options: Sequence[int], default: int) -> None:
        """Let the compiler unroll a loop, if it has no more steps than a parameter says."""
        steps = self.tune.one_of(name, options, default=default)
        self.sch.annotate(loop, "pragma_auto_unroll_max_step", steps)
        self.sch.annotate(loop, "pragma_unroll_explicit", 0)
