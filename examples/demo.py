"""NAT-Mini on two photographs: compiled kernels against the eager reference, and what a pixel attends to.

``make demo``, or ``python examples/demo.py``. Needs matplotlib and scikit-learn (for its photographs).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from torch import Tensor

from tvm_na import settings
from tvm_na.images.preprocessing import resize_and_crop
from tvm_na.jit.progress import build_kernels
from tvm_na.measure.timing import Timing, format_speedup, format_time, measure, speedup, versions
from tvm_na.models import NAT, attention_maps, create_model, problems_of
from tvm_na.models.preprocessing import to_tensor
from tvm_na.models.registry import get_spec
from tvm_na.reference.accuracy import LOGITS_BUDGET, relative_error
from tvm_na.targets.target import cpu_name, parse_target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

MODEL = "nat_mini"
#: Photographs that come with scikit-learn, and a query pixel (row, column) in what the model sees of them.
PHOTOGRAPHS = {"china.jpg": (78, 110), "flower.jpg": (97, 104)}


@dataclass(frozen=True)
class Photograph:
    """A photograph as the model sees it.

    Attributes:
        name: Its file name.
        image: Cropped, RGB.
        x: The model's input ``[1, 3, H, W]``.
        pixel: Row and column of the query.
    """

    name: str
    image: Image
    x: Tensor
    pixel: tuple[int, int]


@dataclass(frozen=True)
class Result:
    """Both backends on one photograph.

    Attributes:
        shared: How many of the reference's five best classes the compiled model has at the same rank.
        error: Largest relative difference of the logits.
        timings: By backend.
    """

    shared: int
    error: float
    timings: dict[str, Timing]

    @property
    def speedup(self) -> float | None:
        """The reference's latency over the compiled model's; None for wrong numbers."""
        return speedup(self.timings["compiled"], self.timings["reference"], self.error, LOGITS_BUDGET)


def load_photographs() -> list[Photograph]:
    """The photographs, resized and cropped for the model."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    preprocessing = get_spec(MODEL).preprocessing
    photographs = []
    for name, pixel in PHOTOGRAPHS.items():
        image = resize_and_crop(Image.fromarray(load_sample_image(name)), preprocessing)
        photographs.append(Photograph(name, image, to_tensor(image, preprocessing)[None], pixel))
    return photographs


def compare(models: dict[str, NAT], x: Tensor) -> Result:
    """Run ``x`` through the ``compiled`` and the ``reference`` model, then time both in turns."""
    logits = {backend: model(x)[0] for backend, model in models.items()}
    best = {backend: out.topk(5).indices for backend, out in logits.items()}
    timings = measure({backend: partial(model, x) for backend, model in models.items()}, rounds=7, sample_time=0.1)
    shared = int((best["compiled"] == best["reference"]).sum())
    return Result(shared, relative_error(logits["compiled"], logits["reference"]), timings)


def table_of(results: dict[str, Result]) -> Table:
    """One row per photograph."""
    table = Table(title=f"{MODEL}, compiled against reference backend, batch 1, {torch.get_num_threads()} threads")
    for column in ("photograph", "same top 5", "max. difference", "compiled", "reference", "ratio"):
        table.add_column(column, justify="left" if column == "photograph" else "right")
    for name, result in results.items():
        latencies = [format_time(result.timings[backend].median) for backend in ("compiled", "reference")]
        ratio = format_speedup(result.speedup)
        table.add_row(name, f"{result.shared} of 5", f"{result.error:.1e}", *latencies, ratio)
    return table


def draw_attention(axes: Axes, photograph: Photograph, attention: Tensor, stage: int) -> None:
    """One panel: the photograph in gray, the attention on top, the window's border, the query; small windows larger."""
    size = photograph.image.size[0]
    cell = size / attention.shape[0]
    rows, columns = (attention.sum(axis).nonzero().flatten() for axis in (1, 0))
    window = attention[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    left, top = columns[0].item() * cell - 0.5, rows[0].item() * cell - 0.5
    box = (left, left + window.shape[1] * cell, top + window.shape[0] * cell, top)
    paint_window(axes, photograph, window, box)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    if box[1] - box[0] < size / 2.5:
        zoom = axes.inset_axes((0.56, 0.02, 0.42, 0.42), xlim=box[:2], ylim=box[2:])
        paint_window(zoom, photograph, window, box)
        axes.indicate_inset_zoom(zoom, edgecolor="white", linewidth=0.8, alpha=0.7)
    axes.set_title(f"stage {stage}: {'x'.join(map(str, attention.shape))} map", fontsize=11)
    axes.set_xlabel(f"weights {window.min():.2%} to {window.max():.2%}", fontsize=9)


def paint_window(axes: Axes, photograph: Photograph, window: Tensor, box: tuple[float, float, float, float]) -> None:
    """The photograph in gray and, in ``box`` (left, right, bottom, top), the smoothed attention of the window."""
    from matplotlib.patches import Rectangle

    axes.imshow(photograph.image.convert("L"), cmap="gray", vmin=-80, vmax=400, interpolation="bicubic")
    axes.imshow(window.numpy(), cmap="inferno", interpolation="bicubic", alpha=0.72, extent=box, zorder=2)
    left, right, bottom, top = box
    # Half a pixel inside, so that the border of a window as large as the photograph shows.
    corner, sides = (left + 0.5, top + 0.5), (right - left - 1, bottom - top - 1)
    axes.add_patch(Rectangle(corner, *sides, fill=False, color="white", linewidth=1.4, zorder=3))
    mark_query(axes, photograph.pixel)


def mark_query(axes: Axes, pixel: tuple[int, int]) -> None:
    """A cross on the query pixel, no ticks, no frame."""
    row, column = pixel
    axes.plot(column, row, "+", color="black", markersize=9, markeredgewidth=3, zorder=4)
    axes.plot(column, row, "+", color="cyan", markersize=8, markeredgewidth=1.3, zorder=5)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw(model: NAT, photographs: list[Photograph], weights: str, path: Path) -> None:
    """Write the picture: a row per photograph, the photograph and then the attention of each stage's last layer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    stages = len(model.depths)
    figsize = (14.6, 3.1 * len(photographs) + 0.9)
    figure, grid = plt.subplots(len(photographs), 1 + stages, figsize=figsize, layout="constrained", squeeze=False)
    for panels, photograph in zip(grid, photographs, strict=True):
        panels[0].imshow(photograph.image)
        mark_query(panels[0], photograph.pixel)
        panels[0].set_title(photograph.name, fontsize=11)
        panels[0].set_xlabel("query + at row {}, column {}".format(*photograph.pixel), fontsize=9)
        maps = attention_maps(model, photograph.x, photograph.pixel)
        for stage, (axes, attention) in enumerate(zip(panels[1:], maps, strict=True), start=1):
            draw_attention(axes, photograph, attention, stage)
    bar = figure.colorbar(plt.cm.ScalarMappable(cmap="inferno"), ax=grid, ticks=[0, 1], shrink=0.5, aspect=30, pad=0.01)
    bar.ax.set_yticklabels(["least", "most"])
    bar.outline.set_visible(False)
    figure.suptitle("Neighborhood attention of one query pixel in the last layer of each stage", fontsize=14)
    figure.supxlabel(
        f"{MODEL} with {weights}. White box: the query's 7x7 neighborhood; mean over heads.\n"
        "Colors are relative: from the least to the most weight of each panel. A uniform weight is 1/49 = 2.04%.",
        fontsize=9.5,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def load_model(weights: Path | None, console: Console) -> NAT:
    """The model; without weights random, and said so."""
    torch.manual_seed(0)
    model = create_model(MODEL, weights=weights, backend="compiled").eval()
    if weights is None:
        text = "There are no trained weights here: they are RANDOM (seed 0).\nClasses and attention mean nothing; "
        console.print(Panel(text + "numbers, speed and geometry do.", style="bold yellow", expand=False))
    return model


def main(
    weights: Annotated[Path | None, typer.Option(help="Checkpoint of nat_mini; random weights if none.")] = None,
    output: Annotated[Path, typer.Option(help="The picture.")] = Path("demo/attention.png"),
) -> None:
    """Build NAT-Mini's kernels for this CPU, run it on two photographs, draw what a pixel attends to."""
    console = Console(highlight=False)
    console.print(f"{cpu_name()}, target {parse_target(settings.target_name()).name}", markup=False)
    console.print(", ".join(f"{name} {version}" for name, version in versions().items()), markup=False)
    model = load_model(weights, console)
    photographs = load_photographs()
    built = build_kernels(problems_of(model, get_spec(MODEL).preprocessing.input_size), console)
    console.print(f"{built} kernels built" if built else "every kernel was in the cache")
    reference = copy.deepcopy(model)
    reference.set_backend("reference")
    models = {"compiled": model, "reference": reference}
    with torch.inference_mode(), console.status("comparing"):
        results = {photograph.name: compare(models, photograph.x) for photograph in photographs}
    console.print(table_of(results))
    described = "random weights (seed 0), so attention is close to uniform" if weights is None else weights.name
    draw(model, photographs, described, output)
    console.print(f"[bold]{output}[/bold] has the attention maps")
    worst = max(result.error for result in results.values())
    if worst > LOGITS_BUDGET:
        console.print(f"logits differ by {worst:.1e}, more than {LOGITS_BUDGET:g}", style="bold red")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
