"""``BackwardProblem``: the value that names the gradients of a neighborhood attention workload."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

from tvm_na.problems.attention import NAProblem, OfAttention, problem_of
from tvm_na.problems.base import Argument, Problem
from tvm_na.problems.checks import require_like, require_shape, require_tensor

if TYPE_CHECKING:
    from torch import Tensor

#: Numbers that a kernel for GPUs keeps of a query's window: the score that weights are relative to, the inverse of the
#: sum of weights, and what is subtracted from their gradients.
STATISTICS = 3

# Tensors that autograd of the reference keeps or makes, as large as what the reference gathers.
_KEPT = 3


@dataclasses.dataclass(frozen=True)
class BackwardProblem(OfAttention):
    """The gradients of query, key, value and bias of one neighborhood attention.

    Attributes:
        forward: The attention. Its ``return_lse`` says here whether the log-sum-exp has a gradient too.
    """

    operator: ClassVar[str | None] = "backward"

    forward: NAProblem

    @classmethod
    def make(cls, *args: Any, **options: Any) -> BackwardProblem:
        """The gradients of the attention that :meth:`NAProblem.make` makes of these arguments."""
        return cls(NAProblem.make(*args, **options))

    @property
    def useful_flops(self) -> int:
        """Multiply-adds of the five products (scores again, and gradients of weights, query, key and value), times
        two, for a batch of one."""
        forward = self.forward
        channels = forward.head_dim + forward.head_dim_v
        return forward.useful_flops // channels * (3 * forward.head_dim + 2 * forward.head_dim_v)

    def arguments(self) -> tuple[Argument, ...]:
        """The attention's inputs, lse, d_out, and d_lse where lse has a gradient; d_query, d_key, d_value, maybe d_rpb.

        A gradient is like what it is the gradient of.
        """
        read, outputs = self.forward.inputs(), self.forward.outputs()
        lse = Argument("lse", (*self.spatial, self.forward.heads), self.accum_dtype)
        of_results = [dataclasses.replace(a, name=f"d_{a.name}", role="input") for a in outputs]
        gradients = [dataclasses.replace(a, name=f"d_{a.name}", role="output") for a in read if a.role != "scale"]
        return (*read, lse, *of_results, *gradients)

    def scratch(self) -> tuple[Argument, ...]:
        """What a kernel for GPUs writes between its parts: :data:`STATISTICS` of each query's window, and with a bias
        its sums over each chunk. These are the last arguments of a call.

        Who calls allocates them: memory of TVM's would come from a pool that knows nothing of streams and CUDA graphs.
        """
        statistics = (*self.spatial, self.forward.heads, STATISTICS)
        found = [Argument("statistics", statistics, self.accum_dtype, "scratch")]
        if self.forward.bias:
            sums = (most_bias_chunks(self), *self.forward.bias_shape)
            found.append(Argument("bias_sums", sums, self.accum_dtype, "scratch"))
        return tuple(found)

    def fields(self) -> dict[str, Any]:
        """Those of the attention."""
        return self.forward.fields()

    @classmethod
    def of_fields(cls, fields: dict[str, Any]) -> BackwardProblem:
        """The gradients of the attention with these fields."""
        return cls(NAProblem(**fields))

    @property
    def largest_copy(self) -> int:
        """See :attr:`Problem.largest_copy`: sums of chunks have up to twice the rows (schedules/cpu/backward.py)."""
        return 2 * self.forward.largest_copy

    @property
    def largest_constant(self) -> int:
        """That of the attention."""
        return self.forward.largest_constant

    def reference_elements(self, samples: int) -> int:
        """Gradients of query, key and value, and what autograd of the reference keeps."""
        outputs = samples * math.prod(self.spatial) * self.forward.heads * self.forward.head_dim_v
        return 3 * outputs + 2 * _KEPT * self.forward.gathered

    def distance(self, other: Problem) -> float | None:
        """That of the attentions."""
        return self.forward.distance(other.forward) if isinstance(other, BackwardProblem) else None

    def __str__(self) -> str:
        return f"backward of {self.forward}"


def backward_problem_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: tuple[Any, Any, Any, Any],
    rpb: Tensor | None,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor | None,
) -> BackwardProblem:
    """The problem that a call for the gradients poses, with every check of its tensors and parameters.

    Args:
        query: ``[batch, *spatial, heads, head_dim]``.
        key: ``[batch, *spatial, heads_kv, head_dim]``.
        value: ``[batch, *spatial, heads_kv, head_dim_v]``.
        window: kernel_size, stride, dilation and is_causal, as :func:`tvm_na.problems.attention.problem_of` takes them.
        rpb: ``[heads, 2*kernel_size-1, ...]`` or None.
        lse: The log-sum-exp of the scores, ``[batch, *spatial, heads]``, float32 (float64 for float64).
        d_out: The gradient of the output, ``[batch, *spatial, heads, head_dim_v]``.
        d_lse: The gradient of the log-sum-exp, as lse, or None.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    import torch

    problem = problem_of(query, key, value, *window, rpb, d_lse is not None, rank=query.ndim - 3)
    require_tensor("d_out", d_out, query.ndim, "[batch, *spatial, heads, head_dim_v]")
    require_like("d_out", d_out, query)
    tokens = tuple(query.shape[:-1])
    require_shape("d_out", d_out, (*tokens, value.shape[-1]), "[batch, *spatial, heads, head_dim_v]")
    accum = getattr(torch, problem.accum_dtype)
    for name, tensor in (("lse", lse), *([] if d_lse is None else [("d_lse", d_lse)])):
        require_tensor(name, tensor, query.ndim - 1, "[batch, *spatial, heads]")
        if tensor.dtype != accum:
            raise TypeError(f"{name}: required dtype {accum}, got {tensor.dtype}")
        if tensor.device != query.device:
            raise ValueError(f"{name}: required query's device {query.device}, got {tensor.device}")
        require_shape(name, tensor, tokens, "[batch, *spatial, heads]")
    return BackwardProblem(problem)


#: Positions, at least, whose sums for a bias a GPU adds up before it writes them.
_BIAS_POSITIONS = 32


def most_bias_chunks(problem: BackwardProblem) -> int:
    """Into how many chunks, at most, a GPU cuts the positions of a sample, each with sums for the bias of its own.

    All sums have at most as many elements as query and value together.
    """
    forward, tokens = problem.forward, math.prod(problem.spatial)
    entries = math.prod(forward.bias_shape[1:])
    most = tokens * (forward.head_dim + forward.head_dim_v) // entries
    return max(1, min(-(-tokens // _BIAS_POSITIONS), most))
