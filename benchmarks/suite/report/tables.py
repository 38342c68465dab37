"""The tables of docs/BENCHMARKS.md: rows of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.suite.models import COMPILED, EAGER, OTHERS
from benchmarks.suite.networks import FLOOR, NAMES, NAT, SWIN
from benchmarks.suite.op import DEFAULT, OURS, WITHOUT_BIAS
from benchmarks.suite.packages import ARTIFACTS, PACKAGE
from benchmarks.suite.report.results import NO_PEERS, Measured, Results

NONE = "—"
#: Cases by the way that models are run in at batch 1.
CASES = {EAGER: "eager, batch 1", COMPILED: f"{COMPILED}, batch 1", PACKAGE: "packages, batch 1"}


@dataclass(frozen=True)
class Table:
    """A table of Markdown."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def ms(seconds: float | None) -> str:
    """Milliseconds with three digits."""
    return NONE if seconds is None else digits(seconds * 1e3)


def digits(number: float) -> str:
    """Three digits, and no exponent."""
    places = max(0, 2 - math.floor(math.log10(number))) if number > 0 else 0
    return f"{number:,.{min(places, 4)}f}"


def times(ratio: float | None, places: int = 2) -> str:
    """``1.53x``; large ones without places."""
    return NONE if ratio is None else f"{ratio:.{places if ratio < 10 else 1 if ratio < 100 else 0}f}x"


def peer_names(found: Sequence[Measured]) -> list[str]:
    """Columns of peers: one for a peer, whether or not it took the bias."""
    names: dict[str, None] = {}
    for one in found:
        names |= dict.fromkeys(name.removesuffix(", no bias") for name in [*one.timings, *one.refused])
    return [name for name in names if name not in NO_PEERS]


def of_peer(one: Measured, name: str) -> str:
    if name in WITHOUT_BIAS and f"{name}, no bias" in one.timings:
        return f"{ms(one.seconds(f'{name}, no bias'))}*"
    return ms(one.seconds(name))


def operator(found: Sequence[Measured], default: bool = True) -> Table:
    """Medians in ms of every candidate, and the two ratios."""
    peers = peer_names(found)
    first = [OURS, "default schedule"] if default else [OURS]
    columns = ["", *first, *peers, "best peer / ours", "`torch.mm`", "ours / it"]
    rows = []
    for one in found:
        ours = [ms(one.seconds(name)) for name in ((OURS, DEFAULT) if default else (OURS,))]
        cells = [of_peer(one, peer) for peer in peers]
        rows.append([one.name, *ours, *cells, times(one.over_peer), ms(one.bound), times(one.over_bound)])
    return Table(columns, rows)


def refusals(results: Results) -> Table:
    """Which candidate has no time where, and why."""
    where: dict[tuple[str, str], list[str]] = {}
    for dtype, of in {"": results, **results.others}.items():
        for part, which in (("op", "forward"), ("op", "training"), ("growth", "forward")):
            for one in of.operator(part, which):
                place = ", ".join(filter(None, (one.name, which if which == "training" else "", dtype)))
                for name, reason in one.refused.items():
                    where.setdefault((name.removesuffix(", no bias"), reason), []).append(place)
        for part in ("models", "training"):
            for case, content in of.cases(part).items():
                place = ", ".join(filter(None, (part, case, dtype)))
                for name, reason in content.get("refused", {}).items() if "candidates" in content else ():
                    where.setdefault((name, reason), []).append(place)
    return Table(["candidate", "where", "why"], [[n, _few(places), _cell(r)] for (n, r), places in where.items()])


def _few(places: Sequence[str]) -> str:
    return ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def growth(found: Sequence[Measured]) -> Table:
    """Times over tokens, with the exponent between the two largest maps that have both."""
    peers = [OURS, *peer_names(found)]
    rows = [[one.name, *(ms(one.seconds(peer)) for peer in peers)] for one in found]
    rows.append(["exponent", *(_exponent(found, peer) for peer in peers)])
    return Table(["map", *peers], rows)


def _exponent(found: Sequence[Measured], name: str) -> str:
    """Of tokens, between the largest maps; useful operations grow as tokens do."""
    timed = [(one.useful, seconds) for one in found if (seconds := one.seconds(name)) is not None][-2:]
    if len(timed) < 2:
        return NONE
    (few, short), (many, long) = timed
    return f"{math.log(long / short) / math.log(many / few):.2f}"


def models(results: Results) -> Table:
    """Medians in ms of batch 1, for every way."""
    ways = {way: results.comparison("models", case) for way, case in CASES.items()}
    artifacts = [f"our artifact, `{way}`" for way in ARTIFACTS]
    rows = []
    for name in NAMES:
        cells = [ms(found.seconds(f"{name}, {way}")) for way, found in ways.items()]
        cells += [ms(ways[PACKAGE].seconds(f"{name}, {way}")) for way in ARTIFACTS]
        rows.append([name, *cells])
    heads = ["eager", "`torch.compile`, freezing", "AOTInductor, max-autotune"]
    return Table(["", *heads, *artifacts], rows)


def model_ratios(results: Results) -> Table:
    """NAT-Tiny's time over that of the others, neighbor by neighbor."""
    rows = []
    for way, case in CASES.items():
        found = results.comparison("models", case)
        for ours in ARTIFACTS if way == PACKAGE else (way,):
            label = f"artifact `{ours}`, others by AOTInductor" if way == PACKAGE else way
            rows.append([label, *(times(found.ratio(f"{NAT}, {ours}", f"{other}, {way}")) for other in NAMES[1:])])
    for case in results.cases("models"):
        if case.endswith("batch 16"):
            found, way = results.comparison("models", case), case.split(",")[0]
            rows.append([case, *(times(found.ratio(f"{NAT}, {way}", f"{other}, {way}")) for other in NAMES[1:])])
    fastest = {name: _fastest(results, name) for name in NAMES}
    if (ours := fastest[NAT]) is not None:
        ratios = [times(None if other is None else ours / other) for other in list(fastest.values())[1:]]
        rows.append(["the fastest way of each, by medians", *ratios])
    return Table(["NAT-Tiny's time over that of", *NAMES[1:]], rows)


def _fastest(results: Results, name: str) -> float | None:
    """The least median of a model at batch 1, over all ways."""
    cases = [results.comparison("models", case) for case in CASES.values()]
    times_of = [found.seconds(f"{name}, {way}") for found in cases for way in (*CASES, *ARTIFACTS)]
    return min((seconds for seconds in times_of if seconds is not None), default=None)


def attentions(results: Results) -> Table:
    """NAT-Tiny with attention of others: ms."""
    found = results.comparison("models", OTHERS)
    return Table(list(found.timings), [[ms(timing.median) for timing in found.timings.values()]])


def packages(results: Results) -> Table:
    """What making packages takes."""
    made = {n.removeprefix("making "): c for n, c in results.cases("models").items() if n.startswith("making ")}
    rows = [[n, digits(c["seconds"]), digits(c["bytes"] / 1e6)] for n, c in made.items() if "seconds" in c]
    return Table(["package", "made in, s", "MB"], rows)


def training(results: Results) -> Table:
    """Steps: ms and ratios."""
    rows = []
    for case in results.cases("training"):
        found = results.comparison("training", case)
        rows.append([case, ms(found.seconds(NAT)), ms(found.seconds(SWIN)), times(found.ratio(NAT, SWIN))])
    return Table(["", NAT, SWIN, f"{NAT} / {SWIN}"], rows)


def memory(results: Results) -> Table:
    """Peaks in MB."""

    def peak(case: dict[str, object]) -> str:
        return digits(float(case["peak"]) / 1e6) if "peak" in case else NONE  # type: ignore[arg-type]

    return Table(["", "peak, MB"], [[name, peak(case)] for name, case in results.cases("memory").items()])


def start(results: Results) -> Table:
    """Seconds of first calls."""
    rows = []
    for name, case in results.cases("start").items():
        warm = sorted(one["first call"] for one in case["warm"])
        first, then = case["first"], warm[len(warm) // 2]
        rows.append(
            [name, digits(first["import"]), digits(first["first call"]), digits(then), ms(first["second call"])]
        )
    return Table(
        ["", "imports, s", "first call, nothing compiled, s", "first call, all on disk, s", "second call, ms"], rows
    )


Value = Callable[[Results], float | None]


def shares(results: Results) -> list[str]:
    """What of NAT-Tiny's time goes to attention, in words; eager, since only there its other layers are the same."""
    found = results.comparison("models", CASES[EAGER])
    ratio = found.ratio(f"{NAT}, {EAGER}", f"{FLOOR}, {EAGER}")
    swin = found.ratio(f"{FLOOR}, {EAGER}", f"{SWIN}, {EAGER}")
    if ratio is None or swin is None:
        return []
    share = 100 * (1 - 1 / ratio)
    return [f"Eager, attention is {share:.0f} % of NAT-Tiny's time; without any it takes {times(swin)} Swin-T's"]
