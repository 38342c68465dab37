"""``NAProblem``: the value that names a neighborhood attention workload, and every check of its parts.

A kernel is specialised on all that is in a problem; the batch is not in it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: Dtypes that the operator takes, by name. Accumulation is float32, or float64 for float64.
DTYPES = ("float16", "bfloat16", "float32", "float64")

#: What :attr:`NAProblem.dtype` is for tensors of float32 whose products tensor cores may take in TF32: 8 bits of
#: exponent and 10 of mantissa, rounded to nearest; sums are float32.
TF32 = "tf32"

MAX_RANK = 3

# Kernels multiply the scale by log2(e), which must be finite too.
_SCALE_BITS = {"float32": 127, "float64": 1023}


def check_int(argument: str, value: Any, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument}: required an integer, got {type(value).__name__} {value!r}")
    if value < minimum:
        raise ValueError(f"{argument}: required an integer >= {minimum}, got {value}")
    return value


def per_axis_ints(argument: str, value: Any, rank: int, minimum: int = 1) -> tuple[int, ...]:
    """An integer or a sequence of ``rank`` integers as a tuple, one per spatial axis.

    Raises TypeError for anything that is not an integer (a bool is none) and ValueError for a wrong
    length or an element below ``minimum``.
    """
    if value.__class__ is int and value >= minimum:
        return (value,) * rank
    if isinstance(value, (tuple, list)):
        if len(value) != rank:
            raise ValueError(f"{argument}: required {rank} values, one per spatial axis, got {len(value)}: {value!r}")
        return tuple(check_int(argument, v, minimum) for v in value)
    return (check_int(argument, value, minimum),) * rank


def per_axis_bools(argument: str, value: Any, rank: int) -> tuple[bool, ...]:
    """A bool or a sequence of ``rank`` bools as a tuple, one per spatial axis."""
    if value is True or value is False:
        return (value,) * rank
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    if len(values) != rank:
        raise ValueError(f"{argument}: required {rank} values, one per spatial axis, got {len(values)}: {value!r}")
    for v in values:
        if not isinstance(v, bool):
            raise TypeError(f"{argument}: required bool, got {type(v).__name__} {v!r}")
    return values


def check_scale(scale: Any, head_dim: int, accum_dtype: str = "float64") -> float:
    """The factor of the scores: ``head_dim ** -0.5`` for None, else a finite float (zero is legal).

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite, or not small enough for ``accum_dtype``, float32 or float64.
    """
    if scale is None:
        return head_dim**-0.5
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"scale: required a number or None, got {type(scale).__name__} {scale!r}")
    try:
        number = float(scale)
    except OverflowError:
        number = math.inf
    bits = _SCALE_BITS[accum_dtype]
    if not abs(number) < 2.0**bits:
        raise ValueError(f"scale: required a finite number below 2^{bits} in magnitude, got {scale}")
    return number


@dataclass(frozen=True)
class NAProblem:
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
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: required bool, got {getattr(self, name)!r}")
        if self.dtype not in (*DTYPES, TF32):
            raise ValueError(f"dtype: required one of {', '.join((*DTYPES, TF32))}, got {self.dtype!r}")
        if self.heads % self.heads_kv:
            raise ValueError(f"heads: required a multiple of heads_kv={self.heads_kv}, got {self.heads}")
        self._check_windows()

    def _check_windows(self) -> None:
        for axis, (size, k, s, d) in enumerate(
            zip(self.spatial, self.kernel_size, self.stride, self.dilation, strict=True)
        ):
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
        rank = len(sizes)
        return cls(
            sizes,
            per_axis_ints("kernel_size", kernel_size, rank),
            per_axis_ints("stride", stride, rank),
            per_axis_ints("dilation", dilation, rank),
            per_axis_bools("is_causal", is_causal, rank),
            heads,
            heads if heads_kv is None else heads_kv,
            head_dim,
            head_dim if head_dim_v is None else head_dim_v,
            dtype,
            bias,
            return_lse,
        )

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.spatial)

    @property
    def tensor_dtype(self) -> str:
        """The dtype of query, key, value, bias and output."""
        return "float32" if self.dtype == TF32 else self.dtype

    @property
    def accum_dtype(self) -> str:
        """The dtype of scores, softmax and the log-sum-exp."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """The shape of the relative position bias."""
        return (self.heads, *(2 * k - 1 for k in self.kernel_size))

    @property
    def useful_flops(self) -> int:
        """Multiply-adds that no implementation can leave out, times two, for a batch of one (causal not discounted)."""
        pairs = math.prod(self.spatial) * self.heads * math.prod(self.kernel_size)
        return 2 * pairs * (self.head_dim + self.head_dim_v)

    def fields(self) -> tuple[Any, ...]:
        """The attributes in their order, of which ``NAProblem(*fields)`` makes the same problem."""
        return (
            *(self.spatial, self.kernel_size, self.stride, self.dilation, self.is_causal, self.heads, self.heads_kv),
            *(self.head_dim, self.head_dim_v, self.dtype, self.bias, self.return_lse),
        )

    def to_json(self) -> str:
        """A canonical JSON text; equal problems give equal texts."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> NAProblem:
        """The problem that :meth:`to_json` wrote."""
        fields = json.loads(text)
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return cls(**values)

    def __str__(self) -> str:
        def axes(values: tuple[int, ...]) -> str:
            return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))

        parts = ["x".join(map(str, self.spatial)), f"heads {self.heads}"]
        if self.heads_kv != self.heads:
            parts.append(f"kv {self.heads_kv}")
        dims = f"{self.head_dim}" if self.head_dim == self.head_dim_v else f"{self.head_dim}/{self.head_dim_v}"
        parts += [f"dim {dims}", f"k {axes(self.kernel_size)}"]
        parts += [f"stride {axes(self.stride)}"] if set(self.stride) != {1} else []
        parts += [f"dil {axes(self.dilation)}"] if set(self.dilation) != {1} else []
        parts += [f"causal {''.join('ny'[c] for c in self.is_causal)}"] if any(self.is_causal) else []
        parts += [self.dtype] + ["rpb"] * self.bias + ["lse"] * self.return_lse
        return " ".join(parts)


def require_tensor(argument: str, value: Any, ndim: int, layout: str) -> None:
    """TypeError unless ``value`` is a dense tensor, ValueError unless it has ``ndim`` dimensions."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{argument}: required a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{argument}: required a dense (strided) tensor, got layout {value.layout}")
    if value.is_nested:  # strided ones have no shape to speak of
        raise TypeError(f"{argument}: required a dense (strided) tensor, got a nested tensor")
    if value.ndim != ndim:
        raise ValueError(f"{argument}: required {ndim} dimensions {layout}, got shape {tuple(value.shape)}")


def require_like(argument: str, value: Tensor, query: Tensor) -> None:
    """TypeError unless ``value`` has query's dtype, ValueError unless it is on its device."""
    if value.dtype != query.dtype:
        raise TypeError(f"{argument}: required query's dtype {query.dtype}, got {value.dtype}")
    if value.device != query.device:
        raise ValueError(f"{argument}: required query's device {query.device}, got {value.device}")


def require_shape(argument: str, value: Tensor, shape: tuple[Any, ...], meaning: str) -> None:
    """ValueError unless ``value`` has this shape."""
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{argument}: required shape {tuple(shape)} {meaning}, got {tuple(value.shape)}")


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
    dtype = str(query.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise TypeError(f"query: required dtype {', '.join(DTYPES)}, got {dtype}")
    for name, tensor in (("key", key), ("value", value)):
        require_like(name, tensor, query)
    # A kernel is specialised on every size but the batch, so a symbolic one becomes a number here.
    batch, spatial, head_dim = query.shape[0], tuple(int(n) for n in query.shape[1:-2]), int(query.shape[-1])
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if 0 in tensor.shape[1:]:
            raise ValueError(f"{name}: required every size but the batch >= 1, got shape {tuple(tensor.shape)}")
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


def check_additional(additional_keys: Any, additional_values: Any, query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether additional keys and values came, after checking them.

    Shapes are ``[batch, extra, heads_kv, head_dim]`` and ``[batch, extra, heads_kv, head_dim_v]``.
    """
    if (additional_keys is None) != (additional_values is None):
        missing = "additional_keys" if additional_keys is None else "additional_values"
        raise ValueError(f"{missing}: required together with its counterpart, got None")
    if additional_keys is None:
        return False
    for name, tensor, like in (
        ("additional_keys", additional_keys, key),
        ("additional_values", additional_values, value),
    ):
        require_tensor(name, tensor, 4, "[batch, extra, heads_kv, head_dim]")
        require_like(name, tensor, query)
        wanted = (like.shape[0], additional_keys.shape[1], *like.shape[-2:])
        require_shape(name, tensor, wanted, "[batch, extra, heads_kv, head_dim]")
    return True
