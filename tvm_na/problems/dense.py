"""``DenseProblem``: the value that names a linear layer or a convolution with what follows it, and every check of it.

The rest of a model beside its attention: products with weights, over the channels or over windows of a map, to which
a bias, an activation and a residual are applied while the sums are at hand. A kernel is specialised on all that is in
a problem; the batch is not in it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm_na.problems.attention import MAX_RANK
from tvm_na.problems.base import HALVES, Argument, Problem, axes_text, ratio
from tvm_na.problems.checks import check_bool, check_int, per_axis_ints

DTYPES = ("float32", "float64", *HALVES)
ACTIVATIONS = ("none", "gelu")
#: Of weights; None for that of the other tensors.
WEIGHT_DTYPES = (None, "int8", "float16")


@dataclass(frozen=True)
class DenseProblem(Problem):
    """One product with weights: ``activation(x * weight + bias) + residual``, channels last.

    A linear layer has one spatial axis, its tokens, and a kernel of 1; an image's convolution has two.

    Attributes:
        spatial: Sizes of the 1 to 3 spatial axes of the input.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Window length per axis.
        stride: Step between neighboring windows, per axis.
        padding: Zeros on both sides of each axis; less than the kernel.
        bias: Whether a bias ``[out_channels]`` is added to the sums.
        activation: One of :data:`ACTIVATIONS`; ``gelu`` is the exact one, ``x / 2 * (1 + erf(x / sqrt(2)))``.
        residual: Whether a tensor of the output's shape is added last.
        dtype: One of :data:`DTYPES`, of every tensor but narrower weights. Halves are computed with in float32, and
            rounded once.
        weight_dtype: One of :data:`WEIGHT_DTYPES`. The sums over ``int8`` weights are multiplied by a scale for each
            output channel, ``weight_scale [out_channels]``, before the bias is added. ``float16`` ones have none.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """

    operator: ClassVar[str | None] = "dense"
    packs_weights: ClassVar[bool] = True

    spatial: tuple[int, ...]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...] = (1,)
    stride: tuple[int, ...] = (1,)
    padding: tuple[int, ...] = (0,)
    bias: bool = True
    activation: str = "none"
    residual: bool = False
    dtype: str = "float32"
    weight_dtype: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.spatial, (tuple, list)) or not 1 <= len(self.spatial) <= MAX_RANK:
            raise ValueError(f"spatial: required 1 to {MAX_RANK} sizes, got {self.spatial!r}")
        for name, minimum in (("spatial", 1), ("kernel_size", 1), ("stride", 1), ("padding", 0)):
            sizes = per_axis_ints(name, getattr(self, name), len(self.spatial), minimum)
            object.__setattr__(self, name, sizes)
        for name in ("in_channels", "out_channels"):
            check_int(name, getattr(self, name), 1)
        for name in ("bias", "residual"):
            check_bool(name, getattr(self, name))
        for name, known in (("activation", ACTIVATIONS), ("dtype", DTYPES), ("weight_dtype", WEIGHT_DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: required one of {', '.join(map(str, known))}, got {getattr(self, name)!r}")
        self._check_windows()

    def _check_windows(self) -> None:
        for axis, (size, k, p) in enumerate(zip(self.spatial, self.kernel_size, self.padding, strict=True)):
            if p >= k:
                raise ValueError(f"padding: required padding < kernel_size on axis {axis}, got {p} >= {k}")
            if k > size + 2 * p:
                got = f"{k} > {size} + 2 * {p}"
                raise ValueError(f"kernel_size: required kernel_size <= size + 2 * padding on axis {axis}, got {got}")

    @classmethod
    def make(
        cls,
        spatial: int | tuple[int, ...],
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int | tuple[int, ...] = 1,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        bias: bool = True,
        activation: str = "none",
        residual: bool = False,
        dtype: str = "float32",
        weight_dtype: str | None = None,
    ) -> DenseProblem:
        """A problem; integers count for every axis of ``spatial``."""
        sizes = tuple(spatial) if isinstance(spatial, (tuple, list)) else (spatial,)
        window: tuple[Any, Any, Any] = (kernel_size, stride, padding)
        return cls(sizes, in_channels, out_channels, *window, bias, activation, residual, dtype, weight_dtype)

    def fields(self) -> dict[str, Any]:
        """See :meth:`Problem.fields`. Records name problems by them: one without narrower weights has no such field."""
        found = super().fields()
        if self.weight_dtype is None:
            del found["weight_dtype"]
        return found

    @property
    def out_spatial(self) -> tuple[int, ...]:
        """Sizes of the spatial axes of the output."""
        axes = zip(self.spatial, self.kernel_size, self.stride, self.padding, strict=True)
        return tuple((size + 2 * p - k) // s + 1 for size, k, s, p in axes)

    @property
    def accum_dtype(self) -> str:
        """The dtype of the sums."""
        return "float32" if self.dtype in HALVES else self.dtype

    @property
    def stored_dtype(self) -> str:
        """The dtype of the weights."""
        return self.weight_dtype or self.dtype

    @property
    def useful_flops(self) -> int:
        """Multiply-adds of the products times two, for a batch of one (those with padding not discounted)."""
        return 2 * math.prod(self.out_spatial) * self.out_channels * math.prod(self.kernel_size) * self.in_channels

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weights before they are packed: output channels, window, input channels."""
        return (self.out_channels, *self.kernel_size, self.in_channels)

    def arguments(self) -> tuple[Argument, ...]:
        """x, weight; weight_scale, bias and residual where it has them; out."""
        out = Argument("out", (*self.out_spatial, self.out_channels), self.dtype, "output")
        found = [
            Argument("x", (*self.spatial, self.in_channels), self.dtype),
            Argument("weight", self.weight_shape, self.stored_dtype, has_batch=False),
        ]
        if self.weight_dtype == "int8":
            found.append(Argument("weight_scale", (self.out_channels,), self.accum_dtype, has_batch=False))
        if self.bias:
            found.append(Argument("bias", (self.out_channels,), self.dtype, has_batch=False))
        if self.residual:
            found.append(dataclasses.replace(out, name="residual", role="input"))
        return (*found, out)

    def distance(self, other: Problem) -> float | None:
        """See :meth:`Problem.distance`. The window and the channels say how long a sum is and how many tiles share a
        block of weights. Weights that are widened from int8 want other tiles."""
        if not isinstance(other, DenseProblem) or (self.rank, self.dtype) != (other.rank, other.dtype):
            return None
        if self.weight_dtype != other.weight_dtype and "int8" in (self.weight_dtype, other.weight_dtype):
            return None
        far = ratio(math.prod(self.spatial), math.prod(other.spatial))
        far += ratio(self.in_channels, other.in_channels) + ratio(self.out_channels, other.out_channels)
        far += ratio(math.prod(self.kernel_size), math.prod(other.kernel_size))
        far += 0.5 * ratio(math.prod(self.stride), math.prod(other.stride))
        far += 0.5 * (any(self.padding) != any(other.padding)) + (self.activation != other.activation)
        far += self.weight_dtype != other.weight_dtype
        return far + 0.25 * (self.bias != other.bias) + 0.25 * (self.residual != other.residual)

    def unsupported(self, kind: str) -> str:
        """See :meth:`Problem.unsupported`."""
        return f"linear layers and convolutions are compiled for CPUs, not for {kind}"

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.spatial)), f"channels {self.in_channels}->{self.out_channels}"]
        parts += [f"k {axes_text(self.kernel_size)}"] if set(self.kernel_size) != {1} else []
        parts += [f"stride {axes_text(self.stride)}"] if set(self.stride) != {1} else []
        parts += [f"pad {axes_text(self.padding)}"] if set(self.padding) != {0} else []
        parts += [self.dtype] if self.weight_dtype is None else [self.dtype, f"{self.weight_dtype} weights"]
        parts += ["bias"] if self.bias else []
        parts += [self.activation] if self.activation != "none" else []
        return " ".join([*parts, *(["residual"] if self.residual else [])])
