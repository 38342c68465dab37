"""What the tensor expressions of the unfused operators have in common."""

from __future__ import annotations

from typing import Any

from tvm import te

from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.te.common.formulation import batch_axis


class Step:
    """The arguments of a problem, and parts of an index; a *position* has an index for each axis."""

    def __init__(self, problem: UnfusedProblem, batch_size: int | None) -> None:
        p = self.problem = problem.forward
        self.kind, self.window, self.batch = problem.kind, problem.window, batch_axis(batch_size)
        self.group, self.accum = p.heads // p.heads_kv, p.accum_dtype
        self.tokens, self.keys = (self.batch, *p.spatial, p.heads), (self.batch, *p.spatial, p.heads_kv)
        self.scale = te.placeholder((1,), self.accum, name="scale")

    def placeholder(self, name: str, *shape: Any) -> Any:
        """An argument in the problem's dtype."""
        return te.placeholder(shape, self.problem.dtype, name=name)

    def inputs_of_scores(self) -> tuple[Any, Any, Any]:
        """Query, key and the bias or None."""
        p = self.problem
        query, key = (
            self.placeholder(name, *shape, p.head_dim) for name, shape in (("query", self.tokens), ("key", self.keys))
        )
        return query, key, self.placeholder("rpb", *p.bias_shape) if p.bias else None

    def inputs_of_sums(self) -> tuple[Any, Any]:
        """Weights and values."""
        attn = self.placeholder("attn", *self.tokens, self.window)
        return attn, self.placeholder("value", *self.keys, self.problem.head_dim)

    def apart(self, index: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...], Any, tuple[Any, ...]]:
        """Sample, position, head and what else an index has."""
        rank = self.problem.rank
        return index[0], index[1 : 1 + rank], index[1 + rank], index[2 + rank :]
