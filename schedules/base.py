"""What a search space is, and how it makes decisions.

A space is a function ``apply(func, target, sample=False) -> Schedule | None``: None where it does not serve
``func`` on ``target``. Every choice goes through a :class:`Decisions`, which either states the default or leaves the
sampling to MetaSchedule; both leave the same trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Space(Protocol):
    """A search space; see the module."""

    def __call__(self, func: Any, target: Any, sample: bool = False) -> Any | None: ...


@dataclass(frozen=True)
class Decisions:
    """How the choices of a space are made.

    Attributes:
        sch: The schedule under construction.
        sample: Whether choices are drawn (for the tuner) or take their defaults.
    """

    sch: Any
    sample: bool = False

    def one_of(self, candidates: Sequence[int], default: int) -> Any:
        """One of ``candidates``; ``default`` must be among them."""
        index = list(candidates).index(default)
        probability = [1.0 / len(candidates)] * len(candidates)
        decision = None if self.sample else index
        return self.sch.sample_categorical(list(candidates), probability, decision=decision)

    def split(self, loop: Any, inner: int, extent: int) -> list[Any]:
        """Split ``loop`` of ``extent`` in two without remainder; ``inner`` is the default inner factor."""
        decision = None if self.sample else [extent // inner, inner]
        factors = self.sch.sample_perfect_tile(loop, n=2, max_innermost_factor=extent, decision=decision)
        return list(self.sch.split(loop, factors, preserve_unit_iters=True))


def largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of ``n`` that is at most ``limit`` (and at least 1)."""
    return max(d for d in range(1, max(1, min(n, limit)) + 1) if n % d == 0)
