"""Results read back: medians, ratios of neighboring samples, bounds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.suite.cases import DTYPES
from benchmarks.suite.op import DEFAULT, IN_FLOAT32, MATMUL, MATMUL_SIZE, OURS
from benchmarks.suite.parts import PARTS
from benchmarks.suite.store import BF16_INSTRUCTIONS
from tvm_na.measure.timing import Timing, interleaved_ratio

#: Products of a forward and backward pass over those of a forward pass: scores and sums once, scores again, and the
#: gradients of weights, values, queries and keys.
PRODUCTS = {"forward": 1.0, "training": 3.5}


#: Candidates that are ours, or a bound.
NO_PEERS = (OURS, DEFAULT, IN_FLOAT32, MATMUL)


@dataclass(frozen=True)
class Comparison:
    """What was measured in turns, and why the rest was not."""

    timings: Mapping[str, Timing]
    refused: Mapping[str, str]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Comparison:
        """From JSON."""
        found = {name: Timing(tuple(c["samples"]), c["calls"]) for name, c in content["candidates"].items()}
        return cls(found, content["refused"])

    def seconds(self, name: str) -> float | None:
        """The median of a candidate; None if it has no time."""
        timing = self.timings.get(name)
        return None if timing is None else timing.median

    def ratio(self, numerator: str, denominator: str) -> float | None:
        """The median ratio of neighboring samples; of medians where one was measured once; None without a time."""
        one, other = self.timings.get(numerator), self.timings.get(denominator)
        if one is None or other is None:
            return None
        return interleaved_ratio(one, other) if len(one.samples) == len(other.samples) else one.median / other.median


@dataclass(frozen=True)
class Measured(Comparison):
    """A pass of the operator at one workload, with the seconds that its useful products take as ``torch.mm``'s."""

    name: str = ""
    note: str = ""
    useful: float = 0.0

    @property
    def peers(self) -> dict[str, Timing]:
        """Those that have a time."""
        return {name: t for name, t in self.timings.items() if name not in NO_PEERS}

    @property
    def best_peer(self) -> str | None:
        """The fastest, by medians."""
        return min(self.peers, key=lambda name: self.peers[name].median, default=None)

    @property
    def over_peer(self) -> float | None:
        """The best peer's time over ours."""
        return None if self.best_peer is None else self.ratio(self.best_peer, OURS)

    @property
    def bound(self) -> float | None:
        """Seconds of ``torch.mm`` for as many useful operations; None if it was not measured."""
        product = self.seconds(MATMUL)
        return None if product is None else self.useful / (2 * MATMUL_SIZE**3) * product

    @property
    def over_bound(self) -> float | None:
        """Our time over that."""
        ratio = self.ratio(OURS, MATMUL)
        return None if ratio is None else ratio * 2 * MATMUL_SIZE**3 / self.useful

    @property
    def default_over_ours(self) -> float | None:
        """The time of the default schedule over that with records."""
        return self.ratio(DEFAULT, OURS)


@dataclass(frozen=True)
class Results:
    """The results of a folder.

    Attributes:
        parts: Of each part that is there its machine, and its cases by name.
        others: Results in other dtypes than the device's main one, by dtype.
    """

    parts: Mapping[str, Mapping[str, Any]]
    others: Mapping[str, Results] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Results:
        """All that is in a folder."""
        of: dict[str, dict[str, Any]] = {}
        for (part, dtype), file in _files(folder).items():
            of.setdefault(dtype, {})[part] = json.loads(file.read_text(encoding="utf-8"))
        return cls(of.pop("", {}), {dtype: cls(parts) for dtype, parts in of.items()})

    @property
    def has_rehearsals(self) -> bool:
        """Whether any of it is of tiny sizes."""
        return any(content["quick"] for one in (self, *self.others.values()) for content in one.parts.values())

    def cases(self, part: str) -> dict[str, Any]:
        """Those of a part that did not fail."""
        cases = self.parts.get(part, {}).get("cases", {})
        return {name: case for name, case in cases.items() if "failed" not in case}

    def failures(self) -> list[tuple[str, str]]:
        """Cases that failed, and how."""
        return [
            (f"{part}, {name}", case["failed"])
            for part, content in self.parts.items()
            for name, case in content["cases"].items()
            if "failed" in case
        ]

    @property
    def has_bf16_instructions(self) -> bool:
        """Whether the machine's CPU multiplies bfloat16."""
        return bool({*self.machine["flags"]} & {*BF16_INSTRUCTIONS})

    @property
    def machine(self) -> Mapping[str, Any]:
        """The machine of the first part."""
        first: Mapping[str, Any] = self._contents()[0]["machine"]
        return first

    def _contents(self) -> list[Mapping[str, Any]]:
        """Of all parts; of other dtypes where nothing else is there."""
        return [*self.parts.values()] or [content for one in self.others.values() for content in one.parts.values()]

    def operator(self, part: str = "op", which: str = "forward") -> list[Measured]:
        """The passes of the operator."""
        found = []
        for name, case in self.cases(part).items():
            if which in case:
                one = Comparison.of(case[which])
                useful = case["useful"] * case["batch"] * PRODUCTS[which]
                found.append(Measured(one.timings, one.refused, name, case["note"], useful))
        return found

    def comparison(self, part: str, case: str) -> Comparison:
        """A case of models or of training; an empty one if it is not there."""
        found = self.cases(part).get(case)
        return Comparison({}, {}) if found is None else Comparison.of(found)

    def minutes(self, of_packages: bool = False) -> float:
        """What making packages took, or all other cases."""
        cases = [item for content in self.parts.values() for item in content["cases"].items()]
        return sum(case["took"] for name, case in cases if name.startswith("making ") == of_packages) / 60

    def dates(self) -> str:
        """The days on which parts were measured."""
        days = sorted({content["machine"]["date"][:10] for content in self._contents()})
        return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"

    def load(self) -> float:
        """The largest load that a run was begun with; above 1 or so it waited for others."""
        cases = [case for content in self.parts.values() for case in content["cases"].values()]
        return max((case["load_before"] for case in cases), default=0.0)


def _files(folder: Path) -> dict[tuple[str, str], Path]:
    """Those in a folder, by part and dtype, which is "" for the main one."""
    names = {(part, ""): f"{part}.json" for part in PARTS}
    names |= {(part, dtype): f"{part}-{dtype}.json" for part in PARTS for dtype in DTYPES}
    return {key: folder / name for key, name in names.items() if (folder / name).is_file()}


def files_of(folder: Path) -> list[Path]:
    """The files of results in a folder."""
    return list(_files(folder).values())


def extreme(ratios: Iterable[float | None], of: Callable[[list[float]], float]) -> float | None:
    """Their ``max`` or ``min``; None if there is none, or one is missing."""
    found = list(ratios)
    right = [ratio for ratio in found if ratio is not None]
    return of(right) if right and len(right) == len(found) else None


def mean(ratios: Iterable[float | None]) -> float | None:
    """Their geometric mean; None if there is none, or one is missing."""
    return extreme(ratios, statistics.geometric_mean)


def stages(found: Sequence[Measured]) -> list[Measured]:
    """NAT-Tiny's four."""
    return [one for one in found if one.name.startswith("NAT-Tiny")]
