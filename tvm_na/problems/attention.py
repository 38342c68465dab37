"""``NAProblem``: the value that names a neighborhood attention workload."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm_na.problems.base import ITEM_BYTES, Argument, Problem, axes_text, ratio
from tvm_na.problems.checks import (
    check_bool,
    check_int,
    per_axis_bools,
    per_axis_ints,
    require_elements,
    require_like,
    require_shape,
    require_tensor,
)

if TYPE_CHECKING:
    from torch import Tensor

#: Dtypes that the operator takes, by name. Accumulation is float32, or float64 for float64.
DTYPES = ("float16", "bfloat16", "float32", "float64")

#: What :attr:`NAProblem.dtype` is for tensors of float32 whose products tensor cores may take in TF32: 8 bits of
#: exponent and 10 of mantissa, rounded to nearest; sums are float32.
TF32 = "tf32"

MAX_RANK = 3


@dataclass(frozen=True)
class NAProblem(Problem):
    """One neighborhood attention workload.

    Attributes:
        spatial: Sizes of the 1 to 3 spatial axes.
        kernel_size: Window length per axis; ``kernel_size * dilation <= spatial``.
        stride: Queries per shared window, per axis; ``1 <= stride <= kernel_size``.
        dilation: Step between neighbors, per axis.
        is_causal: Whether a query sees only keys at or before itself, per axis.
        heads: Query heads, a multiple of ``heads_kv``.
        heads_kv: Key and value heads.
        head_dim: Channels of a query or key head.
        head_dim_v: Channels of a value head.
        dtype: One of :data:`DTYPES`, or :data:`TF32`.
        bias: Whether a relative position bias ``[heads, 2k-1, ...]`` is added to the scores.
        return_lse: Whether the log-sum-exp of the scores is an output.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """

    spatial: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]
    heads: int
    heads_kv: int
    head_dim: int
    head_dim_v: int
    dtype: str = "float32"
    bias: bool = False
    return_lse: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.spatial, (tuple, list)) or not 1 <= len(self.spatial) <= MAX_RANK:
            raise ValueError(f"spatial: required 1 to {MAX_RANK} sizes, got {self.spatial!r}")
        rank = len(self.spatial)
        for name in ("spatial", "kernel_size", "stride", "dilation"):
            object.__setattr__(self, name, per_axis_ints(name, getattr(self, name), rank))
        object.__setattr__(self, "is_causal", per_axis_bools("is_causal", self.is_causal, rank))
        for name in ("heads", "heads_kv", "head_dim", "head_dim_v"):
            check_int(name, getattr(self, name), 1)
        for name in ("bias", "return_lse"):
            check_bool(name, getattr(self, name))
        if self.dtype not in (*DTYPES, TF32):
            raise ValueError(f"dtype: required one of {', '.join((*DTYPES, TF32))}, got {self.dtype!r}")
        if self.heads % self.heads_kv:
            raise ValueError(f"heads: required a multiple of heads_kv={self.heads_kv}, got {self.heads}")
        self._check_windows()

    def _check_windows(self) -> None:
        for axis, (size, k, s, d, _) in enumerate(self.axes):
            if k * d > size:
                got = f"{k} * {d} = {k * d} > {size}"
                raise ValueError(f"kernel_size: required kernel_size * dilation <= size on axis {axis}, got {got}")
            if s > k:
                raise ValueError(f"stride: required stride <= kernel_size on axis {axis}, got {s} > {k}")

    @classmethod
    def make(
        cls,
        spatial: int | tuple[int, ...],
        kernel_size: int | tuple[int, ...],
        heads: int,
        head_dim: int,
        *,
        stride: int | tuple[int, ...] = 1,
        dilation: int | tuple[int, ...] = 1,
        is_causal: bool | tuple[bool, ...] = False,
        heads_kv: int | None = None,
        head_dim_v: int | None = None,
        dtype: str = "float32",
        bias: bool = False,
        return_lse: bool = False,
    ) -> NAProblem:
        """A problem with the operator's defaults; integers count for every axis of ``spatial``."""
        sizes = tuple(spatial) if isinstance(spatial, (tuple, list)) else (spatial,)
        window: tuple[Any, Any, Any, Any] = (kernel_size, stride, dilation, is_causal)
        heads_of_keys = heads if heads_kv is None else heads_kv
        channels_of_values = head_dim if head_dim_v is None else head_dim_v
        return cls(sizes, *window, heads, heads_of_keys, head_dim, channels_of_values, dtype, bias, return_lse)

    @property
    def window(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
        """kernel_size, stride, dilation and is_causal."""
        return self.kernel_size, self.stride, self.dilation, self.is_causal

    @property
    def axes(self) -> list[tuple[int, int, int, int, bool]]:
        """Of each spatial axis its size, kernel_size, stride, dilation and is_causal."""
        return list(zip(self.spatial, *self.window, strict=True))

    @property
    def tensor_dtype(self) -> str:
        """The dtype of query, key, value, bias and output."""
        return "float32" if self.dtype == TF32 else self.dtype

    @property
    def accum_dtype(self) -> str:
        """The dtype of scores, softmax and the log-sum-exp."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def uses_dots(self) -> bool:
        return self.dtype == "bfloat16"

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """The shape of the relative position bias."""
        return (self.heads, *(2 * k - 1 for k in self.kernel_size))

    @property
    def useful_flops(self) -> int:
        """Multiply-adds that no implementation can leave out, times two, for a batch of one (causal not discounted)."""
        pairs = math.prod(self.spatial) * self.heads * math.prod(self.kernel_size)
        return 2 * pairs * (self.head_dim + self.head_dim_v)

    def arguments(self) -> tuple[Argument, ...]:
        """query, key, value, scale, rpb with a bias; out, and lse where the problem has it."""
        outputs = [Argument("out", (*self.spatial, self.heads, self.head_dim_v), self.tensor_dtype, "output")]
        if self.return_lse:
            outputs.append(Argument("lse", (*self.spatial, self.heads), self.accum_dtype, "output"))
        return (*self.inputs(), *outputs)

    def inputs(self) -> tuple[Argument, ...]:
        """query, key, value, scale and, with a bias, rpb: what the attention and its gradients read."""
        kv, dtype = (*self.spatial, self.heads_kv), self.tensor_dtype
        found = [
            Argument("query", (*self.spatial, self.heads, self.head_dim), dtype),
            Argument("key", (*kv, self.head_dim), dtype),
            Argument("value", (*kv, self.head_dim_v), dtype),
            Argument("scale", (1,), self.accum_dtype, "scale", has_batch=False),
        ]
        if self.bias:
            found.append(Argument("rpb", self.bias_shape, dtype, has_batch=False))
        return tuple(found)

    @property
    def padded_tokens(self) -> int:
        """A bound on the positions of a packed copy: dilation groups of rows have one length, of columns vectors."""
        rows = math.prod(size + d for size, d in zip(self.spatial[:-1], self.dilation[:-1], strict=True))
        return rows * (self.spatial[-1] + 2 * self.dilation[-1] * 64)

    @property
    def largest_copy(self) -> int:
        return self.padded_tokens * self.heads * max(self.head_dim, self.head_dim_v)

    @property
    def largest_constant(self) -> int:
        """The bias as kernels for CPUs pad it, which is more than the map has if head_dim is small."""
        rows = math.prod(2 * k - 1 for k in self.kernel_size[:-1])
        return self.heads * rows * 2 * (self.spatial[-1] + 64) if self.bias else 0

    @property
    def counted_per_element(self) -> int:
        """On tensor cores asynchronous copies count bytes; no position outside of the map is copied."""
        of_copies = ITEM_BYTES[self.tensor_dtype] if self.dtype == TF32 else 0  # no more than elements in 16 bits
        return max(super().counted_per_element, of_copies)

    def reference_elements(self, samples: int) -> int:
        """Outputs of the samples, and keys and values that are gathered for every query of one head."""
        return samples * math.prod(self.spatial) * self.heads * self.head_dim_v + 2 * self.gathered

    @property
    def gathered(self) -> int:
        """Elements of the keys and values of all windows of one head."""
        return math.prod(self.spatial) * math.prod(self.kernel_size) * (self.head_dim + self.head_dim_v)

    def distance(self, other: Problem) -> float | None:
        """See :meth:`Problem.distance`. What decides how a tile fills the registers weighs the most: the window, the
        channels and the columns of a dilation group."""
        if not isinstance(other, NAProblem) or (self.rank, self.dtype) != (other.rank, other.dtype):
            return None

        def over_axes(name: str) -> float:
            ratios = [ratio(a, b) for a, b in zip(getattr(self, name), getattr(other, name), strict=True)]
            return sum(ratios) / len(ratios)

        def columns(problem: NAProblem) -> int:
            return -(-problem.spatial[-1] // problem.dilation[-1])

        far = 4 * over_axes("kernel_size") + over_axes("stride") + 0.25 * over_axes("dilation")
        far += 2 * ratio(self.head_dim, other.head_dim) + 2 * ratio(self.head_dim_v, other.head_dim_v)
        far += 2 * ratio(columns(self), columns(other)) + 0.5 * ratio(self.spatial[0], other.spatial[0])
        far += 0.5 * ratio(self.heads, other.heads) + 0.5 * ratio(self.heads_kv, other.heads_kv)
        far += 0.5 * (self.bias != other.bias) + 0.5 * (self.return_lse != other.return_lse)
        return far + (self.is_causal != other.is_causal)

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.spatial)), f"heads {self.heads}"]
        if self.heads_kv != self.heads:
            parts.append(f"kv {self.heads_kv}")
        dims = f"{self.head_dim}" if self.head_dim == self.head_dim_v else f"{self.head_dim}/{self.head_dim_v}"
        parts += [f"dim {dims}", f"k {axes_text(self.kernel_size)}"]
        parts += [f"stride {axes_text(self.stride)}"] if set(self.stride) != {1} else []
        parts += [f"dil {axes_text(self.dilation)}"] if set(self.dilation) != {1} else []
        parts += [f"causal {''.join('ny'[c] for c in self.is_causal)}"] if any(self.is_causal) else []
        parts += [self.dtype, *(["rpb"] if self.bias else []), *(["lse"] if self.return_lse else [])]
        return " ".join(parts)


def dtype_of(argument: str, tensor: Tensor) -> str:
    """The name of a tensor's dtype, one of :data:`DTYPES`; TypeError for another."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise TypeError(f"{argument}: required dtype {', '.join(DTYPES)}, got {dtype}")
    return dtype


class OfAttention(Problem):
    """A problem that belongs to an attention, of which it has the sizes and dtypes.

    Attributes:
        forward: The attention.
    """

    forward: NAProblem

    def __post_init__(self) -> None:
        if not isinstance(self.forward, NAProblem):
            raise TypeError(f"forward: required an NAProblem, got {type(self.forward).__name__} {self.forward!r}")

    @property
    def spatial(self) -> tuple[int, ...]:
        """Sizes of the spatial axes."""
        return self.forward.spatial

    @property
    def dtype(self) -> str:
        """The dtype of every tensor but the scale and the log-sum-exp with its gradient."""
        return self.forward.dtype

    @property
    def accum_dtype(self) -> str:
        """The dtype of scores, sums and the log-sum-exp."""
        return self.forward.accum_dtype


def problem_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Any,
    stride: Any = 1,
    dilation: Any = 1,
    is_causal: Any = False,
    rpb: Tensor | None = None,
    return_lse: bool = False,
    rank: int = 2,
) -> NAProblem:
    """The problem that a call of the operator poses, with every check of its tensors and parameters.

    Args:
        query: ``[batch, *spatial, heads, head_dim]``.
        key: ``[batch, *spatial, heads_kv, head_dim]``.
        value: ``[batch, *spatial, heads_kv, head_dim_v]``.
        kernel_size, stride, dilation: Integer, or one integer per axis.
        is_causal: Bool, or one bool per axis.
        rpb: ``[heads, 2*kernel_size-1, ...]`` or None.
        return_lse: Whether the log-sum-exp is wanted.
        rank: The number of spatial axes, 1 to 3.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    layout = "[batch, *spatial, heads, head_dim]"
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        require_tensor(name, tensor, rank + 3, layout)
    dtype = dtype_of("query", query)
    for name, tensor in (("key", key), ("value", value)):
        require_like(name, tensor, query)
    # A kernel is specialised on every size but the batch, so a symbolic one becomes a number here.
    batch, spatial, head_dim = query.shape[0], tuple(int(n) for n in query.shape[1:-2]), int(query.shape[-1])
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        require_elements(name, tensor)
    require_shape("key", key, (batch, *spatial, key.shape[-2], head_dim), "(query's batch, spatial axes, head_dim)")
    require_shape("value", value, (*key.shape[:-1], value.shape[-1]), "(key's batch, spatial axes, heads_kv)")
    problem = NAProblem.make(
        spatial,
        kernel_size,
        int(query.shape[-2]),
        head_dim,
        stride=stride,
        dilation=dilation,
        is_causal=is_causal,
        heads_kv=int(key.shape[-2]),
        head_dim_v=int(value.shape[-1]),
        dtype=dtype,
        bias=rpb is not None,
        return_lse=return_lse,
    )
    if rpb is not None:
        require_tensor("rpb", rpb, rank + 1, "[heads, 2*kernel_size-1, ...]")
        require_like("rpb", rpb, query)
        require_shape("rpb", rpb, problem.bias_shape, "[heads, 2*kernel_size-1, ...]")
    return problem
