"""What is to be shown, and where others are ahead."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from benchmarks.suite.models import COMPILED, EAGER
from benchmarks.suite.networks import FLOOR, NAMES, NAT, SWIN
from benchmarks.suite.op import IN_FLOAT32, OURS
from benchmarks.suite.packages import ARTIFACTS, PACKAGE
from benchmarks.suite.report.halves import packed_share
from benchmarks.suite.report.results import Results, extreme, mean, stages
from benchmarks.suite.report.tables import CASES, Table, times


@dataclass(frozen=True)
class Goal:
    """A ratio that is to be reached."""

    name: str
    sense: Literal["<=", ">="]
    required: float
    got: float | None

    @property
    def verdict(self) -> str:
        """Met, missed or not measured."""
        if self.got is None:
            return "not measured"
        return "met" if (self.got <= self.required) == (self.sense == "<=") or self.got == self.required else "missed"


def goals(results: Results) -> list[Goal]:
    """All of them."""
    op = stages(results.operator())
    over_peer = [one.over_peer for one in op]
    tuned = mean([one.default_over_ours for one in op])
    compiled, packages = (results.comparison("models", CASES[way]) for way in (COMPILED, PACKAGE))
    found = [
        Goal("operator at NAT-Tiny's stages: best peer / ours, geometric mean", ">=", 11.0, mean(over_peer)),
        Goal("the same at the worst stage", ">=", 3.5, extreme(over_peer, min)),
        Goal("ours / `torch.mm` for the useful products, geometric mean", "<=", 1.8, mean([o.over_bound for o in op])),
        Goal(
            "speed by default over speed with records, geometric mean", ">=", 0.8, None if tuned is None else 1 / tuned
        ),
        Goal(
            f"NAT-Tiny / without attention, {COMPILED}",
            "<=",
            1.08,
            compiled.ratio(f"{NAT}, {COMPILED}", f"{FLOOR}, {COMPILED}"),
        ),
        Goal(f"NAT-Tiny / Swin-T, {COMPILED}", "<=", 0.95, compiled.ratio(f"{NAT}, {COMPILED}", f"{SWIN}, {COMPILED}")),
    ]
    for way, most in zip(ARTIFACTS, (0.97, 0.9), strict=True):
        ratio = packages.ratio(f"{NAT}, {way}", f"{SWIN}, {PACKAGE}")
        found.append(Goal(f"NAT-Tiny as artifact `{way}` / Swin-T by AOTInductor", "<=", most, ratio))
    found.append(Goal("peak memory of a forward pass, batch 32, NAT-Tiny / Swin-T", "<=", 1.0, _memory(results)))
    step = results.comparison("training", "eager, batch 8").ratio(NAT, SWIN)
    return [*found, Goal("training step, batch 8, NAT-Tiny / Swin-T, eager", "<=", 1.0, step)]


def goals_of_dtype(results: Results, dtype: str) -> list[Goal]:
    """What another dtype is to gain over float32, and over peers in the same dtype."""
    forward, training = (stages(results.operator("op", which)) for which in ("forward", "training"))
    ratios = [one.ratio(OURS, IN_FLOAT32) for one in forward]
    over_peer = [one.over_peer for one in forward]
    name = f"operator at NAT-Tiny's stages, {dtype}"
    if dtype == "bfloat16" and results.has_bf16_instructions:
        gain = Goal(f"{name} / float32, geometric mean", "<=", 0.8, mean(ratios))
    else:
        gain = Goal(f"{name} / float32, worst stage", "<=", 1.05, extreme(ratios, max))
    back = extreme([one.ratio(OURS, IN_FLOAT32) for one in training], max)
    return [
        gain,
        Goal(f"{name}, forward and backward / float32, worst stage", "<=", 1.05, back),
        Goal(f"{name}: best peer in {dtype} / ours, geometric mean", ">=", 5.0, mean(over_peer)),
        Goal("the same at the worst stage", ">=", 1.0, extreme(over_peer, min)),
        Goal(
            f"peak memory of a call in {dtype} / its output and what float32 packs", "<=", 1.02, packed_share(results)
        ),
    ]


def _memory(results: Results) -> float | None:
    peaks = [results.cases("memory").get(f"{name}, batch 32", {}).get("peak") for name in (NAT, SWIN)]
    return None if None in peaks else peaks[0] / peaks[1]


def goals_table(results: Results) -> Table:
    """As a table; those of other dtypes follow."""
    found = [*goals(results), *(goal for dtype, of in results.others.items() for goal in goals_of_dtype(of, dtype))]
    rows = [[g.name, f"{g.sense} {g.required:g}x", times(g.got), g.verdict] for g in found]
    return Table(["", "required", "measured", ""], rows)


@dataclass(frozen=True)
class Loss:
    """Where another is ahead: by how much, and what is known of why."""

    where: str
    who: str
    ratio: float
    why: str


def losses(results: Results) -> list[Loss]:
    """Every comparison of the suite in which our time, or memory, is the larger, the worst first."""
    return sorted([*_of_operator(results), *_of_models(results), *_others(results)], key=lambda loss: -loss.ratio)


def _of_operator(results: Results) -> list[Loss]:
    found = []
    for dtype, of in {"": results, **results.others}.items():
        for part, which in (("op", "forward"), ("op", "training"), ("growth", "forward")):
            for one in of.operator(part, which):
                if one.over_peer is not None and one.over_peer < 1:
                    why = f"ours takes {times(one.over_bound)} the time of its useful products alone"
                    why = (
                        why
                        if one.over_bound
                        else f"ours takes {times(one.ratio(OURS, IN_FLOAT32))} its time in float32"
                    )
                    where = ", ".join(filter(None, (which, one.name, dtype)))
                    found.append(Loss(where, str(one.best_peer), 1 / one.over_peer, why))
    return found


def _of_models(results: Results) -> list[Loss]:
    found = []
    for way, case in CASES.items():
        comparison = results.comparison("models", case)
        for ours in ARTIFACTS if way == PACKAGE else (way,):
            for other in (name for name in NAMES if name not in (NAT, FLOOR)):
                ratio = comparison.ratio(f"{NAT}, {ours}", f"{other}, {way}")
                if ratio is not None and ratio > 1:
                    floor = comparison.ratio(f"{FLOOR}, {way}", f"{other}, {way}")
                    why = "not looked into" if floor is None else f"without any attention it would take {times(floor)}"
                    found.append(Loss(f"NAT-Tiny, {ours if way != EAGER else 'eager'}", other, ratio, why))
    return found


def _others(results: Results) -> list[Loss]:
    found = []
    for case in results.cases("training"):
        ratio = results.comparison("training", case).ratio(NAT, SWIN)
        if ratio is not None and ratio > 1:
            found.append(
                Loss(f"training step, {case}", SWIN, ratio, "the step of everything: see the operator's own above")
            )
    peaks = {name: case["peak"] for name, case in results.cases("memory").items() if "peak" in case}
    for name, peak in peaks.items():
        ours = peaks.get(re.sub(r"(?<=², )[^,]+", OURS, name))
        if ours is not None and 0 < peak < ours:
            found.append(
                Loss(f"peak memory of the operator, {name}", name.split(", ")[1], ours / peak, "not looked into")
            )
    memory = _memory(results)
    if memory is not None and memory > 1:
        found.append(Loss("peak memory, batch 32", SWIN, memory, "MLPs of NAT-Tiny and Swin-T differ in width as well"))
    return found


def losses_table(results: Results) -> Table:
    """As a table."""
    rows = [[loss.where, loss.who, times(loss.ratio), loss.why] for loss in losses(results)]
    return Table(["where", "ahead of us", "our time over its", "what is known of it"], rows)
