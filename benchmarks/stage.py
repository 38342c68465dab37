"""One problem of the operator's benchmark: what was measured of it, and the ratios that are reported."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers import PEERS
from tvm_na.measure.timing import Timing, interleaved_ratio
from tvm_na.problems.attention import NAProblem
from tvm_na.reference.accuracy import ERROR_BUDGET

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
        duel: Timings of ours and the default alone, of many short samples, since the two are close.
    """

    problem: NAProblem
    timings: dict[str, Timing] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    schedule: str = ""
    duel: dict[str, Timing] = field(default_factory=dict)

    def is_right(self, name: str) -> bool:
        """Whether a candidate ran and its error is within the budget."""
        return self.errors.get(name, float("inf")) <= ERROR_BUDGET[self.problem.dtype]

    def ratio(self, numerator: str, denominator: str, in_turns: bool) -> float:
        """The time of one candidate over that of another: round by round, or by their medians."""
        duel = {numerator, denominator} <= self.duel.keys()
        one, other = ((self.duel if duel else self.timings)[name] for name in (numerator, denominator))
        return interleaved_ratio(one, other) if in_turns else one.median / other.median

    @property
    def best_peer(self) -> str | None:
        """The fastest peer with right numbers, by medians."""
        right = [peer.name for peer in PEERS if self.is_right(peer.name)]
        return min(right, key=lambda name: self.timings[name].median, default=None)

    def over_peer(self, in_turns: bool = False) -> float | None:
        """Best peer's time over ours; None if our numbers are wrong or there is no peer."""
        best = self.best_peer
        return None if best is None or not self.is_right(OURS) else self.ratio(best, OURS, in_turns)

    @property
    def speedup(self) -> float | None:
        """Best peer's time over ours, by medians."""
        return self.over_peer()

    def over_default(self, in_turns: bool = False) -> float | None:
        """The default schedule's time over ours; None if the numbers of either are wrong."""
        return self.ratio(DEFAULT, OURS, in_turns) if self.is_right(OURS) and self.is_right(DEFAULT) else None

    @property
    def _of_product(self) -> float:
        """The problem's useful operations over those of the product."""
        return self.problem.useful_flops / (2 * MATMUL_SIZE**3)

    @property
    def matmul_time(self) -> float:
        """Seconds that ``torch.mm`` would need for the problem's useful operations, by medians."""
        return self.timings[MATMUL].median * self._of_product

    def of_matmul(self, in_turns: bool = False) -> float | None:
        """Our time over that of ``torch.mm`` for as many operations; None if our numbers are wrong."""
        return self.ratio(OURS, MATMUL, in_turns) / self._of_product if self.is_right(OURS) else None

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
            "duel": {name: timing.to_dict() for name, timing in self.duel.items()},
            "unavailable": self.unavailable,
            "matmul_time": self.matmul_time,
            "best_peer": self.best_peer,
            "speedup": self.speedup,
            "speedup_in_turns": self.over_peer(in_turns=True),
            "over_default": self.over_default(),
            "over_default_in_turns": self.over_default(in_turns=True),
            "of_matmul": self.of_matmul(),
            "of_matmul_in_turns": self.of_matmul(in_turns=True),
        }


def mean_of(ratios: list[float | None]) -> float | None:
    """Their geometric mean; None if one is refused."""
    right = [ratio for ratio in ratios if ratio is not None]
    return statistics.geometric_mean(right) if right and len(right) == len(ratios) else None


def geomean(stages: list[Stage], in_turns: bool = False) -> float | None:
    """Geometric mean of each stage's speedup over the best peer; None if one is refused."""
    return mean_of([stage.over_peer(in_turns) for stage in stages])
