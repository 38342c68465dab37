"""The pictures of docs/guide/properties.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 110
#: Errors below are drawn as this: a map that is the same but for rounding is one color.
LEAST_ERROR = 1e-8


@contextmanager
def picture(path: Path, columns: int, width: float, height: float) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """A row of axes, which are written to ``path``; the same numbers give the same file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    yield figure, list(axes[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    plt.close(figure)


def finish(axes: Axes) -> None:
    """Take away what says nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)


def plot_cost(
    sizes: Sequence[int],
    flops: Mapping[str, Sequence[int]],
    seconds: Mapping[str, Sequence[float | None]],
    footprints: Mapping[str, Sequence[int | None]],
    path: Path,
) -> None:
    """Multiply-adds, time and memory over tokens, by candidate, on logarithmic axes."""
    tokens = [size * size for size in sizes]
    panels: list[tuple[str, Mapping[str, Any], Callable[[Any], float]]] = [
        ("multiply-adds, 10⁶", flops, lambda n: n / 2e6),
        ("time, ms", seconds, lambda s: s * 1e3),
        ("memory beside inputs and output, MB", footprints, lambda n: n / 1e6),
    ]
    with picture(path, 3, 11, 3.6) as (figure, row):
        for axes, (label, series, scaled) in zip(row, panels, strict=True):
            for name, values in series.items():
                shown = [(n, scaled(v)) for n, v in zip(tokens, values, strict=True) if v]
                axes.plot(*zip(*shown, strict=True), "o-", label=name, markersize=4)
            axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
            axes.set_xticks(tokens, [f"{size}²" for size in sizes])
            axes.minorticks_off()
            axes.legend(frameon=False, fontsize=8)
            finish(axes)
        figure.suptitle("window 7x7, 2 heads of 32 channels, float32, batch 1", fontsize=10)


def plot_window(size: int, distances: Mapping[int, float], path: Path) -> None:
    """How far the output is from self-attention's, over the window's length."""
    with picture(path, 1, 6, 3.6) as (_, (axes,)):
        axes.plot(list(distances), list(distances.values()), "o-", markersize=4)
        axes.set(yscale="log", xlabel=f"kernel_size on a map of {size}x{size}", ylabel="relative RMS difference")
        axes.set_title("difference to self-attention, float32", fontsize=10)
        axes.set_xticks(list(distances))
        finish(axes)


def plot_shift(errors: Mapping[str, Tensor], path: Path) -> None:
    """Where the output of a shifted map is not the shifted output, by kind of attention."""
    from matplotlib.colors import LogNorm

    with picture(path, len(errors), 4.2 * len(errors), 3.9) as (figure, row):
        for axes, (title, error) in zip(row, errors.items(), strict=True):
            image = axes.imshow(error.clamp(min=LEAST_ERROR).numpy(), norm=LogNorm(LEAST_ERROR, 1.0), cmap="magma")
            axes.set_title(title, fontsize=10)
            axes.set_xticks([])
            axes.set_yticks([])
        figure.colorbar(image, ax=row, label="largest difference / largest output", shrink=0.85)
