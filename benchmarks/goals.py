"""What ``python -m benchmarks.op`` checks: with ``--check`` beside its peers, with ``--goals`` of tuning.

Ratios of medians and ratios round by round both count: candidates of a round meet the same speed of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.stage import Stage, geomean, mean_of

MIN_GEOMEAN = 5.0
# Of tuned kernels.
MAX_OF_MATMUL, MIN_OVER_DEFAULT, MIN_OVER_PEER = 3.0, 1.3, 10.0

_KINDS = (("medians", False), ("round by round", True))


@dataclass(frozen=True)
class Goal:
    """Something that tuned kernels are to reach.

    Attributes:
        name: What.
        required: How much, in words.
        got: How much it is, or why that is unknown.
        met: Whether it is reached.
    """

    name: str
    required: str
    got: str
    met: bool

    def __str__(self) -> str:
        return f"goal {'met' if self.met else 'missed'}: {self.name}: required {self.required}, got {self.got}"


def failures_of(stages: list[Stage]) -> list[str]:
    """What is wrong with the compiled operator beside its peers, however it was scheduled."""
    found = [f"{stage.problem}: no speedup" for stage in stages if stage.speedup is None]
    for kind, in_turns in _KINDS:
        for stage in stages:
            ratio = stage.over_peer(in_turns)
            if ratio is not None and ratio < 1:
                found.append(f"{stage.problem}: slower than the best peer, {kind}")
        mean = geomean(stages, in_turns)
        if mean is None or mean < MIN_GEOMEAN:
            found.append(f"geometric mean, {kind}: required >= {MIN_GEOMEAN}, got {mean}")
    return found


def tuning_goals(stages: list[Stage]) -> list[Goal]:
    """The goals of tuning, by medians and round by round."""
    return [goal for kind, in_turns in _KINDS for goal in _goals(stages, kind, in_turns)]


def _goals(stages: list[Stage], kind: str, in_turns: bool) -> list[Goal]:
    matmul = mean_of([stage.of_matmul(in_turns) for stage in stages])
    default = mean_of([stage.over_default(in_turns) for stage in stages])
    peers = [stage.over_peer(in_turns) for stage in stages]
    slowest = None if None in peers else min(ratio for ratio in peers if ratio is not None)
    return [
        Goal(
            f"time over torch.mm's for the same FLOPs, geometric mean, {kind}",
            f"<= {MAX_OF_MATMUL:g}x",
            _ratio(matmul),
            matmul is not None and matmul <= MAX_OF_MATMUL,
        ),
        Goal(
            f"default schedule's time over ours, geometric mean, {kind}",
            f">= {MIN_OVER_DEFAULT:g}x",
            _ratio(default),
            default is not None and default >= MIN_OVER_DEFAULT,
        ),
        Goal(
            f"best peer's time over ours at each stage, {kind}",
            f">= {MIN_OVER_PEER:g}x",
            ", ".join(map(_ratio, peers)),
            slowest is not None and slowest >= MIN_OVER_PEER,
        ),
    ]


def _ratio(ratio: float | None) -> str:
    return "refused" if ratio is None else f"{ratio:.2f}x"
