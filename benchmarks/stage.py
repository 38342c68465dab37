"""One problem of the operator's benchmark: what was measured of it, and the ratios that are reported."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers import PEERS
from tvm_na.benchmark import ERROR_BUDGET, Timing
from tvm_na.problem import NAProblem

OURS = "tvm_na"
DEFAULT = "default"
MATMUL = "torch.mm"
MATMUL_SIZE = 1024


@dataclass
class Stage:
    """What was measured for one problem.

    Attributes:
        problem: The problem.
        timings: By candidate that ran, including :data:`MATMUL`, the product of two 1024x1024 matrices.
        errors: Relative error by candidate that ran.
        unavailable: Why a candidate did not run.
        schedule: Which schedule ours has, in words.
    """

    problem: NAProblem
    timings: dict[str, Timing] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    schedule: str = ""

    def is_right(self, name: str) -> bool:
        """Whether a candidate ran and its error is within the budget."""
        return self.errors.get(name, float("inf")) <= ERROR_BUDGET[self.problem.dtype]

    def seconds(self, name: str, fastest: bool = False) -> float:
        """The median of a candidate's samples, or its fastest one."""
        timing = self.timings[name]
        return timing.minimum if fastest else timing.median

    def _best_peer(self, fastest: bool) -> str | None:
        right = [peer.name for peer in PEERS if self.is_right(peer.name)]
        return min(right, key=lambda name: self.seconds(name, fastest), default=None)

    @property
    def best_peer(self) -> str | None:
        """The fastest peer with right numbers, by medians."""
        return self._best_peer(fastest=False)

    def over_peer(self, fastest: bool = False) -> float | None:
        """Best peer's time over ours; None if our numbers are wrong or there is no peer."""
        best = self._best_peer(fastest)
        if best is None or not self.is_right(OURS):
            return None
        return self.seconds(best, fastest) / self.seconds(OURS, fastest)

    @property
    def speedup(self) -> float | None:
        """Best peer's time over ours, by medians."""
        return self.over_peer()

    @property
    def fastest_speedup(self) -> float | None:
        """The same by fastest samples."""
        return self.over_peer(fastest=True)

    def over_default(self, fastest: bool = False) -> float | None:
        """The default schedule's time over ours; None if the numbers of either are wrong."""
        if not (self.is_right(OURS) and self.is_right(DEFAULT)):
            return None
        return self.seconds(DEFAULT, fastest) / self.seconds(OURS, fastest)

    def matmul_seconds(self, fastest: bool = False) -> float:
        """Seconds that ``torch.mm`` would need for the problem's useful operations."""
        return self.seconds(MATMUL, fastest) * self.problem.useful_flops / (2 * MATMUL_SIZE**3)

    @property
    def matmul_time(self) -> float:
        """The same by medians."""
        return self.matmul_seconds()

    def of_matmul(self, fastest: bool = False) -> float | None:
        """Our time over that of ``torch.mm`` for as many operations; None if our numbers are wrong."""
        return self.seconds(OURS, fastest) / self.matmul_seconds(fastest) if self.is_right(OURS) else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "problem": str(self.problem),
            "useful_flops": self.problem.useful_flops,
            "schedule": self.schedule,
            "candidates": {
                name: {**timing.to_dict(), "relative_error": self.errors.get(name)}
                for name, timing in self.timings.items()
            },
            "unavailable": self.unavailable,
            "matmul_time": self.matmul_time,
            "best_peer": self.best_peer,
            "speedup": self.speedup,
            "fastest_speedup": self.fastest_speedup,
            "over_default": self.over_default(),
            "fastest_over_default": self.over_default(fastest=True),
            "of_matmul": self.of_matmul(),
            "fastest_of_matmul": self.of_matmul(fastest=True),
        }


def mean_of(ratios: list[float | None]) -> float | None:
    """Their geometric mean; None if one is refused."""
    right = [ratio for ratio in ratios if ratio is not None]
    return statistics.geometric_mean(right) if right and len(right) == len(ratios) else None


def geomean(stages: list[Stage], fastest: bool = False) -> float | None:
    """Geometric mean of each stage's speedup over the best peer; None if one is refused."""
    return mean_of([stage.over_peer(fastest) for stage in stages])
