"""What the operator's benchmark says of a problem: ratios, and the goals that they are held to.

Ratios of medians and ratios round by round both count: candidates of a round meet the same speed of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.case import OURS, Case, mean_of
from benchmarks.common import ratio_text
from tvm_na.measure.timing import Timing

DEFAULT = "default"
#: The product of two 1024x1024 matrices; a copy that moves as many bytes as query, key, value and output have.
MATMUL, COPY = "torch.mm", "copy"
MATMUL_SIZE = 1024
MIN_GEOMEAN = 5.0
# Of tuned kernels.
MAX_OF_MATMUL, MIN_OVER_DEFAULT, MIN_OVER_PEER = 3.0, 1.3, 10.0

_KINDS = (("medians", False), ("round by round", True))


@dataclass
class OpCase(Case):
    """What was measured for one problem of the forward pass, and which schedule ours has, in words.

    ``duel``: timings of ours and the default alone, of many short samples, since the two are close.
    """

    schedule: str = ""
    duel: dict[str, Timing] = field(default_factory=dict)

    def ratio(self, numerator: str, denominator: str, by_round: bool) -> float:
        """See :class:`Case`; of those that met in a duel, from there."""
        if {numerator, denominator} <= self.duel.keys():
            return Case(self.problem, timings=self.duel).ratio(numerator, denominator, by_round)
        return super().ratio(numerator, denominator, by_round)

    def over_default(self, by_round: bool = False) -> float | None:
        """The default schedule's time over ours; None if the numbers of either are wrong."""
        return self.ratio(DEFAULT, OURS, by_round) if self.is_right(OURS) and self.is_right(DEFAULT) else None

    def of_copy(self, by_round: bool = False) -> float | None:
        """Our time over that of the copy; None if our numbers are wrong."""
        return self.ratio(OURS, COPY, by_round) if self.is_right(OURS) else None

    @property
    def _of_product(self) -> float:
        """The problem's useful operations over those of the product."""
        return self.problem.useful_flops / (2 * MATMUL_SIZE**3)

    @property
    def matmul_time(self) -> float:
        """Seconds that ``torch.mm`` would need for the problem's useful operations, by medians."""
        return self.timings[MATMUL].median * self._of_product

    def of_matmul(self, by_round: bool = False) -> float | None:
        """Our time over that of ``torch.mm`` for as many operations; None if our numbers are wrong."""
        return self.ratio(OURS, MATMUL, by_round) / self._of_product if self.is_right(OURS) else None

    def ratios(self) -> dict[str, Callable[[bool], float | None]]:
        """What is reported of the device, by its name in tables."""
        if self.device == "cuda":
            return {"ours / copy": self.of_copy, "best peer / ours": self.over_peer}
        return {"default / ours": self.over_default, "ours / mm": self.of_matmul, "best peer / ours": self.over_peer}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {**super().to_dict(), "useful_flops": self.problem.useful_flops, "schedule": self.schedule}
        found |= {"best_peer": self.best_peer, "bytes": self.bytes_of(4)}
        found["duel"] = {name: timing.to_dict() for name, timing in self.duel.items()}
        if MATMUL in self.timings:
            found["matmul_time"] = self.matmul_time
        names = {"best peer / ours": "speedup", "default / ours": "over_default", "ours / mm": "of_matmul"}
        for name, ratio in self.ratios().items():
            key = names.get(name, "of_copy")
            found |= {key: ratio(False), f"{key}_in_turns": ratio(True)}
        return found

    def load(self, content: dict[str, Any]) -> None:
        super().load(content)
        self.schedule = content["schedule"]


def geomean(cases: Sequence[Case], by_round: bool = False) -> float | None:
    """Geometric mean of each case's speedup over the best peer; None if one is refused."""
    return mean_of([case.over_peer(by_round) for case in cases])


@dataclass(frozen=True)
class Goal:
    """Something that is to be reached: how much is required, how much it is (in words), and whether it is reached."""

    name: str
    required: str
    got: str
    met: bool

    def __str__(self) -> str:
        return f"goal {'met' if self.met else 'missed'}: {self.name}: required {self.required}, got {self.got}"


def failures_of(cases: Sequence[Case]) -> list[str]:
    """What is wrong with the compiled operator beside its peers, however it was scheduled."""
    found = [f"{case.problem}: no speedup" for case in cases if case.over_peer() is None]
    for kind, by_round in _KINDS:
        for case in cases:
            ratio = case.over_peer(by_round)
            if ratio is not None and ratio < 1:
                found.append(f"{case.problem}: slower than the best peer, {kind}")
        mean = geomean(cases, by_round)
        if mean is None or mean < MIN_GEOMEAN:
            found.append(f"geometric mean, {kind}: required >= {MIN_GEOMEAN}, got {mean}")
    return found


def tuning_goals(cases: Sequence[OpCase]) -> list[Goal]:
    """The goals of tuning, by medians and round by round."""
    return [goal for kind, by_round in _KINDS for goal in _goals(cases, kind, by_round)]


def _goals(cases: Sequence[OpCase], kind: str, by_round: bool) -> list[Goal]:
    matmul = mean_of([case.of_matmul(by_round) for case in cases])
    default = mean_of([case.over_default(by_round) for case in cases])
    peers = [case.over_peer(by_round) for case in cases]
    slowest = None if None in peers else min(ratio for ratio in peers if ratio is not None)

    def at_least(name: str, required: float, ratio: float | None, got: str) -> Goal:
        return Goal(f"{name}, {kind}", f">= {required:g}x", got, ratio is not None and ratio >= required)

    met = matmul is not None and matmul <= MAX_OF_MATMUL
    name = f"time over torch.mm's for the same FLOPs, geometric mean, {kind}"
    return [
        Goal(name, f"<= {MAX_OF_MATMUL:g}x", ratio_text(matmul), met),
        at_least("default schedule's time over ours, geometric mean", MIN_OVER_DEFAULT, default, ratio_text(default)),
        at_least("best peer's time over ours at each stage", MIN_OVER_PEER, slowest, ", ".join(map(ratio_text, peers))),
    ]
