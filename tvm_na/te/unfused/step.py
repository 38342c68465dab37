"""What the tensor expressions of the unfused operators have in common."""

from __future__ import annotations

from typing import Any

from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.te.common.halves import Conversions
from tvm_na.te.common.operands import Operands


class Step:
    """The arguments of a problem, and parts of an index; a *position* has an index for each axis."""

    def __init__(self, problem: UnfusedProblem, batch_size: int | None, float16_instructions: bool = True) -> None:
        p = self.problem = problem.forward
        self.ops = Operands.of(problem, batch_size)
        self.kind, self.window = problem.kind, problem.window
        self.group, self.accum = p.heads // p.heads_kv, p.accum_dtype
        self.convert = Conversions(p.dtype, p.accum_dtype, float16_instructions)
        self.tokens = (self.ops.batch, *p.spatial, p.heads)

    def apart(self, index: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...], Any, tuple[Any, ...]]:
        """Sample, position, head and what else an index has."""
        rank = self.problem.rank
        return index[0], index[1 : 1 + rank], index[1 + rank], index[2 + rank :]
