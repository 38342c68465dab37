"""``UnfusedProblem``: the value that names one step of an attention whose weights are kept, and its checks."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

from tvm_na.problems.attention import DTYPES, NAProblem, OfAttention, dtype_of, problem_of
from tvm_na.problems.base import Argument, Problem
from tvm_na.problems.checks import check_int, require_elements, require_like, require_shape, require_tensor

if TYPE_CHECKING:
    from torch import Tensor

#: ``qk``: scores, minus infinity where there is no key. ``dots``: the same, but 0 there. ``av``: sums over the keys of
#: a query. ``av_transposed``: sums over the queries of a key. ``bias_sums``: over the pairs with one index of a bias.
#: ``bias_parts``: the same of each part of a sample by itself; they add up to ``bias_sums``. CPUs compute the sums,
#: GPUs, whose blocks cannot wait for each other, the parts.
KINDS = ("qk", "dots", "av", "av_transposed", "bias_sums", "bias_parts")

_ATTN = "[batch, *spatial, heads, prod(kernel_size)]"
_VALUE = "[batch, *spatial, heads_kv, head_dim_v]"

# Queries of a part: few enough for float32 and for many threads; enough that sums are small beside what they add up.
_PART = 128

#: kernel_size, stride, dilation and is_causal, an integer (a bool) or one value per axis.
Window = tuple[Any, Any, Any, Any]


@dataclasses.dataclass(frozen=True)
class UnfusedProblem(OfAttention):
    """One step of a neighborhood attention that keeps its scores, or a derivative of one.

    Attributes:
        kind: One of :data:`KINDS`.
        forward: The attention. Both its head dimensions are the channels that the step sums over or carries (1 where
            it has none); it has a bias for scores alone, and no log-sum-exp.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """

    operator: ClassVar[str | None] = "unfused"

    kind: str
    forward: NAProblem

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: required one of {', '.join(KINDS)}, got {self.kind!r}")
        super().__post_init__()
        forward = self.forward
        if forward.return_lse or forward.head_dim != forward.head_dim_v:
            raise ValueError(f"forward: required one head dimension and no log-sum-exp, got {forward}")
        if forward.dtype not in DTYPES:
            raise ValueError(f"forward: required a dtype that tensors have, got {forward}")
        if forward.bias and self.kind != "qk":
            raise ValueError(f"forward: required no bias for {self.kind}, got {forward}")

    @classmethod
    def make(cls, kind: str, *args: Any, **options: Any) -> UnfusedProblem:
        """The step of the attention that :meth:`NAProblem.make` makes of these arguments."""
        return cls(kind, NAProblem.make(*args, **options))

    @property
    def channels(self) -> int:
        """Channels that are summed over or carried."""
        return self.forward.head_dim

    @property
    def window(self) -> int:
        """Positions of a window."""
        return math.prod(self.forward.kernel_size)

    @property
    def part(self) -> tuple[int, int]:
        """Of ``bias_parts``, the rows and columns of a part; rows are all spatial axes but the last as one."""
        rows, columns = math.prod(self.spatial[:-1]), min(self.spatial[-1], _PART)
        return min(rows, max(1, _PART // columns)), columns

    @property
    def parts(self) -> int:
        """The parts of a sample, row after row; the last one of a row, and of a column, may be smaller."""
        rows, columns = self.part
        return -(-math.prod(self.spatial[:-1]) // rows) * -(-self.spatial[-1] // columns)

    @property
    def useful_flops(self) -> int:
        """Multiply-adds, times two, for a batch of one (causal not discounted)."""
        return self.forward.useful_flops // 2

    def arguments(self) -> tuple[Argument, ...]:
        """Two tensors (attn alone for sums of a bias), scale, and rpb with a bias; the result."""
        p = self.forward
        tokens, kv = (*self.spatial, p.heads), (*self.spatial, p.heads_kv)
        attn = Argument("attn", (*tokens, self.window), p.dtype)
        of_query, of_key = (*tokens, self.channels), (*kv, self.channels)
        if self.kind == "bias_sums":
            return attn, Argument("d_rpb", p.bias_shape, p.dtype, "output", has_batch=False)
        if self.kind == "bias_parts":
            return attn, Argument("parts", (self.parts, *p.bias_shape), p.accum_dtype, "output")
        query = Argument("query", of_query, p.dtype)
        inputs, out = {
            "qk": ([query, Argument("key", of_key, p.dtype)], attn.shape),
            "dots": ([query, Argument("key", of_key, p.dtype)], attn.shape),
            "av": ([attn, Argument("value", of_key, p.dtype)], of_query),
            "av_transposed": ([attn, query], of_key),
        }[self.kind]
        inputs.append(Argument("scale", (1,), p.accum_dtype, "scale", has_batch=False))
        if p.bias:
            inputs.append(Argument("rpb", p.bias_shape, p.dtype, has_batch=False))
        return (*inputs, Argument("out", out, p.dtype, "output"))

    def fields(self) -> dict[str, Any]:
        """The kind, and the attention's fields."""
        return {"kind": self.kind, **self.forward.fields()}

    @classmethod
    def of_fields(cls, fields: dict[str, Any]) -> UnfusedProblem:
        """The problem with these fields."""
        attention = dict(fields)
        if "kind" not in attention:
            raise ValueError(f"problem: required a kind, got {fields}")
        return cls(attention.pop("kind"), NAProblem(**attention))

    @property
    def largest_copy(self) -> int:
        """See :attr:`Problem.largest_copy`: scores, or packed keys."""
        p = self.forward
        return max(math.prod(p.spatial) * p.heads * self.window, p.largest_copy)

    def reference_elements(self, samples: int) -> int:
        """As of the attention."""
        return self.forward.reference_elements(samples)

    def distance(self, other: Problem) -> float | None:
        """That of the attentions, for steps of one kind."""
        if not isinstance(other, UnfusedProblem) or other.kind != self.kind:
            return None
        return self.forward.distance(other.forward)

    def unsupported(self, kind: str) -> str:
        """See :meth:`Problem.unsupported`."""
        if kind == "cuda":
            return "on GPUs sums for a bias are compiled in parts, as the kind bias_parts"
        if self.kind == "bias_parts":
            return "on CPUs sums for a bias are compiled as a whole, as the kind bias_sums"
        return super().unsupported(kind)

    def __str__(self) -> str:
        return f"{self.kind} of {self.forward}"


def qk_problem_of(
    query: Tensor, key: Tensor, rpb: Tensor | None, window: Window, rank: int, zero: bool = False
) -> UnfusedProblem:
    """The problem of scores that a call poses, with every check of its tensors and parameters.

    Args:
        query: ``[batch, *spatial, heads, head_dim]``.
        key: ``[batch, *spatial, heads_kv, head_dim]``.
        rpb: ``[heads, 2*kernel_size-1, ...]`` or None.
        window: kernel_size, stride, dilation and is_causal.
        rank: The number of spatial axes.
        zero: Whether scores without a key are 0 instead of minus infinity.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    forward = problem_of(query, key, key, *window, rpb, rank=rank)
    if zero and rpb is not None:
        raise ValueError(f"rpb: required None where scores without a key are 0, got shape {tuple(rpb.shape)}")
    return UnfusedProblem("dots" if zero and any(forward.is_causal) else "qk", forward)


def _forward_of(attn: Tensor, window: Window, heads_kv: int, channels: int) -> NAProblem:
    """The attention that has such weights; ``attn`` is one of :func:`_require_attn`, and its sizes are checked."""
    require_elements("attn", attn)
    forward = NAProblem.make(
        tuple(int(n) for n in attn.shape[1:-2]),
        window[0],
        int(attn.shape[-2]),
        channels,
        stride=window[1],
        dilation=window[2],
        is_causal=window[3],
        heads_kv=heads_kv,
        dtype=str(attn.dtype).removeprefix("torch."),
    )
    require_shape("attn", attn, (*attn.shape[:-1], math.prod(forward.kernel_size)), _ATTN)
    return forward


def _require_attn(attn: Tensor, rank: int) -> None:
    require_tensor("attn", attn, rank + 3, _ATTN)
    dtype_of("attn", attn)


def _require_channels(name: str, tensor: Tensor, attn: Tensor, layout: str) -> None:
    require_tensor(name, tensor, attn.ndim, layout)
    require_like(name, tensor, attn)
    require_elements(name, tensor)


def av_problem_of(attn: Tensor, value: Tensor, window: Window, rank: int) -> UnfusedProblem:
    """The problem of sums over the keys of each query.

    Args:
        attn: ``[batch, *spatial, heads, prod(kernel_size)]``.
        value: ``[batch, *spatial, heads_kv, head_dim_v]``.
        window: kernel_size, stride, dilation and is_causal.
        rank: The number of spatial axes.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    _require_attn(attn, rank)
    _require_channels("value", value, attn, _VALUE)
    require_shape("value", value, (*attn.shape[:-2], *value.shape[-2:]), f"{_VALUE} with attn's batch and spatial axes")
    return UnfusedProblem("av", _forward_of(attn, window, int(value.shape[-2]), int(value.shape[-1])))


def transposed_problem_of(attn: Tensor, query: Tensor, heads_kv: int, window: Window, rank: int) -> UnfusedProblem:
    """The problem of sums over the queries that see each key.

    Args:
        attn: ``[batch, *spatial, heads, prod(kernel_size)]``.
        query: What queries have, ``[batch, *spatial, heads, channels]``.
        heads_kv: Heads of the keys.
        window: kernel_size, stride, dilation and is_causal.
        rank: The number of spatial axes.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    _require_attn(attn, rank)
    layout = "[batch, *spatial, heads, channels]"
    _require_channels("query", query, attn, layout)
    require_shape("query", query, (*attn.shape[:-1], query.shape[-1]), f"{layout} with attn's other sizes")
    check_int("heads_kv", heads_kv, 1)
    return UnfusedProblem("av_transposed", _forward_of(attn, window, heads_kv, int(query.shape[-1])))


def bias_problem_of(attn: Tensor, window: Window, rank: int) -> UnfusedProblem:
    """The problem of sums over the pairs of a query and a key that share an index of a relative position bias.

    Args:
        attn: ``[batch, *spatial, heads, prod(kernel_size)]``.
        window: kernel_size, stride, dilation and is_causal.
        rank: The number of spatial axes.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    _require_attn(attn, rank)
    return UnfusedProblem("bias_sums", _forward_of(attn, window, int(attn.shape[-2]), 1))
