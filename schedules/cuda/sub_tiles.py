"""Sub-tiles of tensor cores: which GPUs multiply them, and which of a formulation's are worth trying."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from tvm_na.targets.cuda_arch import capability_of
from tvm_na.targets.target import NATarget

T = TypeVar("T")

_OLDEST = (8, 0)  # compute capability with mma.m16n8k16 for both dtypes of 16 bits, with TF32, and with cp.async
_WORTH = 1.5


def are_multiplied_on(target: NATarget) -> bool:
    """Whether ``target`` is a GPU that has the instructions of every kernel on tensor cores."""
    return target.kind == "cuda" and capability_of(target.arch) >= _OLDEST


def worth_trying(tiles: Iterable[T], cost: Callable[[T], float | None], worth: float = _WORTH) -> tuple[T, ...]:
    """Those whose estimated ``cost`` is at most ``worth`` times the least, the least first; None is no tile."""
    costs = {tile: found for tile in tiles if (found := cost(tile)) is not None}
    return tuple(tile for tile in sorted(costs, key=costs.__getitem__) if costs[tile] <= worth * min(costs.values()))
