"""``natten.types``: what annotations of client code name."""

from __future__ import annotations

from enum import Enum

NoneType = type(None)

Dimension1DType = tuple[int]
Dimension2DType = tuple[int, int]
Dimension3DType = tuple[int, int, int]
DimensionType = Dimension1DType | Dimension2DType | Dimension3DType
Dimension1DTypeOrDed = int | Dimension1DType
Dimension2DTypeOrDed = int | Dimension2DType
Dimension3DTypeOrDed = int | Dimension3DType
DimensionTypeOrDed = int | DimensionType

CausalArg1DType = tuple[bool]
CausalArg2DType = tuple[bool, bool]
CausalArg3DType = tuple[bool, bool, bool]
CausalArgType = CausalArg1DType | CausalArg2DType | CausalArg3DType
CausalArg1DTypeOrDed = bool | CausalArg1DType
CausalArg2DTypeOrDed = bool | CausalArg2DType
CausalArg3DTypeOrDed = bool | CausalArg3DType
CausalArgTypeOrDed = bool | CausalArgType

QKTileShapeType = (
    tuple[Dimension1DType, Dimension1DType]
    | tuple[Dimension2DType, Dimension2DType]
    | tuple[Dimension3DType, Dimension3DType]
)


class KernelSchedule(Enum):
    """Schedules of NATTEN's kernels for Hopper; accepted as ``kernel_schedule`` and ignored."""

    NonPersistent = 0
    WarpSpecializedCooperative = 1
    WarpSpecializedPingpong = 2


def create_dim_from_int(na_dim: int, value: int) -> tuple[int, ...]:
    """``value`` for each of ``na_dim`` axes."""
    return (value,) * na_dim


def create_causal_arg_from_bool(na_dim: int, value: bool) -> tuple[bool, ...]:
    """``value`` for each of ``na_dim`` axes."""
    return (value,) * na_dim
