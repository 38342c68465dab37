"""The pictures of docs/BENCHMARKS.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.properties.plots import finish, picture
from benchmarks.suite.networks import NAMES
from benchmarks.suite.op import DEFAULT, MATMUL, OURS
from benchmarks.suite.report.results import Measured, Results, stages
from benchmarks.suite.report.tables import CASES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(results: Results, folder: Path) -> None:
    """Draw what was measured into a folder."""
    if forward := stages(results.operator()):
        _operator(forward, folder / "bench-op.png")
    if growing := results.operator("growth"):
        _growth(growing, folder / "bench-growth.png")
    if any(results.comparison("models", case).timings for case in CASES.values()):
        _models(results, folder / "bench-models.png")


def _candidates(found: Sequence[Measured]) -> list[str]:
    names: dict[str, None] = {}
    for one in found:
        names |= dict.fromkeys(name.removesuffix(", no bias") for name in one.timings)
    return [name for name in names if name not in (MATMUL, DEFAULT)]


def _seconds(one: Measured, name: str) -> float | None:
    return one.seconds(name) or one.seconds(f"{name}, no bias")


def _bars(axes: Axes, groups: Sequence[str], bars: dict[str, list[float | None]]) -> None:
    """Groups of labeled bars, ms."""
    bars = {label: seconds for label, seconds in bars.items() if any(s is not None for s in seconds)}
    width = 0.8 / len(bars)
    for i, (label, seconds) in enumerate(bars.items()):
        shown = [(x + (i - (len(bars) - 1) / 2) * width, s * 1e3) for x, s in enumerate(seconds) if s is not None]
        drawn = axes.bar([x for x, _ in shown], [y for _, y in shown], width * 0.95, label=label, color=f"C{i}")
        axes.bar_label(drawn, fmt="{:.3g}", fontsize=7, padding=1)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("median time, ms")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    finish(axes)


def _operator(found: Sequence[Measured], path: Path) -> None:
    with picture(path, 1, 9, 4.5) as (_, (axes,)):
        _bars(axes, [one.name for one in found], {n: [_seconds(one, n) for one in found] for n in _candidates(found)})
        for x, one in enumerate(found):
            if one.bound is not None:
                axes.hlines(one.bound * 1e3, x - 0.42, x + 0.42, "black", "--", linewidth=1)
        axes.set_yscale("log")
        axes.set_title("forward, batch 1; dashed: torch.mm for as many useful operations")


def _growth(found: Sequence[Measured], path: Path) -> None:
    with picture(path, 1, 7, 4.5) as (_, (axes,)):
        tokens = [int(one.name.removesuffix("²")) ** 2 for one in found]
        for name in _candidates(found):
            shown = [
                (n, s * 1e3) for n, one in zip(tokens, found, strict=True) if (s := _seconds(one, name)) is not None
            ]
            axes.plot(*zip(*shown, strict=True), "o-", label=name, linewidth=2.5 if name == OURS else 1.2)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("tokens")
        axes.set_ylabel("median time, ms")
        axes.legend(frameon=False, fontsize=8)
        finish(axes)


def _models(results: Results, path: Path) -> None:
    bars = {}
    for way, case in CASES.items():
        found = results.comparison("models", case)
        bars[way] = [found.seconds(f"{name}, {way}") for name in NAMES]
    packages = results.comparison("models", list(CASES.values())[-1])
    for way in ("aoti", "tvm"):
        bars[f"our artifact, {way}"] = [packages.seconds(f"{name}, {way}") for name in NAMES]
    with picture(path, 1, 9, 4) as (_, (axes,)):
        _bars(axes, NAMES, bars)
        axes.set_title("224 x 224 pixels, batch 1")
