"""The pictures of a report, as PNG, for light and dark pages."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm_na.records.select import describe_threads
from tvm_na.report.data import ReportData, Task, quality_of
from tvm_na.report.roofline import Bound

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4
_DPI = 144
_SLOWEST_SHOWN = 2.2  # as a multiple of the best time


@dataclass(frozen=True)
class Theme:
    """Colors of a picture: of its page, its text, its lines, and of the data."""

    page: str
    text: str
    faint: str
    data: tuple[str, ...]


LIGHT = Theme("#ffffff", "#24292f", "#d8dee4", ("#0b63b0", "#c2570c", "#1a7f4b", "#8250a8"))
DARK = Theme("#15181c", "#d7dde3", "#3a424b", ("#6cb2f2", "#f0985a", "#5fc88f", "#c39ae6"))

#: Makes a picture in a theme.
Draw = Callable[[Theme], "Figure"]


def png_of(draw: Draw, theme: Theme) -> bytes:
    """The PNG file of a picture."""
    import matplotlib

    text = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "legend.labelcolor")
    style: Any = {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), theme.page),
        **dict.fromkeys(text, theme.text),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), theme.faint),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
        **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
        "grid.linewidth": 0.5,
        "font.size": 8,
        "axes.titlesize": 8.5,
    }
    with matplotlib.rc_context(style):
        out = io.BytesIO()
        draw(theme).savefig(out, format="png", dpi=_DPI)
        return out.getvalue()


def _panels(tasks: Iterable[Task]) -> dict[str, list[Task]]:
    """The tasks of each problem, by its name."""
    panels: dict[str, list[Task]] = {}
    for task in tasks:
        panels.setdefault(task.name, []).append(task)
    return panels


def _grid(names: Sequence[str], height: float, x: str, y: str) -> tuple[Figure, list[Axes]]:
    """A figure with a titled panel for each name; axes are labelled where no other panel is below or to the left."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(2.6 * columns + 0.3, height * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for index, (panel, name) in enumerate(zip(axes, names, strict=False)):
        panel.set_title(name, loc="left")
        panel.set_xlabel(x if index + columns >= len(names) else "")
        panel.set_ylabel("" if index % columns else y)
    for panel in axes[len(names) :]:
        panel.set_axis_off()
    return figure, axes[: len(names)]


def _colors(data: ReportData, theme: Theme) -> Mapping[int, str]:
    """A color for each number of threads."""
    return {n: theme.data[i % len(theme.data)] for i, n in enumerate(sorted({task.threads for task in data.tasks}))}


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them."""
    handles: dict[str, Any] = {}
    for panel in axes:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    # A row of its own below each panel's would take more room than the panels.
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=len(handles), frameon=False)


def curves(data: ReportData, theme: Theme) -> Figure:
    """The best time so far over the trials, a panel for each problem."""
    panels, colors = _panels(data.tasks), _colors(data, theme)
    figure, axes = _grid(list(panels), 1.9, "trials", "ms")
    for panel, tasks in zip(axes, panels.values(), strict=True):
        for task in tasks:
            _curve(panel, task, colors[task.threads])
        panel.set_xlim(left=0)
        panel.set_ylim(0, _slowest_shown(tasks))
    _legend(figure, axes)
    return figure


def _curve(panel: Axes, task: Task, color: str) -> None:
    trials = range(1, len(task.seconds) + 1)
    dots: dict[str, Any] = {"alpha": 0.35, "markersize": 2.5, "markeredgewidth": 0, "color": color}
    panel.plot(trials, [s * 1e3 for s in task.seconds], "o", **dots)
    best = [s * 1e3 for s in task.best_so_far]
    label = f"best, {describe_threads(task.threads)}"
    panel.plot(trials, best, color=color, linewidth=1.4, drawstyle="steps-post", label=label)
    if task.default is not None:
        label = f"default, {describe_threads(task.threads)}"
        panel.axhline(task.default * 1e3, color=color, linewidth=1, linestyle=(0, (4, 3)), label=label)


def _slowest_shown(tasks: Sequence[Task]) -> float:
    """The upper end of a panel's axis, in ms: what is far slower than the best says nothing."""
    defaults = [1.15 * task.default for task in tasks if task.default is not None]
    best = [_SLOWEST_SHOWN * task.best_so_far[-1] for task in tasks if not math.isnan(task.best_so_far[-1])]
    return 1e3 * max(defaults + best, default=1e-3)


def bounds(bounded: Sequence[tuple[Task, Bound]], theme: Theme) -> Figure:
    """Where tasks stand, a row for each: best and default as multiples of the bound."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 0.27 * len(bounded) + 1.3), layout="constrained")
    axes = figure.subplots()
    blue, orange, green, *_ = theme.data
    axes.axvline(1, color=theme.text, linewidth=1, zorder=1)

    def scatter(times: Sequence[float | None], **style: Any) -> None:
        x = [
            math.nan if time is None else time / bound.seconds for time, (_, bound) in zip(times, bounded, strict=True)
        ]
        axes.scatter(x, range(len(bounded)), **style)

    defaults = [task.default for task, _ in bounded]
    best = [task.best.seconds if task.best else None for task, _ in bounded]
    for row, (_, bound) in enumerate(bounded):
        slowest = max(defaults[row] or 0.0, best[row] or 0.0, bound.seconds)
        axes.plot([1, slowest / bound.seconds], [row, row], color=theme.faint, linewidth=2, zorder=1)
    tick: dict[str, Any] = {"marker": "|", "s": 70, "linewidths": 2, "zorder": 2}
    dot: dict[str, Any] = {"s": 26, "zorder": 3, "edgecolors": blue}
    scatter([bound.products for _, bound in bounded], color=green, label="products alone", **tick)
    scatter([bound.transfers for _, bound in bounded], color=orange, label="transfers alone", **tick)
    scatter(defaults, facecolors=theme.page, label="default", **dot)
    scatter(best, facecolors=blue, label="best", **dot)
    axes.set_xlim(left=0)
    axes.set_xlabel("time / bound")
    axes.set_yticks(range(len(bounded)), [f"{task.name}, {describe_threads(task.threads)}" for task, _ in bounded])
    axes.set_ylim(len(bounded) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    _legend(figure, [axes])
    return figure


def predictions(data: ReportData, theme: Theme) -> Figure:
    """Predicted against measured, a panel for each problem that has predictions."""
    panels = _panels(task for task in data.tasks if task.predictions)
    colors = _colors(data, theme)
    figure, axes = _grid(list(panels), 2.1, "predicted score", "best / measured")
    for panel, tasks in zip(axes, panels.values(), strict=True):
        for task in tasks:
            x = [score for p in task.predictions for score in p.predicted]
            y = [relative for p in task.predictions for relative in p.measured]
            dots: dict[str, Any] = {
                "alpha": 0.6,
                "markersize": 3.5,
                "markeredgewidth": 0,
                "color": colors[task.threads],
            }
            panel.plot(x, y, "o", label=describe_threads(task.threads), **dots)
        said = [quality_of(task).correlation for task in tasks]
        text = ", ".join("unknown" if rho is None else f"{rho:.2f}" for rho in said)
        panel.text(0.04, 0.96, f"\N{GREEK SMALL LETTER RHO} {text}", transform=panel.transAxes, va="top")
        panel.set_ylim(0, 1.05)
    _legend(figure, axes)
    return figure
